"""Small pictures and shards for the tests of the data path."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffclip.shards import write_shard


def picture(number: int, width: int = 60, height: int = 40) -> Image.Image:
    """A picture of smooth colours, another for every number."""
    corners = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def sample(number: int, caption: str | None = None) -> tuple[str, dict[str, bytes]]:
    """A sample as img2dataset writes it: jpg, txt, json."""
    caption = f"picture number {number}" if caption is None else caption
    record = {"caption": caption, "key": f"{number:09d}", "status": "success", "width": 60, "height": 40}
    files = {"jpg": encode(picture(number)), "txt": caption.encode(), "json": json.dumps(record).encode()}
    return f"{number:09d}", files


def write_shards(folder: Path, shards: int, samples: int) -> list[Path]:
    """Shards 00000.tar, ... with so many good samples each, numbered through."""
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard:05d}.tar")
        write_shard(paths[-1], (sample(shard * samples + i) for i in range(samples)))
    return paths
