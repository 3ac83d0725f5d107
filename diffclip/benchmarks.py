"""Evaluation sets: which there are at a scale, written once, read from a folder or the hub by one loader.

The layout is that of the LAION CLIP Benchmark's sets, on disk as on the hub: ``dataset_type.txt`` (absent, or
"classification" or "retrieval"), ``classnames.txt``, ``zeroshot_classification_templates.txt``, and a folder a split
with ``nshards.txt`` and ``0.tar``, ``1.tar``, ...; a sample is an image plus ``cls`` (an integer) or ``txt`` (a
caption a line). Pairs come as MMVP-VLM has them (``Questions.csv`` and a folder of images a pattern), POPE questions as
POPE has them (a file of JSON lines for each way of choosing what is absent, and a folder of images).

At the small scales the sets are generated (generated.py) under names of their own; ``paper_name`` says whose place in
the paper's tables each takes, and is never the name of generated data. At `released` and `paper` the sets are the real
ones.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffclip import generated, hub, world
from diffclip.paths import cache_root, data_root
from diffclip.shards import DamagedShard, index_shard, write_shard

log = logging.getLogger("diffclip")

TASKS = ("classification", "shift", "retrieval", "mmvp", "pope")
_IMAGES = ("webp", "png", "jpg", "jpeg")
_FORMAT = 1  # of what is written; a change makes every generated set anew
_SHARD_IMAGES = 1000


class BenchmarkError(ValueError):
    """An evaluation set that cannot be had or does not make sense; the message says what to do."""


# --------------------------------------------------------------------------------------------------- what there is
@dataclass(frozen=True)
class BenchmarkSpec:
    """One evaluation set.

    name: its own, and of its folder. task: one of TASKS ("shift" are the many-class zero-shot set and its four shifts).
    paper_name: the set of the paper whose place it takes. metric: what the paper's tables give for it. source:
    "generated", "hub" or "folder". location: repository or path. revision: of the repository. amounts: images a split;
    for "mmvp" pairs a pattern. image_size: of generated pictures.
    """

    name: str
    task: str
    paper_name: str
    metric: str
    source: str = "generated"
    location: str = ""
    revision: str | None = None
    amounts: dict[str, int] = field(default_factory=dict, hash=False)
    image_size: int = 0
    note: str = ""

    @property
    def display_name(self) -> str:
        """What tables and figures call it: a generated set never bears a real one's name alone."""
        return f"{self.name} (in the place of {self.paper_name})" if self.source == "generated" else self.paper_name


# The nine downstream sets of table 1, in its order: (own name, the paper's, its metric, repository of the real one).
# Mean per-class accuracy where El Banani et al. 2023 and the works before them use it.
_DOWNSTREAM = (
    ("world-shapes", "Caltech-101", "mean_per_class_accuracy", "wds_vtab-caltech101"),
    ("world-surfaces", "DTD", "accuracy", "wds_vtab-dtd"),
    ("world-creatures", "Pets", "mean_per_class_accuracy", "wds_vtab-pets"),
    ("world-garden", "Flowers", "mean_per_class_accuracy", "wds_vtab-flowers"),
    ("world-places", "SUN397", "accuracy", "wds_sun397"),
    ("world-stars", "Aircraft", "mean_per_class_accuracy", "wds_fgvc_aircraft"),
    ("digits", "CIFAR-10", "accuracy", "wds_vtab-cifar10"),
    ("world-tiny", "CIFAR-100", "accuracy", "wds_vtab-cifar100"),
    ("world-kitchen", "Food-101", "accuracy", "wds_food101"),
)
_SHIFTS = (
    ("world-objects", "ImageNet", "wds_imagenet1k"),
    ("world-objects-resampled", "ImageNet-V2", "wds_imagenetv2"),
    ("world-objects-cluttered", "ImageNet-A", "wds_imagenet-a"),
    ("world-objects-renditions", "ImageNet-R", "wds_imagenet-r"),
    ("world-objects-sketches", "ImageNet-Sketch", "wds_imagenet_sketch"),
)
_RETRIEVAL = (
    ("captions-mixed", "Flickr30k", "wds_flickr30k"),
    ("captions-simple", "Flickr8k", "wds_flickr8k"),
    ("captions-busy", "MSCOCO", "wds_mscoco_captions"),
)
_OWNER = "clip-benchmark"


@dataclass(frozen=True)
class _Amounts:
    """Sizes of the generated sets at a scale; each rounded up to the same number of images for every class."""

    image_size: int
    train: int
    test: int
    shift: int
    retrieval: int
    pairs: int  # a pattern; the paper has 15
    presence: int  # images with questions; the paper has 500


_AMOUNTS = {
    # As few as an evaluation can do with: few-shot episodes draw 5 images of a class from train and 6 from test.
    "smoke": _Amounts(32, train=8, test=8, shift=64, retrieval=48, pairs=6, presence=12),
    # More pairs than the paper's 15 a pattern: 60 give a standard error of 6 points where 15 give 13.
    "mini": _Amounts(48, train=720, test=800, shift=768, retrieval=400, pairs=60, presence=150),
    "gpu": _Amounts(224, train=1500, test=2000, shift=2560, retrieval=1000, pairs=120, presence=500),
}
_LEAST_PER_CLASS = 8
_POPE_NOTE = (
    "a folder with POPE's coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, and the COCO "
    "val2014 images they name in images/"
)


def registry(scale: str | object) -> list[BenchmarkSpec]:
    """The evaluation sets of a scale (a name or a Scale), in the order of the paper's tables."""
    scale = getattr(scale, "name", scale)
    if scale in _AMOUNTS:
        return _generated_registry(_AMOUNTS[scale])
    if scale in ("released", "paper"):
        return _real_registry()
    raise BenchmarkError(f"There are no evaluation sets for a scale {scale!r}; choose one of {', '.join(SCALE_NAMES)}.")


SCALE_NAMES = (*_AMOUNTS, "released", "paper")


def _generated_registry(n: _Amounts) -> list[BenchmarkSpec]:
    def even(name: str, wanted: int) -> int:
        classes = len(generated.CLASS_SETS[name].classes)
        return classes * max(_LEAST_PER_CLASS if wanted < 400 else 1, -(-wanted // classes))

    out = []
    for name, paper_name, metric, _ in _DOWNSTREAM:
        amounts = {"train": even(name, n.train), "test": even(name, n.test)}
        if name == "digits":  # there are 1 797 in all, and their order is not ours
            amounts = {split: min(max(k, 160), generated.digits_available(split)) for split, k in amounts.items()}
        out.append(BenchmarkSpec(name, "classification", paper_name, metric, amounts=amounts, image_size=n.image_size))
    for name, paper_name, _ in _SHIFTS:
        classes = len(generated.CLASS_SETS[name].classes)
        amounts = {"test": classes * -(-n.shift // classes)}
        out.append(BenchmarkSpec(name, "shift", paper_name, "accuracy", amounts=amounts, image_size=n.image_size))
    for name, paper_name, _ in _RETRIEVAL:
        amounts = {"test": n.retrieval}
        out.append(BenchmarkSpec(name, "retrieval", paper_name, "recall@5", amounts=amounts, image_size=n.image_size))
    note = f"{n.pairs} pairs a pattern where the paper has 15, so that intervals are of use"
    pairs = BenchmarkSpec("pairs", "mmvp", "MMVP-VLM", "pair_accuracy", amounts={"test": n.pairs}, note=note)
    note = f"{n.presence} images where the paper has 500"
    presence = BenchmarkSpec("presence", "pope", "POPE", "accuracy", amounts={"test": n.presence}, note=note)
    out += [replace(spec, image_size=n.image_size) for spec in (pairs, presence)]
    return out


def _real_registry() -> list[BenchmarkSpec]:
    def real(task: str, paper_name: str, metric: str, repo: str) -> BenchmarkSpec:
        return BenchmarkSpec(repo.removeprefix("wds_"), task, paper_name, metric, "hub", f"{_OWNER}/{repo}")

    out = [real("classification", paper_name, metric, repo) for _, paper_name, metric, repo in _DOWNSTREAM]
    out += [real("shift", paper_name, "accuracy", repo) for _, paper_name, repo in _SHIFTS]
    out += [real("retrieval", paper_name, "recall@5", repo) for _, paper_name, repo in _RETRIEVAL]
    out.append(BenchmarkSpec("mmvp_vlm", "mmvp", "MMVP-VLM", "pair_accuracy", "hub", "MMVP/MMVP_VLM"))
    pope = BenchmarkSpec("pope", "pope", "POPE", "accuracy", "folder", str(data_root() / "pope"), note=_POPE_NOTE)
    return [*out, pope]


def find(name: str, scale: str | object) -> BenchmarkSpec:
    """The set of that name, or taking the place of that set of the paper; ValueError lists the names there are."""
    specs = registry(scale)
    for spec in specs:
        if name in (spec.name, spec.paper_name):
            return spec
    raise BenchmarkError(
        f"There is no evaluation set {name!r} at scale {getattr(scale, 'name', scale)!r}. There are: "
        f"{', '.join(s.name for s in specs)}. A folder or a repository (owner/name) in the layout of the CLIP "
        f"Benchmark can be given as well."
    )


# --------------------------------------------------------------------------------------------------- what is loaded
@dataclass(frozen=True)
class PairQuestion:
    """A pair of MMVP: images[first] fits statements[0], images[second] fits statements[1]."""

    pattern: str
    images: tuple[int, int]
    statements: tuple[str, str]


@dataclass(frozen=True)
class PopeQuestion:
    """A yes-or-no question: about images[image], with ``way`` "random", "popular" or "adversarial"."""

    way: str
    image: int
    text: str
    answer: bool


class Images(Sequence):
    """Pictures decoded when asked for: images[i] is a PIL image in RGB, images[a:b] a shorter sequence of the kind.

    An entry is (file, offset, size, key): the bytes of an image file, which may lie inside a tar. Nothing is held open,
    so it can go to worker processes. Raises BenchmarkError, with the place, for bytes that are not a whole image.
    """

    def __init__(self, entries: list[tuple[str, int, int, str]]):
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return Images(self.entries[index])
        path, _, _, key = self.entries[index]
        try:
            return Image.open(io.BytesIO(self.content(index))).convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
            raise BenchmarkError(
                f"The image {key} in {path} cannot be decoded ({type(error).__name__}: {error}). The file is damaged: "
                f"remove it and load the set again, so that it is made or fetched anew."
            ) from error

    def content(self, index: int) -> bytes:
        """The image file's bytes."""
        path, offset, size, _ = self.entries[index]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class Benchmark:
    """One split of one set, ready to evaluate.

    images: sequence of RGB pictures. Classification: labels int64 [N], classnames, templates (with ``{c}``).
    Retrieval: captions, a list of N lists. MMVP: pairs. POPE: questions. What a task has not is None or empty.
    fingerprint: name, split, n and a sha256 that changes with the content.
    """

    spec: BenchmarkSpec
    split: str
    images: Images
    fingerprint: dict
    labels: np.ndarray | None = None
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    captions: list[list[str]] | None = None
    pairs: tuple[PairQuestion, ...] = ()
    questions: tuple[PopeQuestion, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def chance(self) -> float | None:
        """What guessing scores on the set's metric: a share in [0, 1]."""
        task, n = self.spec.task, len(self.images)
        if task in ("classification", "shift"):
            return 1 / len(self.classnames)
        if task == "retrieval":
            return min(1.0, 5 / n)  # recall@5 of images; of texts a little more, for each image has several
        return 0.25 if task == "mmvp" else 0.5

    def __len__(self) -> int:
        return len(self.images)


def load(
    spec: BenchmarkSpec | str, scale: str | object = "mini", split: str = "test", *, root: Path | None = None
) -> Benchmark:
    """A split of an evaluation set, made, fetched and checked as needed.

    ``spec`` is an entry of the registry, its name, the path of a folder, or a repository ("owner/name", optionally
    "owner/name@revision") in the layout of the CLIP Benchmark, MMVP or POPE. Generated sets are kept under
    data/cache/benchmarks/<scale>/<name>; each file is compared with its hash at every load, and the set is made again,
    with a word, where one differs. ``root`` overrides data/cache/benchmarks.
    Raises BenchmarkError for an unknown name, a missing split, damage, or labels, class names and templates that do not
    belong together; hub.HubError for what cannot be fetched.
    """
    if isinstance(spec, str):
        spec = resolve(spec, scale)
    if spec.source == "generated":
        return _open_folder(spec, split, ensure(spec, scale, root=root))
    if spec.source == "hub":
        return _open_folder(spec, split, _fetch(spec, split), commit=True)
    folder = Path(spec.location)
    if not folder.is_dir():
        hint = f" Expected is {spec.note}." if spec.note else ""
        raise BenchmarkError(f"The evaluation set {spec.name} is looked for in {folder}, which is not a folder.{hint}")
    return _open_folder(spec, split, folder)


def resolve(name: str, scale: str | object) -> BenchmarkSpec:
    try:
        return find(name, scale)
    except BenchmarkError:
        folder, (repo, _, revision) = Path(name).expanduser(), name.partition("@")
        if folder.is_dir():
            return _guessed(BenchmarkSpec(folder.name, "", folder.name, "", "folder", str(folder)), folder)
        if hub.is_repo_id(repo) and not name.startswith((".", "/")):
            known = [s for s in _real_registry() if s.location == repo]
            if known:
                return replace(known[0], revision=revision or None)
            own = repo.split("/")[1].removeprefix("wds_")
            return BenchmarkSpec(own, "", own, "", "hub", repo, revision or None)
        raise


_METRICS = {"classification": "accuracy", "retrieval": "recall@5", "mmvp": "pair_accuracy", "pope": "accuracy"}


def _guessed(spec: BenchmarkSpec, folder: Path) -> BenchmarkSpec:
    """Fill in task and metric from what the folder holds."""
    if (folder / "Questions.csv").exists():
        task = "mmvp"
    elif list(folder.glob("*pope_random.json")):
        task = "pope"
    else:
        task = _dataset_type(folder)
    return replace(spec, task=task, metric=_METRICS[task])


def splits(spec: BenchmarkSpec) -> tuple[str, ...] | None:
    """The splits of a generated set; None for another, whose folder knows."""
    return tuple(spec.amounts) if spec.source == "generated" else None


# ------------------------------------------------------------------------------------------------- the folder layouts
def _open_folder(spec: BenchmarkSpec, split: str, folder: Path, commit: bool = False) -> Benchmark:
    if not spec.task:
        spec = _guessed(spec, folder)
    opener = {"mmvp": _open_mmvp, "pope": _open_pope}.get(spec.task, _open_shards)
    benchmark = opener(spec, split, folder)
    if not len(benchmark.images):
        raise BenchmarkError(f"The split {split} of {spec.name} in {folder} holds no image.")
    if commit:
        some = next(p for p in sorted(folder.iterdir()) if p.is_file())
        benchmark.fingerprint["commit"] = hub.commit_of(some)
    return benchmark


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _dataset_type(folder: Path) -> str:
    path = folder / "dataset_type.txt"
    kind = path.read_text(encoding="utf-8").strip().lower() if path.exists() else "classification"
    if kind not in ("classification", "retrieval"):
        raise BenchmarkError(
            f"{path} says {kind!r}; sets of the types classification and retrieval can be evaluated here."
        )
    return kind


def _shard_paths(folder: Path, split: str, name: str) -> list[Path]:
    place = folder / split
    if not place.is_dir():
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.tar")))
        raise BenchmarkError(
            f"The set {name} has no split {split!r} in {folder}; it has: {', '.join(there) or 'none at all'}."
        )
    if (place / "nshards.txt").exists():
        paths = [place / f"{i}.tar" for i in range(_count(place / "nshards.txt"))]
        if missing := [p.name for p in paths if not p.exists()]:
            raise BenchmarkError(
                f"{place / 'nshards.txt'} speaks of {len(paths)} shards, but {', '.join(missing)} is not there. "
                f"Fetch the set again."
            )
        return paths
    return sorted(place.glob("*.tar"))


def _count(path: Path) -> int:
    text = path.read_text(encoding="utf-8").strip()
    if not text.isdigit():
        raise BenchmarkError(f"{path} should hold the number of shards and nothing else, but says {text[:40]!r}.")
    return int(text)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    try:
        yield from index_shard(path)
    except DamagedShard as damage:
        raise BenchmarkError(
            f"{path} is damaged: {damage}. Remove it and load the set again, so that it is fetched anew."
        ) from damage


def _open_shards(spec: BenchmarkSpec, split: str, folder: Path) -> Benchmark:
    kind = _dataset_type(folder)
    if (spec.task == "retrieval") != (kind == "retrieval"):
        raise BenchmarkError(f"{spec.name} should be a set for {spec.task}, but the one in {folder} is for {kind}.")
    beside = "txt" if kind == "retrieval" else "cls"
    entries, notes = [], []
    digest = hashlib.sha256()
    for path in _shard_paths(folder, split, spec.name):
        with open(path, "rb") as stream:
            for key, files in _samples(path):
                image = next((e for e in _IMAGES if e in files), None)
                if image is None or beside not in files:
                    raise BenchmarkError(
                        f"The sample {key} in {path} has {', '.join(sorted(files)) or 'nothing'}; a sample of a set "
                        f"for {kind} is an image ({', '.join(_IMAGES)}) and a {beside} file."
                    )
                entries.append((str(path), *files[image], key))
                offset, size = files[beside]
                stream.seek(offset)
                notes.append(stream.read(size).decode("utf-8"))
                digest.update(f"{key}\0{files[image][1]}\0{notes[-1]}\0".encode())
    content = _manifest(folder).get("content", {}).get(split)
    texts = {}
    if kind == "classification":
        texts = {
            "classnames": _required(
                folder / "classnames.txt", spec, "a line for each class, in the order of its labels"
            ),
            "templates": _required(
                folder / "zeroshot_classification_templates.txt", spec, "a line a template, such as: a photo of a {c}."
            ),
        }
        labels = _labels(notes, entries, texts["classnames"], spec)
        if blind := [t for t in texts["templates"] if "{c}" not in t]:
            raise BenchmarkError(f"The template {blind[0]!r} of {spec.name} has no {{c}} where the class would go.")
        texts["labels"] = labels
    else:
        captions = [[line.strip() for line in note.splitlines() if line.strip()] for note in notes]
        if bare := [entries[i][3] for i, c in enumerate(captions) if not c]:
            raise BenchmarkError(f"The image {bare[0]} of {spec.name} has no caption ({len(bare)} such images in all).")
        texts["captions"] = captions
    digest.update(repr([texts.get(k) for k in ("classnames", "templates")]).encode())
    print_of = {"name": spec.name, "split": split, "n": len(entries), "sha256": content or digest.hexdigest()}
    return Benchmark(spec, split, Images(entries), print_of, **texts)


def _required(path: Path, spec: BenchmarkSpec, what: str) -> tuple[str, ...]:
    lines = _lines(path) if path.exists() else ()
    if not lines:
        raise BenchmarkError(
            f"The set {spec.name} has no {path.name} in {path.parent}, or an empty one. A set for classification needs "
            f"it: {what}"
        )
    return lines


def _labels(notes: list[str], entries: list, classnames: tuple[str, ...], spec: BenchmarkSpec) -> np.ndarray:
    for note, entry in zip(notes, entries, strict=True):
        if not re.fullmatch(r"\s*\d+\s*", note):
            raise BenchmarkError(
                f"The label of {entry[3]} in {entry[0]} is {note[:40]!r}; a class number was expected."
            )
    labels = np.array([int(n) for n in notes], dtype=np.int64)
    if len(labels) and labels.max() >= len(classnames):
        raise BenchmarkError(
            f"The class list of {spec.name} does not match its labels: classnames.txt names {len(classnames)} "
            f"classes (numbers 0 to {len(classnames) - 1}), but {entries[int(labels.argmax())][3]} has the label "
            f"{labels.max()}."
        )
    if twice := sorted({c for c in classnames if classnames.count(c) > 1}) if len(classnames) < 2000 else []:
        log.warning("%s has several classes of the name %s: they cannot be told apart by text", spec.name, twice[0])
    return labels


def _only_test(spec: BenchmarkSpec, split: str) -> None:
    if split != "test":
        raise BenchmarkError(f"The set {spec.name} has no split {split!r}; it has: test.")


def _open_mmvp(spec: BenchmarkSpec, split: str, folder: Path) -> Benchmark:
    _only_test(spec, split)
    path = folder / "Questions.csv"
    if not path.exists():
        raise BenchmarkError(f"{path} is missing; a set of pairs has it beside the folder 'MLLM_VLM Images'.")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row[:3] for row in csv.reader(file) if any(cell.strip() for cell in row)][1:]
    bad = next((r for r in rows if len(r) < 3 or not r[0].strip().isdigit() or not r[2].strip()), None)
    if bad is not None or len(rows) % 2 or not rows:
        raise BenchmarkError(
            f"{path} should have a heading and then two rows a pair: number of the image, pattern, statement. "
            + (f"This row is not so: {bad}." if bad else f"It has {len(rows)} rows.")
        )
    entries, pairs = [], []
    digest = hashlib.sha256()
    for k, ((a, pattern, first), (b, other, second)) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        if pattern != other:
            raise BenchmarkError(
                f"Images {a} and {b} of {path} should be a pair, but are of {pattern!r} and {other!r}."
            )
        for number in (a, b):
            stem = folder / "MLLM_VLM Images" / pattern.strip() / number.strip()
            image = next((p for e in _IMAGES if (p := stem.with_suffix(f".{e}")).exists()), None)
            if image is None:
                raise BenchmarkError(f"{path} speaks of an image {stem}.jpg, which is not there.")
            entries.append((str(image), 0, image.stat().st_size, number.strip()))
        pairs.append(PairQuestion(pattern.strip(), (2 * k, 2 * k + 1), (first.strip(), second.strip())))
        digest.update(repr((pairs[-1], [e[2] for e in entries[-2:]])).encode())
    content = _manifest(folder).get("content", {}).get(split)
    print_of = {"name": spec.name, "split": split, "n": len(pairs), "sha256": content or digest.hexdigest()}
    return Benchmark(spec, split, Images(entries), print_of, pairs=tuple(pairs))


def _open_pope(spec: BenchmarkSpec, split: str, folder: Path) -> Benchmark:
    _only_test(spec, split)
    questions, numbers, entries = [], {}, []
    digest = hashlib.sha256()
    for way in ("random", "popular", "adversarial"):
        found = sorted(folder.glob(f"*pope_{way}.json"))
        if not found:
            raise BenchmarkError(f"There is no *pope_{way}.json in {folder}. Expected is {_POPE_NOTE}.")
        for k, line in enumerate(_lines(found[0])):
            try:
                record = json.loads(line)
                name, text, label = record["image"], record["text"], record["label"].strip().lower()
                answer = {"yes": True, "no": False}[label]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise BenchmarkError(
                    f"Line {k + 1} of {found[0]} is not a question: JSON with image, text and label (yes or no) was "
                    f"expected ({type(error).__name__}: {error})."
                ) from error
            if name not in numbers:
                path = next(
                    (p for p in (folder / "images" / name, folder / "val2014" / name, folder / name) if p.exists()),
                    None,
                )
                if path is None:
                    raise BenchmarkError(f"{found[0]} asks about {name}, which is not in {folder / 'images'}.")
                numbers[name] = len(entries)
                entries.append((str(path), 0, path.stat().st_size, name))
            questions.append(PopeQuestion(way, numbers[name], text, answer))
            digest.update(repr((questions[-1], entries[numbers[name]][2])).encode())
    content = _manifest(folder).get("content", {}).get(split)
    print_of = {"name": spec.name, "split": split, "n": len(questions), "sha256": content or digest.hexdigest()}
    return Benchmark(spec, split, Images(entries), print_of, questions=tuple(questions))


def _fetch(spec: BenchmarkSpec, split: str) -> Path:
    """Bring what a split needs from the hub into its cache; the folder it lies in there."""
    common = ["*.txt", "*.csv"]
    if spec.task in ("mmvp", "pope"):
        return hub.snapshot(spec.location, spec.revision, "dataset")
    _, files = hub.list_files(spec.location, spec.revision, "dataset")
    there = sorted({f.path.split("/")[0] for f in files if f.path.endswith(".tar")})
    if split not in there and there:
        raise BenchmarkError(
            f"The set {spec.name} has no split {split!r} in the repository {spec.location}; it has: {', '.join(there)}."
        )
    if any(f.path == "Questions.csv" for f in files):
        return hub.snapshot(spec.location, spec.revision, "dataset")
    return hub.snapshot(spec.location, spec.revision, "dataset", [*common, f"{split}/*"])


# ------------------------------------------------------------------------------------------------- writing them once
def ensure(spec: BenchmarkSpec, scale: str | object, *, root: Path | None = None, workers: int | None = None) -> Path:
    """The folder of a generated set, written if it is not there whole. A damaged one is made again, with a word."""
    if spec.source != "generated":
        raise BenchmarkError(f"{spec.name} is a real set: it is fetched, not made.")
    folder = (root or cache_root() / "benchmarks") / getattr(scale, "name", scale) / spec.name
    key = _recipe_key(spec)
    if folder.exists():
        problem = _problem(folder, key)
        if problem is None:
            return folder
        log.warning("The evaluation set %s in %s %s; it is made again.", spec.name, folder, problem)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{spec.name}.", dir=folder.parent))
    try:
        content = _write(spec, partial, workers)
        files = {p.relative_to(partial).as_posix(): _sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = {"name": spec.name, "key": key, "content": content, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.chmod(partial, 0o755)  # a temporary folder is private; this is a result
        _move_in(partial, folder, key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def prepare(scale: str | object, *, root: Path | None = None, workers: int | None = None) -> list[Path]:
    """Write all generated sets of a scale that are not there yet; their folders."""
    specs = [spec for spec in registry(scale) if spec.source == "generated"]
    return [ensure(spec, scale, root=root, workers=workers) for spec in specs]


def _move_in(partial: Path, folder: Path, key: str) -> None:
    """Put a finished folder in its place whole, also if another process does the same at this moment."""
    for _ in range(20):
        try:
            os.rename(partial, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if _problem(folder, key) is None:
            return  # somebody was quicker
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        try:
            os.rename(folder, aside)
        except OSError:
            pass  # somebody else took it away
        shutil.rmtree(aside, ignore_errors=True)
    raise BenchmarkError(f"{folder} cannot be replaced; is another process writing it again and again?")


def _manifest(folder: Path) -> dict:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _problem(folder: Path, key: str) -> str | None:
    """What is wrong with a folder written here before, in words that go on "the set"; None if nothing is."""
    manifest = _manifest(folder)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        return "has no readable manifest"
    if manifest.get("key") != key:
        return "was made by an earlier recipe"
    for name, expected in files.items():
        try:
            if _sha256(folder / name) != expected:
                return f"has a damaged file ({name})"
        except OSError:
            return f"lacks a file ({name})"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recipe_key(spec: BenchmarkSpec) -> str:
    """Changes with the spec, the difficulty, and when the world comes to look or speak differently."""
    told = asdict(spec) | {"paper_name": "", "metric": "", "note": ""}
    digest = hashlib.sha256(json.dumps([_FORMAT, told, asdict(generated.DIFFICULTY[spec.name])]).encode())
    if spec.name in generated.CLASS_SETS:
        digest.update(repr(generated.CLASS_SETS[spec.name]).encode())
    for split in spec.amounts:
        for index in range(4):
            digest.update(_probe(spec, split, index))
    return digest.hexdigest()[:16]


def _probe(spec: BenchmarkSpec, split: str, index: int) -> bytes:
    if spec.task in ("classification", "shift"):
        pixels, label = generated.class_sample(spec.name, split, index, 32)
        return pixels.tobytes() + bytes([label])
    if spec.task == "retrieval":
        pixels, captions = generated.retrieval_sample(spec.name, split, index, 32)
        return pixels.tobytes() + "\n".join(captions).encode()
    if spec.task == "mmvp":
        made = [generated.pair(pattern, index) for pattern in generated.PATTERNS]
        return b"".join(repr(p.statements).encode() + world.render(p.scenes[0], 16).tobytes() for p in made)
    scenes = generated.presence_scenes(index + 2)
    return repr(generated.presence_questions(scenes)).encode() + generated.presence_images(scenes[:1], 32)[0].tobytes()


def _encode(pixels: np.ndarray) -> tuple[str, bytes]:
    """The picture as a file: PNG, which loses nothing, where pictures are small; WebP where they are many pixels."""
    stream = io.BytesIO()
    if pixels.shape[0] <= 96:
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
        return "png", stream.getvalue()
    Image.fromarray(pixels).save(stream, "WEBP", quality=90, method=2)
    return "webp", stream.getvalue()


def _write(spec: BenchmarkSpec, folder: Path, workers: int | None) -> dict[str, str]:
    """Write a set's folder; returns for each split a sha256 over pixels and labels or texts, not over files."""
    if spec.task == "mmvp":
        return {"test": _write_mmvp(spec, folder)}
    if spec.task == "pope":
        return {"test": _write_pope(spec, folder)}
    if spec.task == "retrieval":
        _text(folder / "dataset_type.txt", ["retrieval"])
    else:
        recipe = generated.CLASS_SETS[spec.name]
        _text(folder / "dataset_type.txt", ["classification"])
        _text(folder / "classnames.txt", recipe.classes)
        _text(folder / "zeroshot_classification_templates.txt", recipe.templates)
    jobs = []
    for split, n in spec.amounts.items():
        starts = range(0, n, _SHARD_IMAGES)
        _text(folder / split / "nshards.txt", [str(len(starts))])
        for k, start in enumerate(starts):
            jobs.append((spec, split, start, min(start + _SHARD_IMAGES, n), folder / split / f"{k}.tar"))
    digests = {split: hashlib.sha256() for split in spec.amounts}
    with tqdm(
        total=sum(spec.amounts.values()), desc=f"making {spec.name}", unit="image", disable=None, leave=False
    ) as bar:
        for job, digest in zip(jobs, _run(jobs, spec, workers), strict=True):
            digests[job[1]].update(digest)
            bar.update(job[3] - job[2])
    return {split: digest.hexdigest() for split, digest in digests.items()}


def _run(jobs: list[tuple], spec: BenchmarkSpec, workers: int | None) -> Iterable[bytes]:
    """Write shards, in further processes where that is worth their start (some seconds)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers if workers is not None else cores, len(jobs))
    if workers < 2 or sum(spec.amounts.values()) * spec.image_size**2 < 1e8:
        yield from map(_write_shard, jobs)
        return
    # New interpreters instead of forks: this process may run threads (torch, a notebook) that a fork would break.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(_write_shard, jobs)


def _write_shard(job: tuple[BenchmarkSpec, str, int, int, Path]) -> bytes:
    spec, split, start, stop, path = job
    digest = hashlib.sha256()

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for index in range(start, stop):
            if spec.task == "retrieval":
                pixels, captions = generated.retrieval_sample(spec.name, split, index, spec.image_size)
                extension, note = "txt", "\n".join(captions).encode()
            else:
                pixels, label = generated.class_sample(spec.name, split, index, spec.image_size)
                extension, note = "cls", str(label).encode()
            digest.update(pixels.tobytes() + note)
            kind, content = _encode(pixels)
            yield f"s{index:07d}", {kind: content, extension: note}

    write_shard(path, samples())
    return digest.digest()


def _text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_mmvp(spec: BenchmarkSpec, folder: Path) -> str:
    digest, rows = hashlib.sha256(), []
    for pattern in generated.PATTERNS:
        (folder / "MLLM_VLM Images" / pattern).mkdir(parents=True)
        for index in range(spec.amounts["test"]):
            made = generated.pair(pattern, index)
            for pixels, statement in zip(generated.pair_images(made, spec.image_size), made.statements, strict=True):
                rows.append((len(rows) + 1, pattern, statement))
                digest.update(pixels.tobytes() + statement.encode())
                path = folder / "MLLM_VLM Images" / pattern / f"{len(rows)}.jpg"
                Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)
    with open(folder / "Questions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Question ID", "Type", "Statement"), *rows])
    return digest.hexdigest()


def _write_pope(spec: BenchmarkSpec, folder: Path) -> str:
    digest = hashlib.sha256()
    scenes = generated.presence_scenes(spec.amounts["test"])
    names = []
    (folder / "images").mkdir()
    for i, pixels in enumerate(generated.presence_images(scenes, spec.image_size)):
        kind, content = _encode(pixels)
        names.append(f"world_{i:06d}.{kind}")
        (folder / "images" / names[-1]).write_bytes(content)
        digest.update(pixels.tobytes())
    for way, questions in generated.presence_questions(scenes).items():
        records = [
            {"question_id": k + 1, "image": names[q.image], "text": q.text, "label": "yes" if q.answer else "no"}
            for k, q in enumerate(questions)
        ]
        _text(folder / f"world_pope_{way}.json", map(json.dumps, records))
        digest.update(json.dumps(records).encode())
    return digest.hexdigest()
