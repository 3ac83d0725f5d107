"""A first look at a corpus without preparing it: samples as they come from the shards, on disk or over the network.

Nothing is written and the first picture is there after seconds, but it is no way to train (see WARNING): that is what
`diffclip prepare` is for.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from PIL import Image

from diffclip.samples import IMAGE_EXTENSIONS, BadSample, choose_captions
from diffclip.sources import HUB_SOURCES, CorpusError, HubShard, Shard, open_source

log = logging.getLogger("diffclip")

WARNING = (
    "Streaming is for a first look. It promises neither a global shuffle (only samples that stand close together "
    "change places) nor the same batches after a stop (the shuffle buffer is filled anew), it cannot say how many "
    "pairs there are, and a damaged shard ends early, unnoticed or with an error. Train on a prepared corpus "
    "(diffclip prepare)."
)


class Stream:
    """The samples of a source in passing: {"image": RGB PIL image as it is stored, "captions": list of strings, "key"}.

    source: a name in sources.HUB_SOURCES, a repository on the hub (owner/name), or a folder of webdataset shards.
    shuffle_buffer: shuffle among so many samples (0: not at all), seeded by `seed`.
    skipped counts, by reason, the samples that were left out so far.
    Raises CorpusError or hub.HubError.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        pattern: str | None = None,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ):
        self.skipped: Counter[str] = Counter()
        found = open_source(HUB_SOURCES.get(str(source), source), out=Path(), revision=revision, pattern=pattern)
        self.shards = [_address(part) for part in found.parts]
        with _explained():
            self._rows = datasets.load_dataset(
                "webdataset", data_files={"train": self.shards}, split="train", streaming=True
            )
        for column, feature in self._rows.features.items():
            if isinstance(feature, datasets.Image):  # decoded here, where a broken one can be left out
                self._rows = self._rows.cast_column(column, datasets.Image(decode=False))
        if shuffle_buffer:
            self._rows = self._rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        log.warning(WARNING)

    def __iter__(self) -> Iterator[dict]:
        rows = iter(self._rows)
        while True:
            with _explained():
                row = next(rows, None)
            if row is None:
                return
            try:
                yield _sample(row)
            except BadSample as bad:
                self.skipped[bad.reason] += 1


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise CorpusError(
            f"A shard breaks off ({error}), and with it the stream. `diffclip prepare` keeps what is good in it and "
            f"goes on with the next."
        ) from error
    except pa.ArrowException as error:
        raise CorpusError(
            f"The json records of these shards do not all have the same fields and types ({error}), which streaming "
            f"cannot take. `diffclip prepare` can: it reads nothing there but the captions."
        ) from error


def _address(part) -> str:
    if isinstance(part, HubShard):
        return f"hf://datasets/{part.repo}@{part.revision}/{part.file}"
    if isinstance(part, Shard):
        return str(part.path)
    raise CorpusError("A table of image paths is not streamed: its images are at hand already. Prepare it instead.")


def _sample(row: dict) -> dict:
    stored = next((row[e] for e in IMAGE_EXTENSIONS if row.get(e)), None)
    if stored is None:
        raise BadSample("no image")
    captions = choose_captions(row.get("json"), row.get("txt"))
    try:
        image = Image.open(io.BytesIO(stored["bytes"])).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
        raise BadSample("broken image") from error
    return {"image": image, "captions": list(captions), "key": row["__key__"]}
