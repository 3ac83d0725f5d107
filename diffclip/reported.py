"""The paper's own numbers, and ours beside them.

`data/paper/reported.csv` holds every number of the paper's tables 1 to 3 and figures 1, 3, 4 and 5: 210 rows, each either
printed in the paper or measured from a figure's vector data (column `provenance`). Nothing in this module was computed
by this project. `compare` sets our numbers beside them; it never treats a generated set as the set whose place it takes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from .paths import data_root

COLUMNS = ("source", "pretraining", "model", "task", "dataset", "metric", "value", "provenance")
KEY = ("source", "pretraining", "model", "task", "dataset", "metric")
ROWS = 210
AVERAGE = "Avg."

# The paper's names of the variants, in the order of its figure 5. Our variants' names (model.VARIANTS) map onto them.
MODELS = {"clip": "CLIP", "diffclip": "DiffCLIP", "diffclip_dynamic": "DiffCLIP*", "diffclip_vision": "DiffCLIP-vision"}
PRETRAININGS = ("CC3M", "CC12M")

# What each table or figure shows: its tasks in order, and for each the sets in the paper's order.
CLASSIFICATION = ("Caltech-101", "DTD", "Pets", "Flowers", "SUN397", "Aircraft", "CIFAR-10", "CIFAR-100", "Food-101")
RETRIEVAL = ("Flickr30k", "Flickr8k", "MSCOCO")
SHIFTS = ("ImageNet", "ImageNet-V2", "ImageNet-A", "ImageNet-R", "ImageNet-Sketch")
SIX_GROUPS = {
    "linear_probe": (AVERAGE,),
    "few_shot": (AVERAGE,),
    "image_retrieval": (AVERAGE,),
    "text_retrieval": (AVERAGE,),
    "zero_shot": ("ImageNet",),
    "zero_shot_ood": (AVERAGE,),
}
CONTENTS = {
    "table1": {"linear_probe": (*CLASSIFICATION, AVERAGE), "few_shot": (*CLASSIFICATION, AVERAGE)},
    "table2": {
        "image_retrieval": (*RETRIEVAL, AVERAGE),
        "text_retrieval": (*RETRIEVAL, AVERAGE),
        "zero_shot": ("ImageNet",),
    },
    "table3": {"pope": ("random", "popular", "adversarial")},
    "figure1": SIX_GROUPS,
    "figure3": {"zero_shot_ood": (*SHIFTS, AVERAGE)},
    "figure4": {
        "mmvp_vlm": (
            "Orientation and Direction",
            "Presence of Specific Features",
            "State and Condition",
            "Positional and Relational Context",
            "Color and Appearance",
            "Structural Characteristics",
            "Viewpoint and Perspective",
            AVERAGE,
        )
    },
    "figure5": SIX_GROUPS,
}
MMVP_PAIRS = 15  # image pairs of each MMVP-VLM pattern; the radar's values are counts out of these


def csv_path() -> Path:
    """Where `reported.csv` lies: beside the package in a checkout, else under `$DIFFCLIP_DATA`, else under `./data`."""
    roots = [Path(__file__).resolve().parents[1] / "data", data_root(), Path("data")]
    for root in roots:
        if (root / "paper" / "reported.csv").is_file():
            return root / "paper" / "reported.csv"
    raise FileNotFoundError(
        "The paper's numbers, data/paper/reported.csv, were not found. The file is committed in the repository: run from "
        "a checkout, or copy it to paper/reported.csv under the folder named by the environment variable DIFFCLIP_DATA."
    )


def load(path: str | Path | None = None) -> pd.DataFrame:
    """The 210 reported numbers, one a row, validated. Columns `COLUMNS`; `value` is in percent except for the radar's
    counts (`metric` is `pairs_correct_of_15`). Raises ValueError if the file is not the one this code was written for.
    """
    return _load(Path(path) if path is not None else csv_path()).copy()


@cache
def _load(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype={column: str for column in COLUMNS if column != "value"}, keep_default_na=False)
    validate(frame, name=path.name)
    return frame


def validate(frame: pd.DataFrame, name: str = "the frame") -> None:
    """Raises ValueError, listing every fault, unless `frame` holds exactly the paper's numbers: the columns, 210 unique
    rows, the sets of each table and figure, values in range, and averages that agree with the entries they average.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{name} lacks the column(s) {', '.join(missing)}; it must hold {', '.join(COLUMNS)}. Restore "
            "data/paper/reported.csv from the repository (git checkout -- data/paper/reported.csv)."
        )
    faults = []
    if len(frame) != ROWS:
        faults.append(f"it has {len(frame)} rows instead of {ROWS}")
    repeated = frame[frame.duplicated(list(KEY))]
    if len(repeated):
        faults.append(f"{len(repeated)} row(s) repeat a key, the first is {tuple(repeated.iloc[0][list(KEY)])}")
    value = pd.to_numeric(frame["value"], errors="coerce")
    if not value.between(0, 100).all():
        bad = frame[~value.between(0, 100)].iloc[0]
        faults.append(f"{bad.source} {bad.model} {bad.dataset} has the value {bad.value}, outside 0 to 100")
    for column, allowed in {
        "source": CONTENTS,
        "pretraining": PRETRAININGS,
        "model": MODELS.values(),
        "provenance": ("printed", "measured"),
    }.items():
        strange = sorted(set(frame[column]) - set(allowed))
        if strange:
            faults.append(f"{column} holds {', '.join(map(repr, strange))}, expected one of {', '.join(allowed)}")
    for (source, model, task), group in frame.groupby(["source", "model", "task"]):
        strange = set(group["dataset"]) - set(CONTENTS.get(source, {}).get(task, ()))
        if strange:
            faults.append(f"{source} {model} {task} holds unexpected sets: {', '.join(sorted(strange))}")
    if not faults:
        wrong = checks(frame).query("not agrees")
        faults += [f"{row.check}: reported {row.reported}, recomputed {row.recomputed}" for row in wrong.itertuples()]
    if faults:
        raise ValueError(
            f"{name} does not hold the paper's numbers: {'; '.join(faults)}. Restore data/paper/reported.csv from the "
            "repository (git checkout -- data/paper/reported.csv)."
        )


def select(frame: pd.DataFrame | None = None, **wanted: str) -> pd.DataFrame:
    """The rows of `frame` (the paper's numbers by default) whose columns equal the given words, e.g.
    `select(source="table1", pretraining="CC3M")`. Raises ValueError for a column that does not exist.
    """
    frame = load() if frame is None else frame
    unknown = [column for column in wanted if column not in frame.columns]
    if unknown:
        raise ValueError(f"There is no column {', '.join(unknown)}; choose from {', '.join(frame.columns)}.")
    for column, word in wanted.items():
        frame = frame[frame[column] == word]
    return frame


def lookup(source: str, pretraining: str, model: str, task: str, dataset: str, metric: str | None = None) -> float:
    """One reported number. `metric` may be left out where the entry has a single one. Raises KeyError naming the sets
    that do exist there if the entry does not, ValueError if several metrics would match.
    """
    model = MODELS.get(model, model)
    near = select(source=source, pretraining=pretraining, model=model, task=task)
    found = near[near["dataset"] == dataset]
    if metric is not None:
        found = found[found["metric"] == metric]
    if found.empty:
        known = ", ".join(dict.fromkeys(near["dataset"] + " " + near["metric"])) or "nothing under these words"
        raise KeyError(
            f"The paper reports no {metric or 'number'} for {source}, {pretraining}, {model}, {task}, {dataset}; there is: "
            f"{known}."
        )
    if len(found) > 1:
        raise ValueError(f"{dataset} in {source} has several metrics ({', '.join(found['metric'])}); name one.")
    return float(found["value"].iloc[0])


def checks(frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the paper's numbers say about each other, one check a row: `check`, `reported`, `recomputed`, `tolerance`,
    `agrees`. Averages are recomputed from their entries (both are rounded to 0.1, so 0.1 apart is agreement); figures 1
    and 5 must repeat the tables; the MMVP averages must be the counts over 7 x 15 pairs.
    """
    frame = load() if frame is None else frame
    rows: list[tuple[str, float, float, float]] = []

    averaged = frame[frame["source"].isin(["table1", "table2", "figure3"])]
    for key, group in averaged.groupby(["source", "pretraining", "model", "task"], sort=False):
        average = group[group["dataset"] == AVERAGE]["value"]
        if len(average):
            entries = group[group["dataset"] != AVERAGE]["value"]
            rows.append((f"{' '.join(key)}: mean of {len(entries)} sets", average.iloc[0], entries.mean(), 0.1))

    tables = frame[frame["source"].isin(["table1", "table2", "figure3"])]
    repeated = frame[frame["source"].isin(["figure1", "figure5"]) & frame["model"].isin(["CLIP", "DiffCLIP"])]
    columns = ["pretraining", "model", "task", "dataset", "metric"]
    for row in repeated.merge(tables, on=columns, suffixes=("", "_table")).itertuples():
        name = f"{row.source} {row.pretraining} {row.model} {row.task}: as in {row.source_table}"
        rows.append((name, row.value, row.value_table, 0.05))

    radar = frame[frame["source"] == "figure4"]
    for model, group in radar.groupby("model", sort=False):
        counts = group[group["metric"] == f"pairs_correct_of_{MMVP_PAIRS}"]["value"]
        average = group[group["dataset"] == AVERAGE]["value"]
        if len(counts) and len(average):
            share = 100 * counts.sum() / (MMVP_PAIRS * len(counts))
            rows.append((f"figure4 {model}: pairs correct of {MMVP_PAIRS * len(counts)}", average.iloc[0], share, 0.05))

    table = pd.DataFrame(rows, columns=["check", "reported", "recomputed", "tolerance"])
    table["agrees"] = (table["reported"] - table["recomputed"]).abs() <= table["tolerance"] + 1e-9
    return table


def compare(ours, source: str = "table1", comparisons: pd.DataFrame | None = None, scale: str = "mini") -> pd.DataFrame:
    """The paper's numbers of one table or figure, and ours side by side; one row per model (but CLIP) and set.

    ours: tidy rows (the columns of reported.csv, with `stderr`, `paper_name` and so on where known), or what
    `report.results.read` returns. comparisons: rows of comparisons.csv; without them, intervals come from the standard
    errors. `in_place_of` names the paper's set and `dataset` the one evaluated here: at a scale of generated sets `relation` is
    "takes its place" and the numbers answer different questions; only their directions can be held against each other.

    Columns: pretraining, task, metric, in_place_of, dataset, relation, model; reported_clip, reported_diffclip (the value of
    `model`), reported_difference; clip, clip_stderr, diffclip, diffclip_stderr, difference, low, high (95 %), verdict, test;
    direction: "same", "opposite" or "undecided" (ours within noise, or no difference reported). Numbers that we lack are
    NaN. Raises ValueError for an unknown source.
    """
    from .report.results import BASELINE, Results, from_frames, paper  # later on the line than this file

    if source not in CONTENTS:
        raise ValueError(f"The paper has no numbers for {source!r}; choose one of {', '.join(CONTENTS)}.")
    ours = ours if isinstance(ours, Results) else from_frames(ours, comparisons, scale)
    theirs = paper()
    entries = select(source=source).query("model != @BASELINE")
    rows = []
    for entry in entries.itertuples():
        metric = "accuracy" if entry.metric.startswith("pairs_correct") else entry.metric
        key = (entry.pretraining, entry.model, entry.task, entry.dataset, metric)
        base_key = (entry.pretraining, BASELINE, *key[2:])
        reported_difference = theirs.difference(*key).value
        dataset = ours.stand_in(entry.task, entry.dataset)
        base, number, difference = ours.number(*base_key), ours.number(*key), ours.difference(*key)
        rows.append(
            {
                "pretraining": entry.pretraining,
                "task": entry.task,
                "metric": metric,
                "in_place_of": entry.dataset,
                "dataset": dataset if number else None,
                "relation": None if not number else "takes its place" if ours.generated else "same set",
                "model": entry.model,
                "reported_clip": theirs.number(*base_key).value,
                "reported_diffclip": theirs.number(*key).value,
                "reported_difference": reported_difference,
                "clip": base.value if base else None,
                "clip_stderr": base.stderr if base else None,
                "diffclip": number.value if number else None,
                "diffclip_stderr": number.stderr if number else None,
                "difference": difference.value if difference else None,
                "low": difference.low if difference else None,
                "high": difference.high if difference else None,
                "verdict": difference.verdict if difference else None,
                "test": difference.test if difference else None,
                "direction": _direction(reported_difference, difference),
            }
        )
    numeric = ["clip", "clip_stderr", "diffclip", "diffclip_stderr", "difference", "low", "high"]
    return pd.DataFrame(rows).astype(dict.fromkeys(numeric, float))


def _direction(reported_difference: float, ours) -> str | None:
    if ours is None:
        return None
    if ours.verdict not in ("improvement", "decline") or reported_difference == 0:
        return "undecided"
    return "same" if (ours.verdict == "improvement") == (reported_difference > 0) else "opposite"
