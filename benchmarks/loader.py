"""How fast training data is read: the indexed corpus beside a plain webdataset pipeline, with the same decoding.

    python benchmarks/loader.py            # about two minutes; writes benchmarks/results/loader.{csv,md}

Both read the same JPEG files of a generated corpus: the pipeline from the tar shards, in order of shards with a shuffle
buffer, the corpus from the index that was made of them, in the global random order of an epoch. Each yields decoded RGB
pictures and captions ("decoded"), then what a training step takes from them ("training view": random resized crop and
tokens). Figures are images per second of processor time on one core, so other work on the machine does not count; all
files are in the page cache. Where they are not, the pipeline reads disks in long runs and the index in short ones.

If the package `webdataset` is installed it is measured too (pip install webdataset); the kit does not depend on it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from diffclip.corpora import Corpus, CorpusSpec, open_corpus
from diffclip.images import train_crop
from diffclip.loader import epoch_order, sample_generator
from diffclip.tokenizer import tokenize

RESULTS = Path(__file__).parent / "results"
BUFFER = 1000  # samples in the plain pipeline's shuffle buffer, the usual size
CROP = (0.5, 1.0)
PIECE = 256  # captions tokenised at once

Sample = tuple[Image.Image, list[str]]


def plain_pipeline(shards: list[Path], seed: int) -> Iterator[Sample]:
    """A webdataset pipeline as one would write it: shards in random order, members grouped by name, shuffle buffer."""
    rng = np.random.default_rng(seed)
    buffer: list[dict[str, bytes]] = []

    def samples() -> Iterator[dict[str, bytes]]:
        for shard in rng.permutation(len(shards)):
            with tarfile.open(shards[shard], mode="r|") as tar:
                key, files = None, {}
                for member in tar:
                    name, _, extension = member.name.partition(".")
                    if name != key and files:
                        yield files
                        files = {}
                    key = name
                    files[extension] = tar.extractfile(member).read()
                if files:
                    yield files

    def decode(files: dict[str, bytes]) -> Sample:
        image = Image.open(io.BytesIO(files["jpg"])).convert("RGB")
        return image, json.loads(files["json"])["captions"]

    for files in samples():
        if len(buffer) < BUFFER:
            buffer.append(files)
            continue
        slot = rng.integers(BUFFER)
        buffer[slot], files = files, buffer[slot]
        yield decode(files)
    for slot in rng.permutation(len(buffer)):
        yield decode(buffer[slot])


def webdataset_package(shards: list[Path], seed: int) -> Iterator[Sample]:
    """The same with the package `webdataset` itself."""
    import webdataset

    pipeline = webdataset.WebDataset([str(s) for s in shards], shardshuffle=len(shards), seed=seed, empty_check=False)
    for files in pipeline.shuffle(BUFFER):
        image = Image.open(io.BytesIO(files["jpg"])).convert("RGB")
        yield image, json.loads(files["json"])["captions"]


def indexed(corpus: Corpus, seed: int) -> Iterator[Sample]:
    """What the trainer reads: any sample by its number, all in one random order."""
    for number in epoch_order(len(corpus), seed, epoch=0):
        pair = corpus[number]
        yield pair["image"], pair["captions"]


def training_view(samples: Iterator[Sample], size: int) -> Iterator[np.ndarray]:
    """Random resized crop and tokens, as diffclip.loader makes them."""
    captions: list[str] = []
    for number, (image, wordings) in enumerate(samples):
        rng = sample_generator(0, 0, number)
        captions.append(wordings[int(rng.integers(len(wordings)))])
        yield np.asarray(train_crop(image, size, CROP, rng))
        if len(captions) == PIECE:
            tokenize(captions)
            captions.clear()


def images_per_second(samples: Iterator) -> float:
    """Per second of this process's processor time."""
    start, count = time.process_time(), 0
    for _ in samples:
        count += 1
    return count / (time.process_time() - start)


def readers(corpus: Corpus) -> dict[str, Callable[[int], Iterator[Sample]]]:
    shards = sorted((corpus.folder / "shards").glob("*.tar"))
    found = {
        "indexed corpus": lambda seed: indexed(corpus, seed),
        "plain pipeline": lambda seed: plain_pipeline(shards, seed),
    }
    try:
        import webdataset  # noqa: F401
    except ImportError:
        return found
    return found | {"webdataset package": lambda seed: webdataset_package(shards, seed)}


def measure(sizes: dict[int, int], rounds: int) -> list[dict]:
    """sizes: edge in pixels -> pairs. Readers take turns within a round; the median over rounds is reported."""
    rows = []
    for size, pairs in sizes.items():
        corpus = open_corpus(CorpusSpec("loader", "world", pairs, size))
        found = readers(corpus)
        for stage in ("decoded", "training view"):
            rates: dict[str, list[float]] = {name: [] for name in found}
            for seed in tqdm(range(rounds + 1), desc=f"{size} px, {stage}", unit="round", disable=None):
                for name, reader in found.items():
                    samples = reader(seed)
                    rate = images_per_second(samples if stage == "decoded" else training_view(samples, size))
                    if seed:  # the first round warms caches
                        rates[name].append(rate)
            plain = statistics.median(rates["plain pipeline"])
            for name, values in rates.items():
                middle = statistics.median(values)
                rows.append(
                    {
                        "pixels": size,
                        "stage": stage,
                        "reader": name,
                        "images_per_s_core": round(middle),
                        "lowest": round(min(values)),
                        "highest": round(max(values)),
                        "ratio_to_plain": round(middle / plain, 2),
                        "rounds": len(values),
                        "pairs": pairs,
                    }
                )
    return rows


def write(rows: list[dict], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "loader.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    versions = f"datasets {datasets.__version__}, Pillow {PIL.__version__}, PyTorch {torch.__version__}"
    lines = [
        "# Reading training data",
        "",
        f"Images per second of processor time on one core: the median (lowest to highest) over {rows[0]['rounds']} "
        + "rounds in which the readers took turns. Same JPEG files, same decoding, page cache warm; the indexed corpus is "
        + f"read in the epoch's global random order, the pipelines in shard order with a shuffle buffer of {BUFFER:,}.",
        "",
        "| pixels | stage | reader | images/s/core | times the plain pipeline |",
        "|---:|---|---|---:|---:|",
    ]
    for row in rows:
        rate = f"{row['images_per_s_core']:,} ({row['lowest']:,} to {row['highest']:,})"
        lines.append(f"| {row['pixels']} | {row['stage']} | {row['reader']} | {rate} | {row['ratio_to_plain']:.2f} |")
    lines += ["", f"{date.today()}, {platform.machine()}, Python {platform.python_version()}, {versions}.", ""]
    (folder / "loader.md").write_text("\n".join(lines))
    return folder / "loader.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few images, one round: to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {48: 2000, 224: 200} if args.quick else {48: 10_000, 224: 2000}
    print(write(measure(sizes, 1 if args.quick else args.rounds), args.out).read_text())


if __name__ == "__main__":
    main()
