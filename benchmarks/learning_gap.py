"""Why DiffCLIP falls behind CLIP at scale mini: one difference between the two at a time, three seeds each.

    python benchmarks/learning_gap.py      # 21 trainings of half a minute; writes benchmarks/results/learning_gap.{csv,md}

A differential head differs from an ordinary one in four ways: it has a second map, which is subtracted; its output is
normalised; it is multiplied by 1 - lambda_init (0.2); and there are half as many heads, twice as wide in their values. The
conditions below change the start of one or two of these (all weights stay trainable) and leave corpus, recipe and everything
else as they are. Runs are kept under data/runs/learning_gap, so that a second call repeats nothing that was finished.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

import diffclip.training
from diffclip.attention import DifferentialAttention
from diffclip.corpora import open_corpus
from diffclip.evaluation import evaluate
from diffclip.evaluation.features import subject
from diffclip.files import write_text
from diffclip.model import CLIP, ModelConfig
from diffclip.paths import data_root
from diffclip.scales import get_scale

RESULTS = Path(__file__).parent / "results"
LAST = 10  # records of metrics.csv over which the loss is averaged, as notebook 04 does


def differential(lambda_init: float | None = None, factor: float | None = None) -> Callable[[CLIP], None]:
    """Start a DiffCLIP with another lambda_init, or with another factor before its output projections.

    The factor is 1 - lambda_init times the gain of the heads' norm, which starts at one and is trained: the gain is set.
    """

    def change(model: CLIP) -> None:
        for attention in (m for m in model.modules() if isinstance(m, DifferentialAttention)):
            if lambda_init is not None:
                attention.lambda_init = lambda_init
            if factor is not None:
                torch.nn.init.constant_(attention.diff_norm.weight, factor / (1 - attention.lambda_init))

    return change


def half_the_heads(size: ModelConfig) -> ModelConfig:
    return replace(
        size,
        vision=replace(size.vision, heads=size.vision.heads // 2),
        text=replace(size.text, heads=size.text.heads // 2),
    )


CONDITIONS: dict[str, tuple[str, Callable[[ModelConfig], ModelConfig], Callable[[CLIP], None]]] = {
    "CLIP": ("clip", lambda size: size, lambda model: None),
    "CLIP with half the heads": ("clip", half_the_heads, lambda model: None),
    "DiffCLIP": ("diffclip", lambda size: size, lambda model: None),
    "DiffCLIP, factor 1": ("diffclip", lambda size: size, differential(factor=1)),
    "DiffCLIP, lambda_init 0.2": ("diffclip", lambda size: size, differential(0.2)),
    "DiffCLIP, lambda_init 0.2, factor 0.2": ("diffclip", lambda size: size, differential(0.2, 0.2)),
    "DiffCLIP, lambda_init 0": ("diffclip", lambda size: size, differential(0.0)),
}

# What can be told apart: (condition, what it is held against).
PAIRS = (
    ("DiffCLIP", "CLIP"),
    ("CLIP with half the heads", "CLIP"),
    ("DiffCLIP", "CLIP with half the heads"),
    ("DiffCLIP, lambda_init 0", "DiffCLIP"),
    ("DiffCLIP, lambda_init 0.2", "DiffCLIP"),
    ("DiffCLIP, factor 1", "DiffCLIP"),
    ("DiffCLIP, lambda_init 0.2, factor 0.2", "DiffCLIP"),
    ("DiffCLIP, lambda_init 0", "CLIP with half the heads"),
)


def differences(table: pd.DataFrame) -> list[str]:
    """Rows of a markdown table: each pair's difference of means, its standard error and Welch's p over seeds."""
    rows = []
    for condition, other in PAIRS:
        cells = [condition, other]
        for measured, digits in (("loss", 3), ("recall@5, %", 1)):
            a, b = (table.loc[table["condition"] == name, measured] for name in (condition, other))
            test = stats.ttest_ind(a, b, equal_var=False)
            error = (a.sem() ** 2 + b.sem() ** 2) ** 0.5
            cells.append(f"{a.mean() - b.mean():+.{digits}f} ± {error:.{digits}f} (p = {test.pvalue:.2g})")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def measure(condition: str, seed: int, folder: Path) -> dict:
    variant, resize, change = CONDITIONS[condition]
    scale = get_scale("mini")
    corpus = open_corpus(scale.corpus("cc3m"))
    name = f"{condition.replace(', ', '-').replace(' ', '_')}-seed{seed}"
    create_model = diffclip.training.create_model

    def create_changed(*args, **kwargs) -> CLIP:
        model = create_model(*args, **kwargs)
        change(model)
        return model

    config = diffclip.training.RunConfig(
        scale.name, "cc3m", variant, seed, resize(scale.model), scale.recipe, corpus.fingerprint
    )
    with mock.patch.object(diffclip.training, "create_model", create_changed):
        run = diffclip.training.train(config, folder / name, corpus, progress=False, trackers=())
    model = run.model()
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    change(model)  # lambda_init is a number, not a weight, so a loaded model has the variant's own
    model.load_state_dict(trained)
    scores = evaluate(
        subject(model, name=name),
        "mini",
        tasks=["zero_shot", "image_retrieval", "text_retrieval"],
        progress=False,
        root=folder / "evaluated",
    )
    return {
        "condition": condition,
        "seed": seed,
        "loss": run.metrics.loss[-LAST:].mean(),
        "recall@5, %": scores[scores.metric == "recall@5"].value.mean(),
        "zero-shot, %": scores[scores.task == "zero_shot"].value.mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    folder = data_root() / "runs" / "learning_gap"
    todo = [(condition, seed) for condition in CONDITIONS for seed in range(seeds)]
    table = pd.DataFrame([measure(*each, folder) for each in tqdm(todo)])
    write_text(RESULTS / "learning_gap.csv", table.round(4).to_csv(index=False))
    lines = [
        "# Why DiffCLIP falls behind CLIP at scale mini",
        "",
        (
            f"Generated corpus in the place of CC3M, recipe of mini, {seeds} seeds: mean ± standard error over seeds. The loss is "
            f"the mean of the last {LAST} records, single batches ten steps apart; recall@5 is the mean of both directions on three sets; zero-shot is accuracy on "
            "world-objects (guessing: 6.25). The factor is what a head's normalised output is multiplied by at the start."
        ),
        "",
        "| | loss | recall@5, % | zero-shot, % |",
        "|---|---:|---:|---:|",
    ]
    for condition, rows in table.groupby("condition", sort=False):
        numbers = rows[["loss", "recall@5, %", "zero-shot, %"]]
        mean, error = numbers.mean(), numbers.sem()
        cells = [f"{m:.{d}f} ± {e:.{d}f}" for m, e, d in zip(mean, error, (3, 1, 1), strict=True)]
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Differences, with Welch's p over seeds; p is of one comparison, not corrected for the eight:",
        "",
        "| | against | loss | recall@5, points |",
        "|---|---|---:|---:|",
        *differences(table),
        "",
        (
            f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"PyTorch {torch.__version__}."
        ),
        "",
    ]
    write_text(RESULTS / "learning_gap.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
