"""Where things are kept: under ./data, or under the folder that the environment variable DIFFCLIP_DATA names.

A notebook's kernel starts in notebooks/, a terminal usually in the checkout above it; both must find the same data.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    if named := os.environ.get("DIFFCLIP_DATA"):
        return Path(named)
    here, above = Path("data"), Path("..", "data")
    if not here.is_dir() and above.is_dir() and Path("..", "diffclip").is_dir():
        return above
    return here


def cache_root() -> Path:
    """What can be made again: generated corpora and benchmarks, prepared data sets, features."""
    return data_root() / "cache"


def figures_root(scale: str) -> Path:
    """Where a scale's tables, figures and report are written: figures/<scale> of the checkout, or of the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path()) / "figures" / scale
