"""Pictures of a training corpus and of training runs, for notebooks 03 and 04."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from diffclip import style
from diffclip.corpora import Corpus
from diffclip.images import to_uint8, train_view
from diffclip.model import get_variant
from diffclip.training import Run


@style.use()
def contact_sheet(corpus: Corpus, indices: Sequence[int], columns: int = 6) -> Figure:
    """Pictures of a corpus, each over the first of its captions."""
    rows = -(-len(indices) // columns)
    fig = style.figure(1.75 * columns, 2.3 * rows)
    for place, index in enumerate(indices):
        sample = corpus[index]
        ax = fig.add_subplot(rows, columns, place + 1)
        ax.imshow(sample["image"], interpolation="nearest")
        ax.set_xlabel("\n".join(textwrap.wrap(sample["captions"][0], 27)[:4]), fontsize=6.5)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return fig


@style.use()
def views(image: Image.Image, size: int, crop_scale: tuple[float, float], seed: int, n: int = 6) -> Figure:
    """An image as stored, and n of the random resized crops that training may see of it."""
    rng = np.random.default_rng(seed)
    crops = [to_uint8(train_view(image, size, crop_scale, rng)) for _ in range(n)]
    fig = style.figure(1.6 * (n + 1), 1.9)
    for place, (picture, title) in enumerate([(np.asarray(image), "as stored"), *((c, "") for c in crops)]):
        ax = fig.add_subplot(1, n + 1, place + 1)
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    return fig


def caption_statistics(corpus: Corpus, lengths: Sequence[int], sample: int = 2000) -> tuple[pd.DataFrame, Counter]:
    """(a table of captions, a count of their words) over the first `sample` images; `lengths` are tokens, two ends included.

    Words are lower-case and split at blanks.
    """
    texts = [caption for i in range(min(sample, len(corpus))) for caption in corpus.captions(i)]
    words = Counter(word for text in texts for word in text.lower().split())
    n_words = np.array([len(text.split()) for text in texts])
    table = pd.DataFrame(
        {
            "images": [min(sample, len(corpus))],
            "captions": [len(texts)],
            "different captions": [len(set(texts))],
            "different words": [len(words)],
            "words a caption, median": [float(np.median(n_words))],
            "tokens, median": [float(np.median(lengths))],
            "tokens, longest": [int(np.max(lengths))],
        }
    )
    return table, words


@style.use()
def word_frequencies(words: Counter, lengths: Sequence[int], limit: int) -> Figure:
    """The commonest words, and how long captions are in tokens against the context length `limit`."""
    fig = style.figure(10, 3.4)
    left, right = fig.subplots(1, 2, width_ratios=(3, 2))
    top = words.most_common(30)
    left.bar([w for w, _ in top], [n for _, n in top], color=style.colour("clip"))
    left.tick_params(axis="x", rotation=70, labelsize=8)
    left.set(ylabel="occurrences", title="The commonest words")
    right.hist(lengths, bins=range(max(*lengths, limit) + 3), color=style.colour("clip"))
    right.axvline(limit, color="black", linestyle="--", linewidth=1)
    cut = float(np.mean(np.asarray(lengths) > limit))
    right.set(
        xlabel="tokens, both ends included",
        ylabel="captions",
        title=f"{100 * cut:.1f} % are longer than {limit} tokens",
    )
    return fig


@style.use()
def curves(runs: Sequence[Run], chance: float) -> Figure:
    """Loss, accuracy in batch, logit scale and gradient norm over the samples seen; `chance` is the loss of guessing."""
    fig = style.figure(11, 6.2)
    panels = (
        ("loss", "contrastive loss, nats"),
        ("accuracy", "accuracy in batch"),
        ("logit_scale", "logit scale (a factor)"),
        ("gradient_norm", "gradient norm"),
    )
    axes = fig.subplots(2, 2).flat
    for ax, (column, title) in zip(axes, panels, strict=True):
        for run in runs:
            variant, rows = run.config.variant, run.metrics
            smooth = rows[column].rolling(5, min_periods=1, center=True).mean()
            thousands = rows["samples"] / 1000
            ax.plot(thousands, rows[column], color=style.colour(variant), alpha=0.25, linewidth=0.8)
            dashed = "-" if variant == "clip" else (0, (5, 1.5))  # to tell them apart in grey
            ax.plot(thousands, smooth, color=style.colour(variant), linestyle=dashed, label=style.label(variant))
        ax.set(xlabel="samples seen, thousands", title=title)
    axes = fig.axes
    axes[0].axhline(chance, color="black", linestyle=":", linewidth=1)
    axes[0].annotate("guessing", (axes[0].get_xlim()[1], chance), ha="right", va="bottom", fontsize=8)
    axes[3].set_yscale("log")
    axes[0].legend()
    last = {style.label(r.config.variant): r.metrics["loss"].tail(10).mean() for r in runs}
    fig.suptitle("Loss over the last ten records: " + ", ".join(f"{k} {v:.2f}" for k, v in last.items()))
    return fig


@style.use()
def lambdas(run: Run) -> Figure:
    """lambda of every differential layer over the samples seen, a panel a tower."""
    found = [c for c in run.metrics if c.startswith("lambda.")]
    if not found:
        raise ValueError(f"{run.path.name} has no differential layers, so there is no lambda to draw.")
    towers = [t for t in ("vision", "text") if any(f"lambda.{t}." in c for c in found)]
    fig = style.figure(5.2 * len(towers), 3.3)
    for ax, tower in zip(np.atleast_1d(fig.subplots(1, len(towers), sharey=True)), towers, strict=True):
        columns = [c for c in found if f"lambda.{tower}." in c]
        for i, column in enumerate(columns):
            shade = 0.35 + 0.65 * i / max(1, len(columns) - 1)
            ax.plot(
                run.metrics["samples"] / 1000,
                run.metrics[column],
                color=style.colour(run.config.variant),
                alpha=shade,
                linestyle=("-", "--", "-.", ":")[i % 4],
                label=f"layer {column.rsplit('.', 1)[1]}",
            )
        schedule = getattr(get_variant(run.config.variant), tower)
        for i in {round(schedule(k), 6) for k in range(len(columns))}:
            ax.axhline(i, color="black", linestyle=":", linewidth=0.8)
        ax.set(xlabel="samples seen, thousands", ylabel="λ", title=f"{tower} tower (dotted: λ_init)")
        ax.legend(fontsize=8)
    return fig
