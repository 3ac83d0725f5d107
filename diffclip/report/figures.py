"""The paper's figures 1, 3, 4 and 5 from tidy results: its own numbers on one side, ours on the other.

A panel that shows the paper's numbers has a tinted background and says so; ours has 95 % intervals. Titles state the
finding, computed from the numbers. (Figure 2, the attention maps, is drawn by diffclip.explain: it needs the models.)
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .. import reported, style
from ..reported import AVERAGE
from .results import (
    BASELINE,
    PAIR,
    Z95,
    Difference,
    Number,
    Results,
    ResultsError,
    finding,
    mmvp_patterns,
    paper,
    tally,
)
from .tables import missing, signed

Key = tuple[str, str, str]  # task, the paper's set, metric

SIX: dict[str, Key] = {  # the six groups of figures 1 and 5
    "Linear probing\n(9 sets)": ("linear_probe", AVERAGE, "accuracy"),
    "Few-shot\n(9 sets)": ("few_shot", AVERAGE, "accuracy"),
    "Image retrieval\nR@5 (3 sets)": ("image_retrieval", AVERAGE, "recall@5"),
    "Text retrieval\nR@5 (3 sets)": ("text_retrieval", AVERAGE, "recall@5"),
    "Zero-shot\n(1 set)": ("zero_shot", "ImageNet", "accuracy"),
    "Zero-shot OOD\n(5 sets)": ("zero_shot_ood", AVERAGE, "accuracy"),
}
ALL_FOUR = tuple(reported.MODELS.values())
MMVP_CHANCE = 25.0  # percent: two independent coin tosses must both come out right


def figure1(results: Results) -> Figure:
    """CLIP and DiffCLIP over the six groups of tasks after training on CC3M (the paper's figure 1)."""
    pretraining = _pretraining(results, "CC3M", "Figure 1", "11_figure1_summary", PAIR, SIX.values())
    return _six_groups(results, "Figure 1", "CC3M", pretraining, PAIR)


def figure3(results: Results) -> Figure:
    """Zero-shot accuracy on the base set and its four shifts (the paper's figure 3), a row of panels per corpus."""
    names = reported.CONTENTS["figure3"]["zero_shot_ood"]
    keys = [("zero_shot_ood", name, "accuracy") for name in names]
    found = results.pretrainings("zero_shot_ood", models=PAIR)
    pretrainings = [p for p in found if p in reported.PRETRAININGS]  # the paper's panel needs numbers too
    if not pretrainings:
        raise ResultsError(missing("Figure 3", "08_figure3_robustness", results.origin))
    origins = _origins(results)
    with style.use():
        fig = style.figure(6.6 * len(origins), 3.3 * len(pretrainings) + 0.9)
        axes = fig.subplots(len(pretrainings), len(origins), squeeze=False)
        for row, pretraining in zip(axes, pretrainings, strict=True):
            for ax, origin in zip(row, origins, strict=True):
                _bars(ax, origin, pretraining, PAIR, dict(zip(_set_labels(origin, names), keys, strict=True)))
                ax.tick_params(axis="x", labelsize=7.5)  # our sets have long names, and whose place they take
                ax.set_ylabel("Zero-shot accuracy, %")
        said = _finding(results, pretrainings, pretrainings, keys[:-1], "comparisons")
        _finish(fig, f"Figure 3. Base set and shifts: {said}", PAIR, results)
    return fig


def figure4(results: Results) -> Figure:
    """Pairs told apart for each visual pattern of MMVP-VLM, as a radar (the paper's figure 4). The paper shows seven
    patterns of 15 pairs; the benchmark has nine, and so have we. 95 % intervals are Wilson's, for the paper's counts too.
    """
    patterns = [("mmvp_vlm", name, "accuracy") for name in mmvp_patterns(results.numbers)]
    pretraining = _pretraining(results, "CC12M", "Figure 4", "09_figure4_fine_grained", PAIR, [("mmvp_vlm", "", "")])
    panels = [(origin, "CC12M" if origin.is_paper else pretraining) for origin in _origins(results)]
    with style.use():
        fig = style.figure(6.6 * len(panels), 6.9)
        axes = fig.subplots(1, len(panels), subplot_kw={"projection": "polar"}, squeeze=False)
        for ax, (origin, corpus) in zip(axes.flat, panels, strict=True):
            _radar(ax, origin, corpus, [key for key in patterns if all(origin.number(corpus, m, *key) for m in PAIR)])
        said = _finding(results, [pretraining], ["CC12M"], patterns, "visual patterns")
        _finish(fig, f"Figure 4. {said}", PAIR, results, lines=True)
    return fig


def figure5(results: Results) -> Figure:
    """All four variants over the six groups of tasks (the paper's figure 5, after training on CC12M)."""
    pretraining = _pretraining(results, "CC12M", "Figure 5", "10_figure5_variants", ALL_FOUR, SIX.values())
    return _six_groups(results, "Figure 5", "CC12M", pretraining, ALL_FOUR)


# --- what the figures share ----------------------------------------------------------------------------------------------


def _origins(results: Results) -> list[Results]:
    return [results] if results.is_paper else [paper(), results]


def _pretraining(
    results: Results, first: str, title: str, notebook: str, models: tuple[str, ...], keys: Iterable[Key]
) -> str:
    """The corpus to show: the paper's if all the models have numbers for it, else the other one."""
    found = results.pretrainings(*{task for task, _, _ in keys}, models=models)
    if not found:
        raise ResultsError(missing(title, notebook, results.origin))
    return first if first in found else found[0]


def _six_groups(results: Results, title: str, theirs: str, ours: str, models: tuple[str, ...]) -> Figure:
    panels = [(origin, theirs if origin.is_paper else ours) for origin in _origins(results)]
    stacked = len(models) > 2  # many bars: one panel above the other
    with style.use():
        fig = style.figure(11, 3.6 * len(panels) + 0.9) if stacked else style.figure(6.6 * len(panels), 4.6)
        axes = fig.subplots(*((len(panels), 1) if stacked else (1, len(panels))), squeeze=False)
        for ax, (origin, pretraining) in zip(axes.flat, panels, strict=True):
            _bars(ax, origin, pretraining, models, SIX)
            ax.set_ylabel("Accuracy or recall, %")
        if stacked:
            said = _finding_of_variants(results, ours, models[1:])
        else:
            said = _finding(results, [ours], [theirs], SIX.values(), "task groups")
        _finish(fig, f"{title}. {said}", models, results)
    return fig


def _finding(results: Results, ours: list[str], theirs: list[str], keys: Iterable[Key], things: str) -> str:
    """Ours counted for the corpora `ours`, the paper's signs for the corpora `theirs`."""
    keys = list(keys)
    here = tally([results.difference(p, "DiffCLIP", *key) for p in ours for key in keys])
    there = tally([paper().difference(p, "DiffCLIP", *key) for p in theirs for key in keys])
    return finding(results, here, there, things)


def _finding_of_variants(results: Results, pretraining: str, models: tuple[str, ...]) -> str:
    found = {m: tally([results.difference(pretraining, m, *key) for key in SIX.values()]) for m in models}
    how = "as reported, by sign" if results.is_paper else "beyond noise"
    counts = ", ".join(f"{model} {counts.better}/{counts.worse}" for model, counts in found.items())
    return f"Better/worse than CLIP {how}, of {len(SIX)} groups: {counts}"


def _set_labels(results: Results, names: tuple[str, ...]) -> list[str]:
    """A set's own name and, below it, the set whose place it takes."""
    labels = []
    for name in names:
        own = results.stand_in("zero_shot_ood", name)
        labels.append(_wrapped(own) if own == name else f"{_wrapped(own)}\n{_wrapped(f'for {name}')}")
    return labels


def _wrapped(text: str, width: int = 15) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _bars(ax: Axes, results: Results, pretraining: str, models: tuple[str, ...], groups: dict[str, Key]) -> None:
    """Grouped bars with their values and 95 % intervals; above each group what the model adds to CLIP, in points."""
    width = 0.84 / len(models)
    tops = []
    for j, key in enumerate(groups.values()):
        top, chance = 0.0, None
        for i, model in enumerate(models):
            number = results.number(pretraining, model, *key)
            if number is None:
                continue
            x = j + (i - (len(models) - 1) / 2) * width
            hatch = style.HATCHES[style.variant_of(model)]
            ax.bar(
                x, number.value, 0.95 * width, color=style.colour(model), hatch=hatch, edgecolor="white", linewidth=0
            )
            half = 0.0 if number.stderr is None else Z95 * number.stderr
            if half:
                reach = [[min(half, number.value)], [min(half, 100 - number.value)]]  # no score is below 0 or above 100
                ax.errorbar(x, number.value, reach, color=style.INK, elinewidth=1.0, capsize=2.0, capthick=1.0)
            difference = results.difference(pretraining, model, *key) if len(models) > 2 else None
            _value(ax, x, number.value + half, number, difference)
            top, chance = max(top, number.value + half), number.chance
        if chance is not None:
            look = {"color": style.INK, "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "path_effects": _halo("white")}
            ax.hlines(chance, j - 0.46, j + 0.46, **look)
        tops.append(top)
        if len(models) == 2 and (difference := results.difference(pretraining, models[1], *key)):
            _above(ax, j, top, difference)
    ax.set_xlim(-0.55, len(groups) - 0.45)
    ax.set_ylim(0, 1.22 * max(tops))
    ax.set_xticks(range(len(groups)), list(groups))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.grid(axis="x", visible=False)
    _dress(ax, results, pretraining)


def _halo(colour) -> list:
    """Keeps a thin thing readable over bars and lines."""
    return [patheffects.withStroke(linewidth=2.5, foreground=colour)]


def _value(ax: Axes, x: float, y: float, number: Number, difference: Difference | None) -> None:
    """The score over its bar; beside two or more variants, with the verdict's mark and colour."""
    mark = f"{style.VERDICT_MARKS[difference.verdict]}\n" if difference and difference.verdict else ""
    colour = style.VERDICT_COLOURS[difference.verdict] if mark else style.INK
    offset = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    ax.annotate(f"{mark}{number.value:.1f}", (x, y), fontsize=7, color=colour, **offset)


def _above(ax: Axes, x: float, y: float, difference: Difference) -> None:
    text, colour = signed(difference.value), style.INK
    if difference.verdict:
        text, colour = f"{text} {style.VERDICT_MARKS[difference.verdict]}", style.VERDICT_COLOURS[difference.verdict]
    offset = {"xytext": (0, 13), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    ax.annotate(text, (x, y), fontsize=8.5, fontweight="bold", color=colour, **offset)


def _dress(ax: Axes, results: Results, pretraining: str, **where) -> None:
    """Says whose numbers a panel shows; the paper's stand on a tint."""
    ax.set_title(f"{results.label} \u00b7 {results.corpus(pretraining)}", **where)
    if results.is_paper:
        ax.set_facecolor(style.PAPER_TINT)


def _radar(ax: Axes, results: Results, pretraining: str, keys: list[Key]) -> None:
    """Percent of pairs outwards, a spoke a pattern; a model's markers stand a little beside the spoke, with intervals."""
    angles = np.arange(len(keys)) * 2 * np.pi / len(keys)
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    for model, aside in zip(PAIR, (-0.05, 0.05), strict=True):
        numbers = [results.number(pretraining, model, *key) for key in keys]
        values = np.array([number.value for number in numbers])
        low, high = np.transpose([wilson(number.value / 100, number.n) for number in numbers]) * 100
        place, variant = angles + aside, style.variant_of(model)
        look = {"color": style.colour(model), "marker": style.MARKERS[variant], "markersize": 5}
        line = "--" if model == BASELINE else "-"
        ax.plot(
            np.append(place, place[0]), np.append(values, values[0]), linestyle=line, linewidth=1.6, zorder=3, **look
        )
        ax.fill(place, values, color=style.colour(model), alpha=0.10, linewidth=0)
        ax.vlines(place, low, high, color=style.colour(model), linewidth=1.8, alpha=0.75, zorder=2)
    circle = np.linspace(0, 2 * np.pi, 181)
    ax.plot(circle, np.full(181, MMVP_CHANCE), color=style.INK, linestyle=(0, (1, 1.5)), linewidth=1.2)
    _dress(ax, results, pretraining, loc="center", pad=62)
    ax.set_ylim(0, 100)
    ax.set_yticks([25, 50, 75, 100], [""] * 4)
    outline = _halo(ax.get_facecolor())
    for level in (50, 75):
        place = {"ha": "center", "va": "center", "fontsize": 7, "color": style.FAINT, "zorder": 4}
        ax.text(angles[1] / 2, level, f"{level} %", path_effects=outline, **place)
    ax.set_xticks(angles, [""] * len(keys))
    ax.spines["polar"].set_color(style.GRID)
    for angle, key in zip(angles, keys, strict=True):
        _spoke(ax, angle, results, pretraining, key)
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "fontsize": 8.5}
    ax.annotate(_average(results, pretraining), (0.5, 1.0), (0, 48), **above)


def _spoke(ax: Axes, angle: float, results: Results, pretraining: str, key: Key) -> None:
    base, other = (results.number(pretraining, model, *key) for model in PAIR)
    counts = [f"{number.value * number.n / 100:.3g}" for number in (base, other)]
    text = f"{counts[0]} \u2192 {counts[1]} of {base.n}"
    difference = results.difference(pretraining, "DiffCLIP", *key)
    colour = style.INK
    if difference and difference.verdict:
        text, colour = f"{text} {style.VERDICT_MARKS[difference.verdict]}", style.VERDICT_COLOURS[difference.verdict]
    x, y = math.sin(angle), math.cos(angle)
    align = {"ha": "center" if abs(x) < 0.2 else "left" if x > 0 else "right"}
    align |= {"va": "bottom" if y > 0.9 else "top" if y < -0.9 else "center"}
    ax.annotate(f"{_wrapped(key[1], 18)}\n", (angle, 108), fontsize=8, annotation_clip=False, **align)
    lines = _wrapped(key[1], 18).count("\n") + 1
    ax.annotate(
        "\n" * lines + text, (angle, 108), fontsize=8, fontweight="bold", color=colour, annotation_clip=False, **align
    )


def _average(results: Results, pretraining: str) -> str:
    base, other = (results.number(pretraining, model, "mmvp_vlm", AVERAGE, "accuracy") for model in PAIR)
    if base is None or other is None:
        return ""
    difference = results.difference(pretraining, "DiffCLIP", "mmvp_vlm", AVERAGE, "accuracy")
    mark = f" {style.VERDICT_MARKS[difference.verdict]}" if difference.verdict else ""
    text = f"Mean of the paper's seven patterns: CLIP {base.value:.1f} %, DiffCLIP {other.value:.1f} %"
    return f"{text} ({signed(difference.value)}{mark})"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of n independent questions."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _finish(fig: Figure, title: str, models: tuple[str, ...], results: Results, lines: bool = False) -> None:
    """The finding above, the legend and how to read the marks below."""
    letters = int(10.4 * fig.get_figwidth())  # bold 12 pt
    title = "\n".join(textwrap.wrap(title, letters, break_on_hyphens=False))
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    handles: list = [_handle(model, lines) for model in models]
    if lines or (results.numbers["chance"].notna().any() and not results.is_paper):
        handles.append(
            Line2D(
                [],
                [],
                color=style.INK,
                linestyle=(0, (1, 1.5)),
                linewidth=1.2,
                label=f"guessing, {MMVP_CHANCE:.0f} %" if lines else "guessing",
            )
        )
    if lines or not results.is_paper:
        handles.append(Line2D([], [], color=style.INK, linewidth=1.2, label="95 % interval"))
    fig.legend(handles=handles, loc="outside lower left", ncols=len(handles), columnspacing=1.4, handletextpad=0.5)
    if not results.is_paper:
        marks = [Line2D([], [], linestyle="", label=f"{mark} {_OF_CLIP[v]}") for v, mark in style.VERDICT_MARKS.items()]
        legend = fig.legend(handles=marks, loc="outside lower right", ncols=len(marks), columnspacing=1, handlelength=0)
        for text, verdict in zip(legend.get_texts(), style.VERDICT_MARKS, strict=True):
            text.set_color(style.VERDICT_COLOURS[verdict])
    fig.draw_without_rendering()  # lays out once, for all the formats it is going to be written in
    fig.set_layout_engine("none")


_OF_CLIP = {"improvement": "better than CLIP", "decline": "worse than CLIP", "within noise": "within noise"}


def _handle(model: str, lines: bool):
    variant, colour = style.variant_of(model), style.colour(model)
    if lines:
        line = "--" if model == BASELINE else "-"
        return Line2D([], [], color=colour, marker=style.MARKERS[variant], linestyle=line, label=model)
    return Patch(facecolor=colour, hatch=style.HATCHES[variant], edgecolor="white", linewidth=0, label=model)
