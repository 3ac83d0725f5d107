"""From captioned images as they come to an indexed data set that training can ask by number.

A source is a list of parts (a webdataset shard on disk or on the hub, or some thousand rows of a table); each part
becomes one Arrow file, written whole or not at all, with a record beside it. So the work is parallel over parts, may be
killed at any moment, and started again does only what is missing. Bad samples are left out, counted and listed.

    out/part-00000.arrow    image (JPEG, shorter edge at the asked size), captions (list), key; a `datasets` schema
    out/part-00000.json     pairs, bytes, sha256, what was left out and why
    out/manifest.json       written last: an index without it is unfinished
    out/rejects.csv         shard, key, reason, detail
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import datasets
import filelock
import pyarrow as pa
from huggingface_hub.utils import disable_progress_bars
from tqdm.auto import tqdm

from diffclip import hub
from diffclip.files import write_text, written_whole
from diffclip.paths import cache_root
from diffclip.samples import BadSample, normalise_image
from diffclip.shards import DamagedShard
from diffclip.sources import HUB_SOURCES, CorpusError, HubShard, Part, Source, open_source, sha256_of

log = logging.getLogger("diffclip")

FORMAT = 1
BATCH_ROWS = 256  # rows in an Arrow record batch: small enough that one row is found quickly
HASH_ON_OPEN = 2**30  # an index up to so many bytes is hashed when opened (a second), of a larger one only the sizes
MAX_FAILURES = 3  # downloads that may fail before the rest is given up
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        "key": datasets.Value("string"),
    }
)


class DiskSpaceError(OSError):
    """The disk would fill up before the end."""


# ------------------------------------------------------------------------------------------------------------- indexing


def index_part(part: Part, file: Path, image_size: int) -> dict:
    """Turn one part into one Arrow file with its record beside it, both whole or not at all; returns the record."""
    rejects: list[tuple[str, str, str]] = []  # key, reason, detail
    pairs = 0
    schema = FEATURES.arrow_schema
    with written_whole(file) as partial:
        with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
            for batch in _batches(_good_rows(part, image_size, rejects), BATCH_ROWS):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                pairs += len(batch)
        record = {
            "part": part.name,
            "identity": _identity(part, image_size),
            "pairs": pairs,
            "bytes": partial.stat().st_size,
            "sha256": sha256_of(partial),
            "rejects": rejects,
        }
    write_text(file.with_suffix(".json"), json.dumps(record))
    return record


def _good_rows(part: Part, image_size: int, rejects: list) -> Iterator[dict]:
    try:
        for row in part.rows():
            if row.problem:
                rejects.append((row.key, *row.problem))
                continue
            try:
                image = normalise_image(row.image, image_size)
            except BadSample as bad:
                rejects.append((row.key, bad.reason, bad.detail))
            else:
                yield {"image": {"bytes": image, "path": None}, "captions": list(row.captions), "key": row.key}
    except DamagedShard as damage:
        rejects.append(("", "damaged shard", f"{damage}; what follows in it is lost"))


def _identity(part: Part, image_size: int) -> str:
    return hashlib.sha256(f"{FORMAT} {part.name} {part.identity} {image_size}".encode()).hexdigest()


def _batches(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the folder for this process; wait, with a word, while another one works in it."""
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("another process is preparing %s; waiting for it", out)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def index(
    source: Source,
    out: Path,
    *,
    image_size: int,
    workers: int | None = None,
    progress: bool | None = None,
    check_disk: bool = True,
    title: str = "preparing",
    say: Callable[[str], None] = log.info,
) -> dict:
    """Make the index of a source in the folder `out`, or what is missing of it or damaged, and return its manifest.

    workers: processes; None means one a core. progress: None shows a bar only on a terminal.
    check_disk: measure on the first part what the rest will take, `say` it, and stop there if it will not fit.
    Raises CorpusError, DiskSpaceError or hub.HubError; what is finished by then is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        for leftover in out.glob(".part-*"):  # of a killed process
            leftover.unlink()
        before = _read_json(out / "manifest.json") or {}
        asked = (source.description, image_size)
        if before and (held := (before.get("source"), before.get("image_size"))) != asked:
            raise CorpusError(
                f"The folder {out} holds another corpus (from {held[0]}, at {held[1]} pixels) than the one asked for "
                f"(from {asked[0]}, at {asked[1]} pixels). Give another folder, or remove that one first."
            )
        files = [out / f"part-{number:05d}.arrow" for number in range(len(source.parts))]
        records = _finished(source.parts, files, image_size)
        missing = [n for n, record in enumerate(records) if record is None]
        if missing:
            (out / "manifest.json").unlink(missing_ok=True)
            workers = max(1, min(workers or _cores(), len(missing)))
            if check_disk:
                _check_disk([source.parts[n] for n in missing], out, image_size, workers, say)
            with tqdm(
                total=sum(part.weight for part in source.parts),
                initial=sum(part.weight for part, record in zip(source.parts, records, strict=True) if record),
                desc=title,
                unit=source.unit,
                unit_scale=True,
                disable=None if progress is None else not progress,
            ) as bar:
                pairs = sum(record["pairs"] for record in records if record)
                jobs = {n: (source.parts[n], files[n], image_size) for n in missing}
                for number, record in _run(jobs, workers):
                    records[number] = record
                    pairs += record["pairs"]
                    bar.set_postfix_str(f"{pairs:,} pairs", refresh=False)
                    bar.update(source.parts[number].weight)
            shutil.rmtree(out / "downloads", ignore_errors=True)
        manifest = _manifest(source, files, records, image_size)
        if missing or manifest != before:
            _write_rejects(out / "rejects.csv", records)
            write_text(out / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


def _finished(parts: list[Part], files: list[Path], image_size: int) -> list[dict | None]:
    """The record of each part that is done and whole, None for the others; says which are damaged."""
    records = [_read_json(file.with_suffix(".json")) for file in files]
    records = [
        r if r and r["identity"] == _identity(p, image_size) else None for p, r in zip(parts, records, strict=True)
    ]
    hashed = sum(record["bytes"] for record in records if record) <= HASH_ON_OPEN
    for number, (file, record) in enumerate(zip(files, records, strict=True)):
        if record and (damage := _damage(file, record, hashed)):
            log.warning("%s %s: it is made again", file, damage)
            records[number] = None
    return records


def _damage(file: Path, record: dict, hashed: bool) -> str | None:
    """What is wrong with a part's file, in words; None if nothing is."""
    if not file.is_file():
        return "is missing"
    if (size := file.stat().st_size) != record["bytes"]:
        return f"has {size:,} bytes instead of {record['bytes']:,}"
    if hashed and sha256_of(file) != record["sha256"]:
        return "is damaged (its SHA-256 is another)"
    return None


def _manifest(source: Source, files: list[Path], records: list[dict], image_size: int) -> dict:
    skipped = Counter(reason for record in records for _, reason, _ in record["rejects"])
    kept = ("part", "pairs", "bytes", "sha256")
    return {
        "format": FORMAT,
        "source": source.description,
        "image_size": image_size,
        "pairs": sum(record["pairs"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "hash": hashlib.sha256(" ".join(record["sha256"] for record in records).encode()).hexdigest()[:16],
        "skipped": dict(sorted(skipped.items())),
        "parts": [{"file": f.name} | {k: r[k] for k in kept} for f, r in zip(files, records, strict=True)],
    }


def _write_rejects(path: Path, records: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["shard", "key", "reason", "detail"])
    for record in records:
        writer.writerows([record["part"], *reject] for reject in record["rejects"])
    write_text(path, text.getvalue())


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --------------------------------------------------------------------------------------------------- disk and processes


def _check_disk(parts: list[Part], out: Path, image_size: int, workers: int, say: Callable[[str], None]) -> None:
    """Prepare some samples of the first part in memory, and compare what all will take with what is free."""
    parts[0].fetch()
    taken = made = 0.0
    try:
        for row in itertools.islice(parts[0].rows(), 64):
            taken += row.weight
            try:
                made += len(normalise_image(row.image, image_size)) + 200 if not row.problem else 0  # 200: the caption
            except BadSample:
                continue
    except DamagedShard:
        pass
    index_bytes = made / taken * sum(part.weight for part in parts) if taken else 0.0
    download = [part.weight for part in parts if isinstance(part, HubShard)]
    kept = any(isinstance(part, HubShard) and part.keep for part in parts)
    passing = sum(download) if kept else sum(sorted(download)[-workers:])
    need, free = index_bytes + passing, shutil.disk_usage(out).free
    words = f"about {_size(index_bytes)} for the index" + (f" and {_size(passing)} for downloads" if download else "")
    say(f"{len(parts):,} parts to prepare take {words}; {_size(free)} are free.")
    if need > 0.95 * free:
        raise DiskSpaceError(
            errno.ENOSPC,
            f"The disk of {out} has {_size(free)} free, and preparing takes {words}. Free some, give a folder on "
            f"another disk, or take fewer parts.",
        )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _do_part(part: Part, file: Path, image_size: int) -> dict:
    part.fetch()
    record = index_part(part, file, image_size)
    part.release()
    return record


def _run(jobs: dict[int, tuple], workers: int) -> Iterator[tuple[int, dict]]:
    """Do the jobs, several at once, and yield (number, record) as they end.

    A part whose download fails does not stop the others, until MAX_FAILURES have failed.
    """
    failures: list[hub.HubError] = []
    try:
        if workers == 1:
            for number, job in jobs.items():
                try:
                    yield number, _do_part(*job)
                except hub.HubError as failure:
                    failures.append(failure)
                    if len(failures) >= MAX_FAILURES:
                        break
        else:
            # New interpreters, no forks: this process may run threads (torch, a notebook) that a fork would break.
            pool = ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
            )
            try:
                with _hidden_script():
                    futures = {pool.submit(_do_part, *job): number for number, job in jobs.items()}
                for future in as_completed(futures):
                    try:
                        yield futures[future], future.result()
                    except hub.HubError as failure:
                        failures.append(failure)
                        if len(failures) >= MAX_FAILURES:
                            break
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise CorpusError(
            "A process that prepared data was killed, most often because memory ran out. What is finished is kept: "
            f"start again, with fewer than {workers} workers if it happens again."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC and not isinstance(error, DiskSpaceError):
            raise DiskSpaceError(
                errno.ENOSPC, "The disk filled up. What is finished is kept: free some space and start again."
            ) from error
        raise
    if failures:
        raise hub.HubError(
            f"{len(failures)} parts could not be fetched; what is finished is kept, and the same command fetches the "
            f"rest. The first one: {failures[0]}"
        ) from failures[0]


@contextmanager
def _hidden_script() -> Iterator[None]:
    """Let new processes start without importing the script that runs here, as they otherwise do.

    They have no use for it, and one without the `if __name__ == "__main__":` guard would run a second time in each.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C go silently; the parent tells
    disable_progress_bars()  # of each download: several at once would write over the one bar that counts

    def watch() -> None:  # a parent that is killed outright tells nobody
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ------------------------------------------------------------------------------------------------------ the public face


def prepare(
    name: str,
    source: str | Path | None = None,
    out: str | Path | None = None,
    *,
    image_size: int = 224,
    revision: str | None = None,
    pattern: str | None = None,
    parts: int | None = None,
    workers: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    keep_shards: bool = False,
    check_disk: bool = True,
    progress: bool | None = None,
    say: Callable[[str], None] = log.info,
) -> dict:
    """Bring captioned images into an indexed data set that `corpora.open_corpus` opens as `name`; returns its manifest.

    source: a folder of webdataset shards as img2dataset writes them, a .csv or .tsv of image paths and captions, or a
        data set repository on the hub (owner/name, at `revision`) that holds shards; None is what HUB_SOURCES says for
        `name`.
    out: the folder; None means data/cache/corpora/<name>.
    image_size: pixels of the shorter edge.
    pattern: which files are shards, as a glob; the default is every .tar, on the hub those of the training split.
    parts: take only the first so many shards (or thousands of rows); asked for more later, it goes on from there.
    workers: processes; None means one a core.
    image_column, caption_column: of a table, where they are not called image, filepath, path, file or image_path, and
        caption, title or text.
    keep_shards: leave what is downloaded in the hub's cache.
    check_disk: measure what it will take, `say` so, and stop at the start if the disk will not hold it.
    progress: None shows a bar only on a terminal.

    Killed and started again it goes on where it was. Samples that are broken are skipped, counted in the manifest and
    listed in rejects.csv. Raises CorpusError, DiskSpaceError or hub.HubError.
    """
    if image_size < 8:
        raise CorpusError(f"Images are stored at 8 pixels or more; {image_size} were asked for.")
    if source is None and name not in HUB_SOURCES:
        raise CorpusError(
            f"Nothing is known of where {name!r} is: give its source (a folder of shards, a table, or owner/name on "
            f"the hub). Known without one: {', '.join(HUB_SOURCES)}."
        )
    out = cache_root() / "corpora" / name if out is None else Path(out)
    found = open_source(
        source or name,
        out=out,
        revision=revision,
        pattern=pattern,
        parts=parts,
        image_column=image_column,
        caption_column=caption_column,
        keep=keep_shards,
    )
    return index(
        found,
        out,
        image_size=image_size,
        workers=workers,
        progress=progress,
        check_disk=check_disk,
        title=f"preparing {name}",
        say=say,
    )


def read_manifest(folder: Path, name: str) -> dict:
    """The manifest of a finished index whose files are all there and whole; CorpusError says what to do otherwise."""
    again = f"Run `diffclip prepare {name}` again, as before: it does only what is missing."
    manifest = _read_json(folder / "manifest.json")
    if manifest is None:
        if any(folder.glob("part-*.json")):
            raise CorpusError(f"The corpus in {folder} is not finished. {again}")
        raise CorpusError(
            f"There is no prepared corpus {name} in {folder}. Make it with `diffclip prepare {name}` (from the hub) or "
            f"`diffclip prepare {name} --source FOLDER_OR_TABLE`, or say where it is."
        )
    if manifest.get("format") != FORMAT:
        raise CorpusError(
            f"The corpus in {folder} was written by another version of this kit. Remove it and prepare again."
        )
    hashed = manifest["bytes"] <= HASH_ON_OPEN
    damages = [(p["file"], d) for p in manifest["parts"] if (d := _damage(folder / p["file"], p, hashed))]
    if damages:
        listed = "; ".join(f"{file} {damage}" for file, damage in damages[:5])
        raise CorpusError(f"The corpus in {folder} has {len(damages)} bad files ({listed}). {again}")
    return manifest


def load_index(folder: Path, manifest: dict) -> datasets.Dataset:
    """The rows of an index, in the order of their source, mapped from disk; columns as in FEATURES."""
    files = [folder / part["file"] for part in manifest["parts"] if part["pairs"]]
    if not files:
        reasons = (
            ", ".join(f"{reason}: {count:,}" for reason, count in manifest["skipped"].items()) or "no samples at all"
        )
        raise CorpusError(f"The corpus in {folder} has no usable pairs ({reasons}); see rejects.csv there.")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
