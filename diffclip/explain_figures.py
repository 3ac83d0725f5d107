"""Figure 2 and its companions: relevance maps over pictures, their scores, and attention on background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from diffclip import localisation, style
from diffclip.explain import upsample


@style.use()
def plot_relevance(
    images: np.ndarray, texts: Sequence[Sequence[str]], maps: Mapping[str, np.ndarray], title: str = ""
) -> Figure:
    """Figure 2's form: a row an image; for each of its queries, where each model looks.

    images: uint8 [N, S, S, 3]; texts: Q queries for each image; maps: label ("CLIP", "DiffCLIP") -> [N, Q, grid, grid].
    Colour runs from nothing to the map's own maximum.
    """
    images, maps = np.asarray(images), {label: np.asarray(m) for label, m in maps.items()}
    queries = len(texts[0])
    for label, found in maps.items():
        if found.shape[:2] != (len(images), queries) or len(texts) != len(images):
            raise ValueError(
                f"{len(images)} images with {queries} queries each need maps of shape [{len(images)}, {queries}, grid, "
                f"grid] and as many lists of queries; the maps of {label} have shape {list(found.shape)}, and there are "
                f"{len(texts)} lists."
            )
    # Columns: the picture, then for each query a narrow gap and a panel a model; in inches, panels being square.
    panel, gap, line, head = 1.5, 0.18, 0.3, 0.75
    widths = [1, *([gap / panel] + [1] * len(maps)) * queries]
    width, height = panel * sum(widths), head + len(images) * (panel + line)
    fig, axes = plt.subplots(
        len(images),
        len(widths),
        figsize=(width, height),
        squeeze=False,
        gridspec_kw={
            "width_ratios": widths, "wspace": 0.03, "hspace": line / panel,
            "left": 0.005, "right": 0.995, "bottom": 0.005, "top": 1 - (head + line) / height,
        },
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for i, row in enumerate(axes):
        row[0].imshow(images[i])
        for q in range(queries):
            first = 2 + q * (len(maps) + 1)
            row[first].text(0, 1.04, f"“{texts[i][q]}”", transform=row[first].transAxes, fontsize=8)
            for ax, (label, found) in zip(row[first:], maps.items(), strict=False):
                ax.imshow(overlay(images[i], found[i, q]))
                if i == 0:
                    ax.text(0.5, 1.2, label, transform=ax.transAxes, ha="center", weight="bold")
    fig.suptitle(title or "Relevance of image patches to a query", x=0.005, y=0.99, ha="left", va="top")
    plt.close(fig)  # or a notebook shows it twice: as pyplot's and as the cell's value
    return fig


def overlay(image: np.ndarray, relevance_map: np.ndarray) -> np.ndarray:
    """The picture, greyed and dimmed, under its relevance map in colour: uint8 [S, S, 3], [grid, grid] -> float [S, S, 3]."""
    heat = upsample(torch.as_tensor(relevance_map, dtype=torch.float64)[None], image.shape[:2])[0].numpy()
    heat = heat / heat.max() if heat.max() > 0 else heat
    grey = np.repeat(image.mean(axis=-1, keepdims=True) / 255, 3, axis=-1)
    alpha = (0.25 + 0.6 * heat)[..., None]
    return (1 - alpha) * grey + alpha * plt.get_cmap("inferno")(heat)[..., :3]


_SOURCES = {"asked": "its text", "other": "the other\nobject's text", "absent": "an absent\nobject's text"}
_METRICS = {
    "share": "share of relevance on the object (%)",
    "pointing": "maximum on the object (%)",
    "auc": "AUC, object against the rest (%)",
}


@style.use()
def plot_scores(scores: pd.DataFrame, baselines: pd.DataFrame) -> Figure:
    """`localisation.score_maps` of some models (one treatment of negative entries), concatenated, and `score_baselines`:
    a panel a metric, the mean over scenes with its 95 % interval for each model and text, baselines as lines."""
    summary, known = localisation.summarise(scores), localisation.summarise(baselines)
    models = list(scores["model"].unique())
    fig, axes = plt.subplots(1, len(_METRICS), figsize=(11, 3.6), layout="constrained")
    for ax, (metric, title) in zip(axes, _METRICS.items(), strict=True):
        for m, model in enumerate(models):
            rows = summary[(summary["model"] == model) & (summary["metric"] == metric)].set_index("source")
            mean, low, high = (100 * rows.loc[list(_SOURCES), c].to_numpy() for c in ("mean", "low", "high"))
            ax.errorbar(
                np.arange(3) + 0.16 * (m - (len(models) - 1) / 2),
                mean,
                yerr=(mean - low, high - mean),
                fmt=style.MARKERS[model],
                color=style.colour(model),
                markeredgecolor=style.INK,
                markeredgewidth=0.6,
                ecolor=style.INK,
                elinewidth=1,
                capsize=3,
                label=style.label(model),
            )
        chance = 50 if metric == "auc" else 100 * scores["area"].mean()
        centre = 100 * known[(known["source"] == "centre") & (known["metric"] == metric)]["mean"].item()
        for value, name, dash in ((chance, "chance", ":"), (centre, "centre", "--")):
            ax.axhline(value, color=style.FAINT, linewidth=1, linestyle=dash, label=name, zorder=0)
        ax.set_xticks(range(3), list(_SOURCES.values()))
        ax.set_xlim(-0.5, 2.5)
        ax.set_title(title)
        ax.grid(axis="x", visible=False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    fig.supxlabel("the text that the map is for", fontsize=9)
    fig.suptitle(_score_finding(scores), x=0.01, ha="left")
    plt.close(fig)  # or a notebook shows it twice: as pyplot's and as the cell's value
    return fig


def _score_finding(scores: pd.DataFrame) -> str:
    """What the figure shows, in words, from the numbers: does the text move the map, model by model?"""
    found = []
    for model in scores["model"].unique():
        part = scores[scores["model"] == model]
        gain = localisation.by_scene(part, "asked", "auc") - localisation.by_scene(part, "absent", "auc")
        half = 1.96 * gain.sem()
        sign = "helps" if gain.mean() > half else "hurts" if gain.mean() < -half else "makes no clear difference"
        found.append(f"{style.label(model)}: the right text {sign} ({100 * gain.mean():+.1f} ± {100 * half:.1f} AUC)")
    return "\n".join(found)


@style.use()
def plot_noise(noise: pd.DataFrame) -> Figure:
    """`localisation.score_noise` of some models, concatenated: share of class-token attention on background by layer, a
    line a model and part of the map with its 95 % interval, the background's share of the area dashed."""
    dashes = {"positive": "-", "absolute": "--", "first": "-.", "second": ":"}
    names = {"positive": "A1 − λA2, what is added", "absolute": "A1 − λA2, absolute", "first": "A1", "second": "A2"}
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for (model, part), rows in noise.groupby(["model", "part"], sort=False):
        layers = rows.groupby("layer")["noise"]
        mean, half = 100 * layers.mean(), 196 * layers.sem()
        label = style.label(model) + (f": {names[part]}" if (noise["model"] == model).sum() > len(rows) else "")
        ax.plot(
            mean.index,
            mean,
            dashes[part],
            color=style.colour(model),
            marker=style.MARKERS[model],
            markersize=4,
            label=label,
        )
        ax.fill_between(mean.index, mean - half, mean + half, color=style.colour(model), alpha=0.2, linewidth=0)
    ax.axhline(
        100 * noise["area"].mean(), color=style.FAINT, linestyle=(0, (1, 1)), label="background's share of the area"
    )
    ax.set(xlabel="layer", ylabel="class-token attention on background (%)", xticks=sorted(noise["layer"].unique()))
    fig.legend(loc="outside right center", fontsize=8)
    fig.suptitle(_noise_finding(noise), x=0.01, ha="left")
    plt.close(fig)  # or a notebook shows it twice: as pyplot's and as the cell's value
    return fig


def _noise_finding(noise: pd.DataFrame) -> str:
    """The mean over layers of each model's `positive` part with its 95 % interval, in words."""
    found = []
    for model, rows in noise[noise["part"] == "positive"].groupby("model", sort=False):
        scenes = rows.groupby("scene")["noise"].mean()
        found.append(f"{style.label(model)} {100 * scenes.mean():.1f} ± {196 * scenes.sem():.1f} %")
    return f"Attention on background, mean over layers: {', '.join(found)}"
