"""Made-up tidy results for the report's tests: drawn from a seeded generator, measured on nothing, written to tmp_path only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from diffclip import reported

NINE = {name: f"made-up-{own}" for name, own in zip(reported.CLASSIFICATION, "abcdefghi", strict=True)}
OTHERS = {
    "Flickr30k": "made-up-stories",
    "Flickr8k": "made-up-tales",
    "MSCOCO": "made-up-scenes",
    "ImageNet": "made-up-things",
    "ImageNet-V2": "made-up-things-resampled",
    "ImageNet-A": "made-up-things-cluttered",
    "ImageNet-R": "made-up-things-renditions",
    "ImageNet-Sketch": "made-up-things-sketches",
}
PATTERNS = (
    *(name for name in reported.CONTENTS["figure4"]["mmvp_vlm"] if name != reported.AVERAGE),
    "Quantity and Count",
    "Texts",
)
MODELS = tuple(reported.MODELS)


CORPORA = {"CC3M": "generated corpus in the place of CC3M", "CC12M": "generated corpus in the place of CC12M"}


def numbers(seed: int = 0, models: tuple[str, ...] = MODELS, scale: str = "mini", chance: bool = True) -> pd.DataFrame:
    """Tidy rows of both corpora for every table and figure, with the columns of evaluation.runner."""
    rng = np.random.default_rng(seed)
    rows = []
    for pretraining, corpus in CORPORA.items():
        for model in models:
            for task, name, own, metric, n, level in _questions():
                percent = float(np.clip(rng.normal(level + 3 * (pretraining == "CC12M"), 3), 1, 99))
                unit = n if metric.startswith("pairs") else 100  # a count of pairs, or percent
                value = float(round(percent * n / 100)) if unit == n else percent
                share = value / unit
                rows.append(
                    {
                        "source": "measured",
                        "pretraining": corpus,
                        "model": model,
                        "task": task,
                        "dataset": own,
                        "metric": metric,
                        "value": value,
                        "provenance": f"made up for a test: {pretraining.lower()}-{model}-seed0",
                        "scale": scale,
                        "seed": 0,
                        "n": n,
                        "stderr": float(unit * np.sqrt(share * (1 - share) / n)),
                        "paper_name": name,
                        "chance": {"mmvp_vlm": 25.0, "few_shot": 20.0}.get(task, 2.0) if chance else np.nan,
                        "note": "",
                    }
                )
    return pd.DataFrame(rows)


def _questions():
    for i, (name, own) in enumerate(NINE.items()):
        yield "linear_probe", name, own, "accuracy", 400, 45 + 4 * i
        yield "few_shot", name, own, "accuracy", 800, 55 + 3 * i
    for name in reported.RETRIEVAL:
        for task in ("image_retrieval", "text_retrieval"):
            for k, level in ((1, 8), (5, 30), (10, 45)):
                yield task, name, OTHERS[name], f"recall@{k}", 500, level
    yield "zero_shot", "ImageNet", OTHERS["ImageNet"], "accuracy", 1000, 25
    for i, name in enumerate(reported.SHIFTS):
        yield "zero_shot_ood", name, OTHERS[name], "accuracy", 500, 25 - 3 * i
    for i, name in enumerate(PATTERNS):
        yield "mmvp_vlm", name, name, "pairs_correct_of_60", 60, 20 + 6 * i


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """Every model with CLIP, in percent, as if paired answers had halved the variance of the difference."""
    key = ["pretraining", "task", "dataset", "metric"]
    base = rows[rows["model"] == "clip"].set_index(key)
    out = []
    for row in rows[rows["model"] != "clip"].itertuples():
        other = base.loc[(row.pretraining, row.task, row.dataset, row.metric)]
        unit = 100 / row.n if row.metric.startswith("pairs") else 1
        difference = unit * (row.value - other["value"])
        stderr = unit * np.hypot(row.stderr, other["stderr"]) / np.sqrt(2)
        low, high = difference - 1.96 * stderr, difference + 1.96 * stderr
        p = math.erfc(abs(difference) / stderr / math.sqrt(2))
        out.append(
            {
                "pretraining": row.pretraining,
                "task": row.task,
                "dataset": row.dataset,
                "metric": "accuracy" if row.task == "mmvp_vlm" else row.metric,
                "paper_name": row.paper_name,
                "seed": 0,
                "baseline": "clip",
                "model": row.model,
                "baseline_value": unit * other["value"],
                "model_value": unit * row.value,
                "difference": difference,
                "low": low,
                "high": high,
                "p": p,
                "p_holm": min(1.0, 9 * p),
                "test": "made up",
                "verdict": "improvement" if low > 0 else "decline" if high < 0 else "within noise",
                "n": row.n,
            }
        )
    return pd.DataFrame(out)


def write(data_root: Path, scale: str = "mini", seed: int = 0, models: tuple[str, ...] = MODELS, **options) -> Path:
    """The files a reproduction leaves under `data_root`/runs/<scale>/results; returns that folder."""
    folder = data_root / "runs" / scale / "results"
    folder.mkdir(parents=True)
    rows = numbers(seed, models, scale, **options)
    for task, group in rows.groupby("task"):
        group.to_csv(folder / f"{task}.csv", index=False)
    comparisons(rows).to_csv(folder / "comparisons.csv", index=False)
    return folder
