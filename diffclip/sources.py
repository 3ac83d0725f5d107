"""Where captioned images come from, cut into parts that one process takes at a time.

A source is a folder of webdataset shards, a data set repository on the hub that holds such shards, or a table of image
paths and captions; `open_source` finds out which. Each part yields rows in a fixed order, good and bad.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from diffclip import hub
from diffclip.samples import IMAGE_EXTENSIONS, BadSample, clean_captions, read_captions
from diffclip.shards import Sample, read_shard

TABLE_ROWS = 5000  # rows of a table in a part
HUB_SOURCES = {"cc3m": "pixparse/cc3m-wds", "cc12m": "pixparse/cc12m-wds"}


class CorpusError(ValueError):
    """A corpus that cannot be prepared or opened as asked for; the message says what to do."""


class Part(Protocol):
    """A piece of a source that one process turns into one Arrow file; it must pickle."""

    name: str
    identity: str  # changes when the content does
    weight: float  # amount of work in the source's own unit (bytes, rows, scenes)

    def fetch(self) -> None: ...  # bring it to this machine; raises hub.HubError if that fails

    def rows(self) -> Iterator[Row]: ...  # raises DamagedShard where it breaks off

    def release(self) -> None: ...  # remove what fetch brought


@dataclass(frozen=True)
class Row:
    key: str
    weight: float  # its share of the part's weight
    image: bytes = b""
    captions: tuple[str, ...] = ()
    problem: tuple[str, str] | None = None  # reason and detail, where there is no image or no caption


@dataclass(frozen=True)
class Shard:
    """A webdataset shard on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def identity(self) -> str:
        state = self.path.stat()
        return f"{self.name}:{state.st_size}:{state.st_mtime_ns}"

    @property
    def weight(self) -> float:
        return self.path.stat().st_size

    def fetch(self) -> None:
        pass

    def release(self) -> None:
        pass

    def rows(self) -> Iterator[Row]:
        for sample in read_shard(self.path):
            yield shard_row(sample)


@dataclass(frozen=True)
class HubShard:
    """A webdataset shard in a data set repository on the hub; removed after indexing if it was not cached before."""

    repo: str
    revision: str  # a commit, so that all parts come from one state of the repository
    file: str
    identity: str
    weight: float  # bytes
    folder: Path  # where the download lies meanwhile
    keep: bool = False

    @property
    def name(self) -> str:
        return self.file

    def fetch(self) -> None:
        self._path()

    def release(self) -> None:
        (self.folder / self.file).unlink(missing_ok=True)

    def rows(self) -> Iterator[Row]:
        for sample in read_shard(self._path()):
            yield shard_row(sample)

    def _path(self) -> Path:
        cached = hub.cached(self.repo, self.file, revision=self.revision, repo_type="dataset")
        folder = None if self.keep else self.folder
        return cached or hub.fetch(self.repo, self.file, revision=self.revision, repo_type="dataset", folder=folder)


@dataclass(frozen=True)
class TableRows:
    """`count` rows of a table of image paths and captions; relative paths start at the table's folder."""

    table: Path
    columns: tuple[str, ...]
    start: int  # number of the first row
    offset: int  # where it starts in the file, in bytes
    count: int
    image_column: str
    caption_column: str
    identity: str

    @property
    def name(self) -> str:
        return f"{self.table.name} rows {self.start + 1}-{self.start + self.count}"

    @property
    def weight(self) -> float:
        return self.count

    def fetch(self) -> None:
        pass

    def release(self) -> None:
        pass

    def rows(self) -> Iterator[Row]:
        lines = itertools.islice(_read_table(self.table, self.offset), self.count)
        for number, (_, line) in enumerate(lines, self.start + 1):
            record = dict(zip(self.columns, line, strict=False))
            key, name = str(number), record.get(self.image_column, "")
            try:
                captions = clean_captions([record.get(self.caption_column)])
                image = (self.table.parent / name).read_bytes()
            except BadSample as bad:
                yield Row(key, 1, problem=(bad.reason, bad.detail))
            except (OSError, ValueError) as error:  # ValueError: a null byte in the path
                yield Row(key, 1, problem=("no image", f"{name}: {getattr(error, 'strerror', None) or error}"))
            else:
                yield Row(key, 1, image, captions)


def shard_row(sample: Sample) -> Row:
    image = next((sample.files[e] for e in IMAGE_EXTENSIONS if e in sample.files), None)
    if image is None:
        members = ", ".join(sorted(sample.files))
        return Row(sample.key, sample.nbytes, problem=("no image", f"members: {members}"))
    try:
        return Row(sample.key, sample.nbytes, image, read_captions(sample.files))
    except BadSample as bad:
        return Row(sample.key, sample.nbytes, problem=(bad.reason, bad.detail))


@dataclass(frozen=True)
class Source:
    parts: list[Part]
    description: dict  # ends in the manifest and so in a run's config
    unit: str  # of the parts' weights, for the progress bar


def open_source(
    source: str | Path,
    *,
    out: Path,
    revision: str | None = None,
    pattern: str | None = None,
    parts: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    keep: bool = False,
) -> Source:
    """Find out what a source is and list its parts; see `prepare` for the arguments. Raises CorpusError or HubError."""
    path = Path(source)
    if path.is_file():
        found = _table_source(path, image_column, caption_column)
    elif path.is_dir():
        shards = sorted(path.glob(pattern or "**/*.tar"))
        if not shards:
            raise CorpusError(
                f"The folder {path} holds no webdataset shards ({pattern or '*.tar'}). Give the folder into which "
                f"img2dataset wrote (with --output_format webdataset), a .csv or .tsv of image paths and captions, or "
                f"a repository on the hub."
            )
        found = Source([Shard(p) for p in shards], {"kind": "shards", "folder": str(path.resolve())}, "B")
    else:
        repo = HUB_SOURCES.get(str(source), str(source))
        if not hub.is_repo_id(repo):
            raise CorpusError(
                f"{str(source)!r} is neither a folder of shards, nor a .csv or .tsv file, nor one of "
                f"{', '.join(HUB_SOURCES)}, nor the name of a repository on the hub (owner/name)."
            )
        found = _hub_source(repo, revision, pattern, out / "downloads", keep)
    if parts is not None:
        if parts < 1:
            raise CorpusError(f"At least one part must be taken; {parts} were asked for.")
        found = Source(found.parts[:parts], found.description, found.unit)
    return found


def _hub_source(repo: str, revision: str | None, pattern: str | None, folder: Path, keep: bool) -> Source:
    commit, files = hub.list_files(repo, revision=revision, repo_type="dataset")
    shards = [f for f in files if fnmatch(f.path, pattern or "*.tar")]
    if pattern is None:  # the repositories hold train and validation side by side
        shards = [f for f in shards if "train" in f.path] or shards
    if not shards:
        raise CorpusError(
            f"The repository {repo} at {commit[:12]} holds no files {pattern or '*.tar'}; it has "
            f"{', '.join(f.path for f in files[:5])}{' ...' if len(files) > 5 else ''}. Give the pattern of its shards."
        )
    parts = [HubShard(repo, commit, f.path, f.identity, f.size, folder, keep) for f in shards]
    return Source(parts, {"kind": "hub", "repo": repo, "revision": commit}, "B")


def _table_source(path: Path, image_column: str | None, caption_column: str | None) -> Source:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise CorpusError(f"{path} is not a table: a .csv or .tsv file with image paths and captions was expected.")
    lines = _read_table(path)
    _, columns = next(lines, (0, []))
    image = _pick_column(
        path, columns, image_column, ("image", "filepath", "path", "file", "image_path"), "image paths"
    )
    caption = _pick_column(path, columns, caption_column, ("caption", "title", "text"), "captions")
    offsets = [offset for offset, _ in lines]
    if not offsets:
        raise CorpusError(f"The table {path} has a header and no rows; there is nothing to prepare.")
    digest = sha256_of(path)
    parts = [
        TableRows(
            table=path,
            columns=tuple(columns),
            start=start,
            offset=offsets[start],
            count=min(TABLE_ROWS, len(offsets) - start),
            image_column=image,
            caption_column=caption,
            identity=f"{digest} {start} {image} {caption}",
        )
        for start in range(0, len(offsets), TABLE_ROWS)
    ]
    return Source(parts, {"kind": "table", "file": str(path.resolve()), "sha256": digest}, "row")


def _pick_column(path: Path, columns: list[str], asked: str | None, usual: tuple[str, ...], what: str) -> str:
    for name in (asked,) if asked else usual:
        if name in columns:
            return name
    wanted = repr(asked) if asked else "any of " + ", ".join(usual)
    raise CorpusError(
        f"The table {path} has no column for the {what}: {wanted} was looked for, its first line says "
        f"{', '.join(columns) or 'nothing'}. Name the column, or add the missing header line."
    )


def _read_table(path: Path, offset: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The rows of a .csv or .tsv from a byte offset on, each with the offset at which it starts."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        position = offset

        def lines() -> Iterator[str]:  # csv takes one line at a time, and more only inside quotes
            nonlocal position
            for line in stream:
                position += len(line)
                yield line.decode("utf-8-sig" if position == len(line) else "utf-8", errors="replace")

        reader = csv.reader(lines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        while True:
            start = position
            row = next(reader, None)
            if row is None:
                return
            if row:  # a blank line is no row
                yield start, row


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
