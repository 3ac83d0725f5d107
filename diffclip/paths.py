"""Where things are kept: under ./data, or under the folder that the environment variable DIFFCLIP_DATA names."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    return Path(os.environ.get("DIFFCLIP_DATA") or "data")


def cache_root() -> Path:
    """What can be made again: generated corpora and benchmarks, prepared data sets, features."""
    return data_root() / "cache"
