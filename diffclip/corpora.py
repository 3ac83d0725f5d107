"""Training corpora: captioned images that can be asked for by number.

A `CorpusSpec` says which corpus; `open_corpus` makes it ready and opens it. Two sources end in the same thing, an
indexed data set on disk (Arrow files that `datasets` maps into memory, see prepare.py):

- "world": scenes of the embedded world, rendered once into webdataset shards and indexed from there as real data
  would be;
- "prepared": real captioned images, brought in beforehand by `diffclip prepare`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from diffclip import prepare, world
from diffclip.paths import cache_root
from diffclip.samples import JPEG_QUALITY
from diffclip.shards import read_shard, write_shard
from diffclip.sources import CorpusError, Row, Source, shard_row

SHARD_SCENES = 2000  # scenes in a generated shard: enough shards for two processes at mini, few files at gpu
PROBES = 48  # scenes looked at to see whether the world is still the same
REAL_NAMES = {"cc3m": "CC3M", "cc12m": "CC12M"}


@dataclass(frozen=True)
class CorpusSpec:
    """Which captioned images to train on; equal specs open equal corpora.

    name: the role in the paper, "cc3m" or "cc12m", or any name of your own.
    source: "world" (generated here) or "prepared" (real, made by `diffclip prepare`).
    pairs: number of images; None, for a prepared corpus, takes all of them, a number takes the first so many.
    image_size: pixels of the shorter edge as stored.
    seed: of the world; two generated corpora that differ in it share no scene.
    wordings, noise: captions of a generated scene, and the share of them that are as sloppy as alt texts on the web.
    path: folder of a prepared corpus; None means data/cache/corpora/<name>.
    """

    name: str
    source: str = "world"
    pairs: int | None = None
    image_size: int = 64
    seed: int = 0
    wordings: int = 3
    noise: float = 0.15
    path: str | None = None

    def __post_init__(self):
        if self.source not in ("world", "prepared"):
            raise CorpusError(f"A corpus comes from 'world' or is 'prepared'; {self.name} says {self.source!r}.")
        if self.source == "world" and self.pairs is None:
            raise CorpusError(f"A generated corpus needs its number of pairs; {self.name} gives none.")
        if self.pairs is not None and self.pairs < 1:
            raise CorpusError(f"A corpus has at least one pair; {self.name} asks for {self.pairs}.")
        if self.wordings < 1 or not 0 <= self.noise <= 1:
            raise CorpusError(
                f"A scene has at least one wording and a share of noisy ones between 0 and 1; {self.name} asks for "
                f"{self.wordings} and {self.noise}."
            )
        if self.image_size < 8:
            raise CorpusError(f"Images are stored at 8 pixels or more; {self.name} asks for {self.image_size}.")
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise CorpusError(f"A corpus name becomes a folder name: letters, digits, - and _, not {self.name!r}.")

    @property
    def display_name(self) -> str:
        """What tables and figures call it. A generated corpus never bears a real one's name alone."""
        real = REAL_NAMES.get(self.name, self.name)
        return f"generated corpus in the place of {real}" if self.source == "world" else real

    def to_dict(self) -> dict:
        return asdict(self)


class Corpus:
    """Captioned images by number.

    len(corpus) images; corpus[i] is {"image": an RGB PIL image, "captions": its wordings, at least one}. It may be
    pickled and read from several processes at once: the files are mapped, not loaded.

    fingerprint: what went into it, for a run's config: name, display_name, source, image_size, pairs, hash (of the
    contents), skipped (samples left out when it was made, by reason).
    """

    def __init__(self, spec: CorpusSpec, folder: Path, manifest: dict):
        self.spec, self.folder = spec, folder
        self.dataset = prepare.load_index(folder, manifest)
        if spec.pairs is not None and spec.pairs != len(self.dataset):
            if spec.pairs > len(self.dataset):
                raise CorpusError(
                    f"{spec.display_name} in {folder} has {len(self.dataset):,} pairs, {spec.pairs:,} were asked for. "
                    f"Ask for fewer, or prepare more shards."
                )
            self.dataset = self.dataset.select(range(spec.pairs))
        self.fingerprint = {
            "name": spec.name,
            "display_name": spec.display_name,
            # Not where it came from on this machine: the same data in another folder is the same.
            "source": {k: v for k, v in manifest["source"].items() if k not in ("folder", "file")},
            "image_size": manifest["image_size"],
            "pairs": len(self.dataset),
            "hash": manifest["hash"],
            "skipped": manifest["skipped"],
        }
        self._rows = self.dataset.with_format("arrow")  # rows as views of the mapped file, decoded below

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self._rows[int(index)]
        content = row.column("image")[0]["bytes"].as_buffer()
        return {"image": Image.open(io.BytesIO(content)).convert("RGB"), "captions": row.column("captions")[0].as_py()}

    def __repr__(self) -> str:
        return f"Corpus({self.spec.display_name}: {len(self):,} pairs at {self.fingerprint['image_size']} px)"

    def captions(self, index: int) -> list[str]:
        """The wordings alone, without decoding the image."""
        return self._rows[int(index)].column("captions")[0].as_py()


def open_corpus(
    spec: CorpusSpec, *, root: Path | None = None, workers: int | None = None, progress: bool | None = None
) -> Corpus:
    """Open a corpus; a generated one is made on first use and made again, with a word, where it was damaged.

    root: folder of the corpora, data/cache/corpora unless told.
    workers: processes that generate; None means one a core.
    progress: show a bar; None means only on a terminal.
    Raises CorpusError, saying what to run, if a prepared corpus is missing or damaged.
    """
    root = cache_root() / "corpora" if root is None else Path(root)
    if spec.source == "world":
        folder = root / f"{spec.name}-{_world_key(spec)}"
        manifest = prepare.index(
            _world_source(spec, folder / "shards"),
            folder,
            image_size=spec.image_size,
            workers=workers,
            progress=progress,
            check_disk=False,
            title=f"generating {spec.name}",
        )
    else:
        folder = Path(spec.path) if spec.path else root / spec.name
        manifest = prepare.read_manifest(folder, spec.name)
        if manifest["image_size"] != spec.image_size:
            raise CorpusError(
                f"The corpus in {folder} was prepared at {manifest['image_size']} pixels, {spec.image_size} were asked "
                f"for. Prepare it again into another folder, or ask for the size it has."
            )
    return Corpus(spec, folder, manifest)


# ------------------------------------------------------------------------------------------------ the generated corpora


@dataclass(frozen=True)
class _WorldShard:
    """Scenes `start` to `stop` of a generated corpus: rendered into a webdataset shard, then read from there."""

    spec: CorpusSpec
    path: Path
    start: int
    stop: int
    identity: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def weight(self) -> float:
        return self.stop - self.start

    def fetch(self) -> None:
        write_shard(self.path, (self._sample(i) for i in range(self.start, self.stop)))

    def release(self) -> None:
        pass  # the shard stays: any other tool can read it

    def rows(self) -> Iterator[Row]:
        for sample in read_shard(self.path):
            yield shard_row(sample)

    def _sample(self, number: int) -> tuple[str, dict[str, bytes]]:
        spec = self.spec
        scene = world.sample_scene(number, seed=spec.seed)
        wordings = world.captions(scene, spec.wordings, noisy=spec.noise)
        image = Image.fromarray(world.render(scene, spec.image_size))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
        key = f"{number:09d}"
        # The attributes as a text of their own: readers that want one type per field (datasets) can take the rest.
        scene_text = json.dumps(scene.attributes())
        record = {"key": key, "caption": wordings[0], "captions": wordings, "scene": scene_text}
        record |= {"status": "success", "width": spec.image_size, "height": spec.image_size}
        return key, {
            "jpg": stream.getvalue(),
            "txt": wordings[0].encode(),
            "json": json.dumps(record).encode(),
        }


def _world_source(spec: CorpusSpec, folder: Path) -> Source:
    key = _world_key(spec)
    parts = [
        _WorldShard(spec, folder / f"{n:05d}.tar", start, min(start + SHARD_SCENES, spec.pairs), key)
        for n, start in enumerate(range(0, spec.pairs, SHARD_SCENES))
    ]
    return Source(parts, {"kind": "world", "key": key}, "scene")


def _world_key(spec: CorpusSpec) -> str:
    """Changes with the spec, and when the world comes to look or speak otherwise: some scenes are made to find out."""
    digest = hashlib.sha256(json.dumps([asdict(spec), SHARD_SCENES, prepare.FORMAT], sort_keys=True).encode())
    for number in range(PROBES):
        digest.update(world.fingerprint(world.sample_scene(number, seed=spec.seed), 32).encode())
    return digest.hexdigest()[:12]
