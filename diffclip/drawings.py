"""Explanatory drawings of the notebooks: the mechanism, the line from images to figures, where a model's parameters sit.

Each function returns a figure in the kit's style and is drawn from what it is given or from the code it explains; curves
and maps of the theory notebook are in theory_figures.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from pandas.io.formats.style import Styler

from diffclip import style
from diffclip.attention import AttentionMaps

# Attention weights: white for none, and for differences white at zero, blue below it, pink above.
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#FFFFFF", "#F3C6D9", "#D6578F", "#7A1F52", "#35092A"])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#0B2E52", "#2F6FA8", "#A9CBE6", "#FFFFFF", "#F3C6D9", "#D6578F", "#7A1F52"]
)
_TINTS = {"clip": "#DCE9F5", "diffclip": "#FBE3EE", "plain": "#F1F3F5"}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes without decoration whose units are inches."""
    fig = style.figure(width, height)
    fig.set_layout_engine("none")  # everything is placed by hand
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def _box(
    ax: Axes, x: float, y: float, text: str, *, w=0.62, h=0.42, tint="plain", edge="#9AA5B1", size=10, **kw
) -> None:
    """A rounded box with its centre at (x, y)."""
    patch = FancyBboxPatch(
        (x - w / 2, y - h / 2),
        w,
        h,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=_TINTS.get(tint, tint),
        edgecolor=edge,
        linewidth=1,
    )
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=style.INK, **kw)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, **kw) -> None:
    options = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "color": "#52606D"} | kw
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, connectionstyle=f"arc3,rad={bend}", **options))


def _tile(
    ax: Axes, x: float, y: float, values: np.ndarray, *, side=0.98, cmap=WEIGHTS, limit: float, label: str
) -> None:
    """A small heat map with its centre at (x, y); `limit` is the value of full colour."""
    low = -limit if cmap is SIGNED else 0
    extent = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
    ax.imshow(values, extent=extent, cmap=cmap, vmin=low, vmax=limit, zorder=2, aspect="auto")
    n = len(values)
    for i in range(n + 1):
        at = side * i / n
        for xs, ys in (((extent[0] + at,) * 2, extent[2:]), (extent[:2], (extent[2] + at,) * 2)):
            ax.plot(xs, ys, color="white" if 0 < i < n else "#9AA5B1", linewidth=0.6 if 0 < i < n else 0.9, zorder=3)
    ax.text(x, y + side / 2 + 0.07, label, ha="center", va="bottom", fontsize=11)


def _example_maps(lam: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A1, A2 and A1 - lam A2 of six tokens: a diagonal signal in map 1, the same two noisy columns in both."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.tensor([0.0, 1.6, 0.2, -0.2, 1.1, 0.1])
    shared = columns + 0.35 * torch.randn(6, 6, generator=generator)
    own = 0.15 * torch.randn(6, 6, generator=generator)
    a1 = (shared + 2.0 * torch.eye(6)).softmax(-1)
    a2 = (shared + own).softmax(-1)
    return a1.numpy(), a2.numpy(), (a1 - lam * a2).numpy()


@style.use()
def mechanism(lam: float = 0.6) -> Figure:
    """Attention above, differential attention below, one head each: from the tokens X to the head's output.

    The small maps are computed (six tokens, a diagonal signal, noise that both maps share), not sketched.
    """
    a1, a2, difference = _example_maps(lam)
    fig, ax = _canvas(10.4, 5.3)
    limit = 0.6
    accent = "#B83A78"
    ax.add_patch(_panel(0.12, 3.5, 10.16, 1.68, "#F4F8FC"))
    ax.add_patch(_panel(0.12, 0.12, 10.16, 3.26, "#FEF6FA"))
    ax.text(0.3, 4.95, "Attention", fontsize=11, weight="bold", color=style.COLOURS["clip"], va="center")
    ax.text(0.3, 3.14, "Differential attention", fontsize=11, weight="bold", color=accent, va="center")

    # Ordinary attention: one map.
    y = 4.2
    _box(ax, 0.62, y, "$X$")
    _box(ax, 1.78, y, "$Q\\;\\;K$", tint="clip", w=0.8)
    _box(ax, 3.3, y, "softmax", w=0.9, size=9)
    _tile(ax, 4.75, y, a1, limit=limit, label="$A$")
    _box(ax, 8.32, y, "$\\times\\; V$", tint="clip", w=0.6)
    _box(ax, 9.62, y, "output", w=0.86, size=9)
    for at in (y, 1.59):  # the second is the lower panel's middle line
        ax.text(8.32, at - 0.27, "$V=XW_V$", ha="center", va="top", fontsize=8.5, color=style.FAINT)
    for start, end in ((0.93, 1.38), (2.18, 2.85), (3.75, 4.26), (5.24, 8.02), (8.62, 9.19)):
        _arrow(ax, (start, y), (end, y))
    ax.text(2.5, y + 0.08, r"$\frac{QK^\top}{\sqrt{d}}$", ha="center", va="bottom", fontsize=11)

    # Differential attention: two maps, one subtraction.
    upper, lower = 2.36, 0.82
    middle = (upper + lower) / 2
    _box(ax, 0.62, middle, "$X$")
    for row, n, values in ((upper, 1, a1), (lower, 2, a2)):
        _box(ax, 1.78, row, f"$Q_{n}\\;\\;K_{n}$", tint="diffclip", w=0.8)
        _box(ax, 3.3, row, "softmax", w=0.9, size=9)
        _tile(ax, 4.75, row, values, limit=limit, label=f"$A_{n}$")
        _arrow(ax, (0.93, middle + (0.08 if n == 1 else -0.08)), (1.38, row))
        _arrow(ax, (2.18, row), (2.85, row))
        _arrow(ax, (3.75, row), (4.26, row))
        _arrow(ax, (5.24, row), (5.72, middle + (0.21 if n == 1 else -0.21)))
    ax.text(2.5, upper + 0.08, r"$\frac{Q_1K_1^\top}{\sqrt{d}}$", ha="center", va="bottom", fontsize=11)
    ax.text(2.5, lower + 0.08, r"$\frac{Q_2K_2^\top}{\sqrt{d}}$", ha="center", va="bottom", fontsize=11)
    ax.add_patch(Circle((5.8, middle), 0.18, facecolor="white", edgecolor=accent, linewidth=1.4, zorder=4))
    ax.text(5.8, middle - 0.01, "−", ha="center", va="center", fontsize=14, color=accent, zorder=5)
    ax.text(5.6, (middle + lower) / 2 - 0.12, r"$\times\,\lambda$", ha="left", va="center", fontsize=12, color=accent)
    _tile(ax, 6.85, middle, difference, cmap=SIGNED, limit=limit, label=r"$A_1-\lambda A_2$")
    _arrow(ax, (5.98, middle), (6.36, middle))
    _arrow(ax, (7.34, middle), (8.02, middle))
    _box(ax, 8.32, middle, "$\\times\\; V$", tint="diffclip", w=0.6)
    _arrow(ax, (8.32, middle + 0.21), (8.32, upper - 0.21))
    _box(ax, 8.32, upper, "RMSNorm", w=0.96, size=9)
    _arrow(ax, (8.8, upper), (9.13, upper))
    _box(ax, 9.62, upper, r"$\times\,(1-\lambda_{\mathrm{init}})$", tint="diffclip", w=0.98, size=9)
    _arrow(ax, (9.62, upper - 0.21), (9.62, middle + 0.21))
    _box(ax, 9.62, middle, "output", w=0.86, size=9)
    ax.text(
        8.85, lower - 0.1, f"here λ = {lam}: blue cells are negative,\na row adds up to 1 − λ = {1 - lam:.1f}",
        ha="center", va="center", fontsize=8.5, color=style.FAINT,
    )  # fmt: skip
    return fig


def _panel(x: float, y: float, w: float, h: float, colour: str) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", facecolor=colour, edgecolor="none", zorder=0
    )


_STATIONS = (
    "captioned\nimages", "two\ntowers", "contrastive\nloss", "checkpoint",
    "frozen\nfeatures", "scores", "tidy\nresults", "tables and\nfigures",
)  # fmt: skip
_NOTEBOOKS = {0: "03", 1: "01 02", 2.5: "04 10", 4.5: "05 06 07 08 09", 6.5: "11"}  # place on the line -> who is there


@style.use()
def line() -> Figure:
    """The kit as one line from captioned images to tables and figures, with the notebooks at their stations."""
    fig, ax = _canvas(10.4, 2.25)
    y, left, right = 1.3, 0.75, 9.65
    at = np.linspace(left, right, len(_STATIONS))
    colours = LinearSegmentedColormap.from_list(
        "line", [style.COLOURS["clip"], style.COLOURS["diffclip_dynamic"], "#D6578F"]
    )
    for i in range(len(at) - 1):
        ax.plot(at[i : i + 2], (y, y), color=colours(i / (len(at) - 2)), linewidth=7, solid_capstyle="butt", zorder=1)
    for i, (x, name) in enumerate(zip(at, _STATIONS, strict=True)):
        ring = colours(i / (len(at) - 1))
        ax.add_patch(Circle((x, y), 0.135, facecolor="white", edgecolor=ring, linewidth=3, zorder=3))
        ax.text(x, y + 0.26, name, ha="center", va="bottom", fontsize=9.5, linespacing=1.1)
    for place, numbers in _NOTEBOOKS.items():
        numbers = numbers.split()
        for j, number in enumerate(numbers):
            x = at[0] + place * (at[1] - at[0]) + 0.4 * (j - (len(numbers) - 1) / 2)
            _box(ax, x, y - 0.48, number, w=0.34, h=0.28, size=8.5, edge="none")
    ax.text(
        0.25, 0.25, "Numbers are notebooks; this is 00. Notebook 10 trains and scores the two other variants, so it rides most of the line again.",
        fontsize=8.5, color=style.FAINT, va="center",
    )  # fmt: skip
    return fig


@style.use()
def verdicts() -> Figure:
    """Three made-up differences with their intervals, and the word that each would be given."""
    fig = style.figure(6.4, 1.75)
    ax = fig.subplots()
    for row, (word, difference, half) in enumerate(
        (("decline", -2.6, 1.3), ("within noise", 0.8, 1.6), ("improvement", 2.4, 1.1))
    ):
        colour = style.VERDICT_COLOURS[word]
        ax.errorbar(difference, row, xerr=half, fmt="o", color=colour, capsize=4, markersize=6, linewidth=1.6)
        ax.text(4.3, row, f"{style.VERDICT_MARKS[word]} {word}", color=colour, va="center", fontsize=10)
    ax.axvline(0, color=style.INK, linewidth=1)
    ax.set(xlim=(-4.5, 4.2), ylim=(-0.6, 2.6), yticks=[], xlabel="DiffCLIP − CLIP, percentage points (invented values)")
    ax.spines["left"].set_visible(False)
    ax.set_title("A verdict depends on whether the 95 % interval holds zero")
    return fig


@style.use()
def budget(parts: Mapping[str, int], extras: Mapping[str, int]) -> Figure:
    """Where a model's parameters sit, to scale, and the differential extras under a magnifying glass.

    parts: part -> parameters, from anatomy.parts. extras: what the last of them consists of -> parameters.
    """
    total, added = sum(parts.values()), sum(extras.values())
    fig = style.figure(10, 3.6)
    top, bottom = fig.subplots(2, 1)
    blues = ("#1F4E79", "#3F7FBF", "#8DB6DD", "#C6DCEF", "#E4EEF7")
    pinks = ("#7A1F52", "#C25588", "#E6A3C3", "#F3CFE0", "#FAE9F1")
    used: dict[str, int] = {}
    start = 0.0
    for name, n in sorted(parts.items(), key=lambda item: (item[0].split(":")[0] != "vision", -item[1])):
        tower, _, part = name.partition(": ")
        palette = blues if tower == "vision" else pinks
        rank = used[tower] = used.get(tower, -1) + 1
        shade = palette[min(rank, 4)]
        top.barh(0, n / 1e6, left=start, color=shade, edgecolor="white", linewidth=0.8)
        if n > 0.05 * total:
            dark = rank < 2
            words = f"{part}\n{n / 1e6:.1f} M"
            top.text(
                start + n / 2e6, 0, words, ha="center", va="center", fontsize=8.5, color="white" if dark else style.INK
            )
        start += n / 1e6
    vision = sum(n for name, n in parts.items() if name.startswith("vision")) / 1e6
    top.set(xlim=(0, total / 1e6), yticks=[], xlabel="million parameters", title=f"All {_spaced(total)} parameters\n")
    top.text(vision / 2, 0.52, "vision tower", ha="center", fontsize=8.5, color="#1F4E79")
    top.text((vision + total / 1e6) / 2, 0.52, "text tower", ha="center", fontsize=8.5, color="#7A1F52")
    start = 0
    for (name, n), shade in zip(extras.items(), ("#1F4E79", "#8DB6DD", "#7A1F52", "#E6A3C3"), strict=False):
        bottom.barh(0, n, left=start, color=shade, edgecolor="white", linewidth=0.8)
        ink = "white" if shade in ("#1F4E79", "#7A1F52") else style.INK
        bottom.text(start + n / 2, 0, f"{name}\n{_spaced(n)}", ha="center", va="center", fontsize=8.5, color=ink)
        start += n
    magnified = f"The {_spaced(added)} that differential attention adds, enlarged {_spaced(round(total / added))} times"
    bottom.set(xlim=(0, added), yticks=[], xlabel="parameters", title=magnified)
    for ax in (top, bottom):
        ax.grid(False)
        ax.spines["left"].set_visible(False)
    return fig


def table(frame: pd.DataFrame, precision: int = 3) -> Styler:
    """A data frame for reading in a notebook: words to the left, numbers to the right with their thousands apart and no more
    decimals than their column needs, `precision` at most, no row numbers. The same frame gives the same HTML."""
    frame = frame.reset_index(drop=True)  # rows cut from a larger frame may share a number, which Styler refuses
    words = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    shown = frame.style.hide(axis="index").format(thousands="\u2009", na_rep="–")
    for column in frame.select_dtypes("floating"):
        rounded = frame[column].dropna().round(precision)
        decimals = next(k for k in range(precision + 1) if (rounded.round(k) == rounded).all())
        shown = shown.format(subset=[column], precision=decimals, thousands="\u2009", na_rep="–")
    shown = shown.set_properties(subset=words, **{"text-align": "left"})
    shown = shown.set_table_styles({column: [{"selector": "", "props": "text-align: left"}] for column in words})
    # The name under which its CSS finds this table, and no other of the same notebook.
    return shown.set_uuid(hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8])


def _spaced(n: int) -> str:
    """149629185 -> "149 629 185"."""
    return f"{n:,}".replace(",", " ")


@style.use()
def layer_maps(image: np.ndarray, maps: Mapping[int, AttentionMaps], row: int = 0, head: int = 0) -> Figure:
    """An image and, layer by layer, how its class token attends to the patches: A1, A2 and their weighted difference.

    image: uint8 [H, W, 3], the batch's image number `row`. maps: layer -> AttentionMaps of a differential vision tower.
    Every map has a scale of its own, in multiples of 1 / tokens, the weight of looking everywhere alike.
    """
    fig = style.figure(1.9 * (len(maps) + 1), 5.9)
    axes = fig.subplots(3, len(maps) + 1, squeeze=False)
    for ax in axes[:, 0]:
        ax.set_axis_off()
    axes[1, 0].imshow(image)
    axes[1, 0].set_title("the image")
    for column, (layer, found) in zip(axes.T[1:], maps.items(), strict=True):
        names = ("A1", "A2", f"A1 − {float(found.lam):.2f} A2")
        for ax, name, weights in zip(column, names, (found.a1, found.a2, found.difference), strict=True):
            tokens = weights.shape[-1]
            grid = math.isqrt(tokens - 1)
            patches = (
                tokens * weights[row, head, 0, 1:].detach().unflatten(0, (grid, grid)).numpy()
            )  # query: class token
            limit = float(np.abs(patches).max())
            signed = found.difference is weights
            ax.imshow(patches, cmap=SIGNED if signed else WEIGHTS, vmin=-limit if signed else 0, vmax=limit)
            ax.set_title(f"layer {layer}: {name}\n{patches.min():.2f} to {patches.max():.2f}", fontsize=8.5)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return fig
