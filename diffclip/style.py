"""One look for every figure of the kit, and one way to write it to disk.

Colours follow the paper (CLIP blue, DiffCLIP pink, DiffCLIP* purple, DiffCLIP-vision gold). They differ in lightness too
and carry hatches and markers, so that a figure survives a black-and-white printer. Files are written whole or not at
all, and without time stamps: the same numbers give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .files import written_whole
from .reported import MODELS

# CIE lightness, from dark to light: purple 36, blue 52, pink 69, gold 83.
COLOURS = {"clip": "#3F7FBF", "diffclip": "#EC83B0", "diffclip_dynamic": "#6B46A3", "diffclip_vision": "#F4C95D"}
HATCHES = {"clip": "", "diffclip": "///", "diffclip_dynamic": "...", "diffclip_vision": "\\\\\\"}
MARKERS = {"clip": "o", "diffclip": "s", "diffclip_dynamic": "^", "diffclip_vision": "D"}

INK = "#1F2933"
FAINT = "#6B7280"
GRID = "#E3E7EC"
PAPER_TINT = "#F6F4EE"  # background of a panel that shows the paper's numbers, never ours
VERDICT_COLOURS = {"improvement": "#1B7837", "decline": "#B2182B", "within noise": FAINT}
VERDICT_MARKS = {"improvement": "▲", "decline": "▼", "within noise": "≈"}

DPI = 160
PALETTE_STEP, PALETTE_SHARE = 12, 0.002  # a palette is used if fewer than 0.2 % of the pixels move by over 12 of 255

_RC = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same on every machine
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9AA5B1",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
    "svg.hashsalt": "diffclip",
    "pdf.fonttype": 42,
}


def variant_of(model: str) -> str:
    """The variant's name for either spelling: "DiffCLIP*" and "diffclip_dynamic" both give "diffclip_dynamic".
    Raises ValueError for any other word.
    """
    for variant, name in MODELS.items():
        if model in (variant, name):
            return variant
    raise ValueError(
        f"{model!r} is no variant of this kit; expected {', '.join(MODELS)} or the paper's {', '.join(MODELS.values())}."
    )


def label(model: str) -> str:
    """The paper's name of a variant, for legends: "diffclip_dynamic" gives "DiffCLIP*"."""
    return MODELS[variant_of(model)]


def colour(model: str) -> str:
    """The variant's colour as "#RRGGBB"."""
    return COLOURS[variant_of(model)]


def apply() -> None:
    """Makes the kit's style the style of this process: the first line of a notebook that draws."""
    mpl.rcParams.update(sns.axes_style("whitegrid"))
    mpl.rcParams.update(_RC)


@contextlib.contextmanager
def use() -> Iterator[None]:
    """The kit's style inside a `with` block only."""
    with mpl.rc_context():
        apply()
        yield
        interactive = mpl.is_interactive()
    # The first pyplot figure loads the backend, and a notebook's then turns on the mode that shows figures. Were that
    # undone with the rest, only the first figure of a notebook would be seen.
    mpl.interactive(interactive)


class KitFigure(Figure):
    """A figure in the kit's style that shows itself once as the last value of a notebook cell, and needs no pyplot."""

    def _repr_png_(self) -> bytes:
        return render(self, "png", dpi=110)


def figure(width: float, height: float) -> KitFigure:
    """An empty figure, size in inches, laid out so that titles, legends and panels make room for each other. Call it, and
    draw, inside `use()`; save it with `save`.
    """
    fig = KitFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, stem: str | Path, formats: Sequence[str] = ("png", "pdf"), dpi: int = DPI) -> list[Path]:
    """Writes `fig` to `<stem>.<format>` for each format and returns the paths. The same figure gives the same bytes, and
    a reader never meets half a file.
    """
    stem = Path(stem)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
    for path, kind in zip(paths, formats, strict=True):
        content = render(fig, kind, dpi)
        with written_whole(path) as temporary:
            temporary.write_bytes(content)
    return paths


def render(fig: Figure, kind: str, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a png, pdf or svg file, trimmed to its content and without time stamp."""
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}}
    if kind not in metadata:
        raise ValueError(f"A figure is written as {', '.join(metadata)}, not {kind!r}.")
    buffer = io.BytesIO()
    with use():  # some settings (hatches, fonts in a pdf) are read only now
        fig.savefig(buffer, format=kind, dpi=dpi, metadata=metadata[kind], bbox_inches="tight", pad_inches=0.12)
    return _smallest(buffer.getvalue()) if kind == "png" else buffer.getvalue()


def _smallest(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours where nobody could tell (a drawing, about a third of the size), else
    as it was: a photograph or a heat map would show bands.
    """
    full = Image.open(io.BytesIO(png)).convert("RGB")
    few = full.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(full, np.int16) - np.asarray(few.convert("RGB"), np.int16)).max(axis=2)
    out = io.BytesIO()
    (few if (off > PALETTE_STEP).mean() < PALETTE_SHARE else full).save(out, format="PNG", optimize=True)
    return out.getvalue()
