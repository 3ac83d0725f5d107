"""Made-up tidy results for the report's tests: drawn from a seeded generator, measured on nothing, written to tmp_path only."""

from __future__ import annotations

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


def numbers(seed: int = 0, models: tuple[str, ...] = MODELS, scale: str = "mini") -> pd.DataFrame:
    """Tidy rows of both corpora for every table and figure."""
    rng = np.random.default_rng(seed)
    rows = []
    for pretraining in ("cc3m", "cc12m"):
        for model in models:
            for task, name, own, metric, n, level in _questions():
                value = float(np.clip(rng.normal(level + 3 * (pretraining == "cc12m"), 3), 1, 99))
                if task == "mmvp_vlm":
                    value = 100 * round(value * n / 100) / n
                stderr = float(100 * np.sqrt(value * (100 - value) / 1e4 / n))
                rows.append(
                    {
                        "source": "here",
                        "pretraining": pretraining,
                        "model": model,
                        "task": task,
                        "dataset": own,
                        "metric": metric,
                        "value": value,
                        "provenance": "made up for a test",
                        "scale": scale,
                        "seed": 0,
                        "n": n,
                        "stderr": stderr,
                        "paper_name": name,
                    }
                )
    return pd.DataFrame(rows)


def _questions():
    for i, (name, own) in enumerate(NINE.items()):
        yield "linear_probe", name, own, "accuracy", 400, 45 + 4 * i
        yield "few_shot", name, own, "accuracy", 5000, 55 + 3 * i
    for name in reported.RETRIEVAL:
        for task in ("image_retrieval", "text_retrieval"):
            for k, level in ((1, 8), (5, 30), (10, 45)):
                yield task, name, OTHERS[name], f"recall@{k}", 500, level
    yield "zero_shot", "ImageNet", OTHERS["ImageNet"], "accuracy", 1000, 25
    for i, name in enumerate(reported.SHIFTS):
        yield "zero_shot_ood", name, OTHERS[name], "accuracy", 500, 25 - 3 * i
    for i, name in enumerate(PATTERNS):
        yield "mmvp_vlm", name, name, "accuracy", 60, 20 + 6 * i


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """Every model with CLIP, as if paired answers had halved the variance of the difference."""
    key = ["pretraining", "task", "dataset", "metric"]
    base = rows[rows["model"] == "clip"].set_index(key)
    out = []
    for row in rows[rows["model"] != "clip"].itertuples():
        other = base.loc[(row.pretraining, row.task, row.dataset, row.metric)]
        difference, half = row.value - other["value"], 1.96 * np.hypot(row.stderr, other["stderr"]) / np.sqrt(2)
        low, high = difference - half, difference + half
        verdict = "improvement" if low > 0 else "decline" if high < 0 else "within noise"
        out.append(
            {
                "pretraining": row.pretraining,
                "task": row.task,
                "dataset": row.dataset,
                "metric": row.metric,
                "baseline": "clip",
                "model": row.model,
                "difference": difference,
                "low": low,
                "high": high,
                "p": 0.5,
                "test": "made up",
                "verdict": verdict,
            }
        )
    return pd.DataFrame(out)


def write(data_root: Path, scale: str = "mini", seed: int = 0, models: tuple[str, ...] = MODELS) -> Path:
    """The files a reproduction leaves under `data_root`/runs/<scale>/results."""
    folder = data_root / "runs" / scale / "results"
    folder.mkdir(parents=True)
    rows = numbers(seed, models, scale)
    for task, group in rows.groupby("task"):
        group.to_csv(folder / f"{task}.csv", index=False)
    comparisons(rows).to_csv(folder / "comparisons.csv", index=False)
    return folder
