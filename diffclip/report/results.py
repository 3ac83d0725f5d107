"""Tidy results as the report reads them: one number per model and set, seeds pooled, averages added, verdicts attached.

The paper's numbers and ours take the same form here (`paper`, `read`), so that every table and figure is one function
drawn twice. Nothing in this folder loads a model.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from .. import reported
from ..paths import data_root
from ..reported import AVERAGE
from ..style import label

log = logging.getLogger("diffclip")

REPORTED = "reported"
BASELINE = "CLIP"
PAIR = (BASELINE, "DiffCLIP")
MMVP_SEVEN = tuple(name for name in reported.CONTENTS["figure4"]["mmvp_vlm"] if name != AVERAGE)
MMVP_ALL = "All patterns"  # the benchmark has nine; the paper's radar shows, and averages, seven
NOT_RUN = "(none yet)"
Z95 = 1.959964  # half width of a 95 % interval in standard errors

NUMBER_COLUMNS = ("pretraining", "model", "task", "dataset", "metric", "value")
COMPARISON_COLUMNS = ("pretraining", "model", "task", "dataset", "metric", "difference", "low", "high", "verdict")
VERDICTS = ("improvement", "decline", "within noise")
GENERATED_SCALES = ("smoke", "mini", "gpu")


class ResultsError(ValueError):
    """Results that are missing or cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Number:
    """One score. `value` and `stderr` in percent (points); `n` the questions asked; `chance` the score of guessing.
    What is not known is None: the paper gives no standard errors.
    """

    value: float
    stderr: float | None = None
    n: int | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Difference:
    """A model minus CLIP, in points. Without `verdict` it is a bare difference (the paper's), with no interval."""

    value: float
    low: float | None = None
    high: float | None = None
    verdict: str | None = None
    test: str | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Results:
    """Numbers and comparisons of one origin.

    numbers: one row per (pretraining, model, task, paper_name, metric): `dataset` is the set evaluated, `paper_name` the
      set of the paper that it is or whose place it takes; `value`, `stderr`, `n`, `seeds`, `chance`.
    comparisons: one row per the same key, of a model with CLIP: `difference`, `low`, `high`, `p`, `p_holm`
      (Holm's correction over the comparisons of one model and task), `test`, `verdict`.
    origin: REPORTED for the paper's own numbers, else the name of a scale.
    also: tidy rows of what was evaluated too but belongs in none of the paper's tables: models of other families, released
      checkpoints on generated sets, sets of the user's own.
    """

    numbers: pd.DataFrame
    comparisons: pd.DataFrame
    origin: str
    also: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def is_paper(self) -> bool:
        return self.origin == REPORTED

    @property
    def generated(self) -> bool:
        """Whether the sets evaluated are generated ones that take the place of the paper's."""
        return self.origin in GENERATED_SCALES

    @property
    def label(self) -> str:
        """The words that stand above every panel and section: whose numbers, on what data."""
        if self.is_paper:
            return "Paper: real data, as reported"
        return f"Here: {'generated' if self.generated else 'real'} data, scale {self.origin}"

    def pretrainings(self, *tasks: str, models: tuple[str, ...] = ()) -> list[str]:
        """The corpora with numbers for any of the tasks (and for all the models), CC3M before CC12M. A corpus that plays
        neither must have both CLIP and DiffCLIP to count.
        """
        rows = self.numbers[self.numbers["task"].isin(tasks)] if tasks else self.numbers
        needed = {
            p: set(models) if p in reported.PRETRAININGS else {*models, *PAIR} for p in rows["pretraining"].unique()
        }
        found = [p for p, group in rows.groupby("pretraining") if needed[p] <= set(group["model"])]
        order = {name: i for i, name in enumerate(reported.PRETRAININGS)}
        return sorted(found, key=lambda p: (order.get(p, len(order)), p))

    def corpus(self, pretraining: str) -> str:
        """How a corpus is called in a title: "CC3M" for the real one, "generated corpus for CC3M" otherwise."""
        rows = self.numbers[self.numbers["pretraining"] == pretraining]
        generated = not rows.empty and bool(rows["generated_corpus"].iloc[0])
        return f"generated corpus for {pretraining}" if generated else pretraining

    def stand_in(self, task: str, paper_name: str) -> str:
        """The set evaluated in the place of the paper's, by its own name; the paper's name where it is the real set."""
        if not self.generated or paper_name in (AVERAGE, MMVP_ALL):
            return paper_name
        rows = self.numbers[self.numbers["paper_name"] == paper_name]
        rows = rows[rows["task"] == task] if (rows["task"] == task).any() else rows  # the same set serves several tasks
        return NOT_RUN if rows.empty else str(rows["dataset"].iloc[0])

    @cached_property
    def _number_rows(self) -> dict[tuple, dict]:
        return _by_key(self.numbers)

    @cached_property
    def _comparison_rows(self) -> dict[tuple, dict]:
        return _by_key(self.comparisons)

    def number(self, pretraining: str, model: str, task: str, paper_name: str, metric: str) -> Number | None:
        row = self._number_rows.get((pretraining, model, task, paper_name, metric))
        if row is None:
            return None
        return Number(float(row["value"]), _known(row["stderr"]), _known(row["n"], int), _known(row["chance"]))

    def difference(self, pretraining: str, model: str, task: str, paper_name: str, metric: str) -> Difference | None:
        """`model` minus CLIP. The comparison that was computed on paired answers if there is one, else from the two
        standard errors, else (the paper) the bare difference.
        """
        ours = self.number(pretraining, model, task, paper_name, metric)
        base = self.number(pretraining, BASELINE, task, paper_name, metric)
        if ours is None or base is None or model == BASELINE:
            return None
        row = self._comparison_rows.get((pretraining, model, task, paper_name, metric))
        if row is not None:
            numbers = (float(row[column]) for column in ("difference", "low", "high"))
            return Difference(*numbers, row["verdict"], row["test"], _known(row["p_holm"]))
        difference = ours.value - base.value
        if ours.stderr is None or base.stderr is None:
            return Difference(round(difference, 6))  # 0.3, not 0.2999...: printed numbers
        return _from_stderr(difference, math.hypot(ours.stderr, base.stderr), "two standard errors, unpaired")


@cache
def paper() -> Results:
    """The paper's 210 numbers in the form of `read`: no standard errors, no verdicts. Not to be changed in place."""
    numbers = reported.load()
    # Figures 1 and 5 repeat averages of the tables (reported.checks says so); the first row of each key is kept.
    numbers = numbers.drop_duplicates(["pretraining", "model", "task", "dataset", "metric"]).copy()
    numbers["paper_name"] = numbers["dataset"]
    counts = numbers["metric"] == f"pairs_correct_of_{reported.MMVP_PAIRS}"
    numbers["n"] = np.where(counts, reported.MMVP_PAIRS, np.nan)
    numbers.loc[counts, "value"] *= 100 / reported.MMVP_PAIRS
    numbers.loc[counts, "metric"] = "accuracy"
    mmvp_average = (numbers["task"] == "mmvp_vlm") & (numbers["dataset"] == AVERAGE)
    numbers.loc[mmvp_average, "n"] = 7 * reported.MMVP_PAIRS
    numbers = numbers.assign(stderr=np.nan, chance=np.nan, seeds=1, generated_corpus=False)
    empty = pd.DataFrame(columns=[*COMPARISON_COLUMNS, "paper_name", "p", "p_holm", "test"])
    return Results(numbers.reset_index(drop=True), empty, REPORTED)


def read(scale: str, folder: str | Path | None = None) -> Results:
    """The tidy results of a scale, from `data/runs/<scale>/results` or another `folder`.

    Raises ResultsError, naming the file and what to do, if there are none, if a file lacks a column, if a value is not
    finite or out of range, or if two files disagree about one number.
    """
    folder = Path(folder) if folder is not None else data_root() / "runs" / scale / "results"
    files = sorted(folder.glob("*.csv"))
    tidy = [file for file in files if not file.name.startswith("comparisons")]
    if not tidy:
        raise ResultsError(
            f"There are no results for scale {scale!r}: {folder} holds no CSV file. Tables and figures are made of tidy "
            f"results, which the notebooks write. Run `diffclip reproduce --scale {scale}`, or only the notebooks of the "
            "tables and figures wanted with `--only`, then `diffclip report` again."
        )
    tables = [_read(file, COMPARISON_COLUMNS) for file in files if file.name.startswith("comparisons")]
    numbers = pd.concat([_read(file, NUMBER_COLUMNS) for file in tidy])
    return from_frames(numbers, pd.concat(tables) if tables else None, scale)


def from_frames(numbers: pd.DataFrame, comparisons: pd.DataFrame | None, scale: str) -> Results:
    """Results from tidy rows in memory (columns as in the files); checks and errors as in `read`."""
    if numbers.empty:
        raise ResultsError("There are no results to show: the table of tidy results has no row.")
    rows = _checked(numbers)
    belongs = _belongs(rows, scale)
    if not belongs.any():
        raise ResultsError(
            f"None of the {len(rows)} results is of a model of the paper on a set of scale {scale!r}: there is nothing to hold "
            f"against it. Train and evaluate some with `diffclip reproduce --scale {scale}`."
        )
    named = _named(rows[belongs], scale)
    paired = pd.DataFrame(columns=COMPARISON_COLUMNS) if comparisons is None else comparisons
    tidy = _tidy_numbers(named), _tidy_comparisons(paired, named, scale)
    return Results(*_with_averages(*tidy), scale, rows[~belongs])


@dataclass(frozen=True)
class Tally:
    """How a set of comparisons with CLIP came out. Without verdicts (the paper), `better` and `worse` count signs."""

    better: int
    worse: int
    undecided: int
    judged: bool

    @property
    def total(self) -> int:
        return self.better + self.worse + self.undecided

    def sentence(self, model: str = "DiffCLIP", things: str = "sets") -> str:
        """The finding in words, for a title."""
        if not self.judged:
            rest = [f"{self.worse} lower"] * bool(self.worse) + [f"{self.undecided} equal"] * bool(self.undecided)
            return _listed(f"{model} is above CLIP on {self.better} of {self.total} {things}", rest)
        if self.better == self.worse == 0:
            return f"{model} and CLIP do not differ beyond noise on any of {self.total} {things}"
        rest = [f"{self.undecided} within noise"] * bool(self.undecided) + [f"{self.worse} worse"] * bool(self.worse)
        return _listed(f"{model} beats CLIP on {self.better} of {self.total} {things}", rest)


def tally(differences: list[Difference | None]) -> Tally:
    """Counts the comparisons that exist."""
    found = [d for d in differences if d is not None]
    judged = any(d.verdict for d in found)
    if judged:
        counts = [sum(d.verdict == verdict for d in found) for verdict in VERDICTS]
    else:
        counts = [sum(d.value > 0 for d in found), sum(d.value < 0 for d in found), sum(d.value == 0 for d in found)]
    return Tally(*counts, judged)


def finding(results: Results, ours: Tally, theirs: Tally, things: str) -> str:
    """The sentence of a title: what the comparisons say, and beside it the count of signs in the paper, which judged none."""
    if results.is_paper:
        return f"{ours.sentence(things=things)} (as reported)"
    aside = f" (the paper: above on {theirs.better} of {theirs.total})" if theirs.total else ""
    return ours.sentence(things=things) + aside


def _listed(head: str, rest: list[str]) -> str:
    return f"{head}; {', '.join(rest)}" if rest else head


def _read(file: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:  # pandas' parser and decoding errors are ValueErrors
        raise ResultsError(
            f"{file} is not readable as a CSV file ({error}). Remove it and run the notebook that wrote it again."
        ) from error
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise ResultsError(
            f"{file} lacks the column(s) {', '.join(missing)}. Files of results hold at least {', '.join(needed)}; move "
            "other files elsewhere, or remove this one and run the notebook that wrote it again."
        )
    return frame.assign(file=file.name)


def _checked(raw: pd.DataFrame) -> pd.DataFrame:
    """The rows with every column there, counts as percent, and values that can be scores."""
    frame = raw.copy().reset_index(drop=True)
    for column in ("stderr", "n", "seed", "chance", "paper_name", "provenance"):
        if column not in frame:
            frame[column] = np.nan
    if "file" not in frame:
        frame["file"] = "the results"
    frame["value"] = pd.to_numeric(frame["value"], errors="coerce")
    if not np.isfinite(frame["value"]).all():
        bad = frame[~np.isfinite(frame["value"])].iloc[0]
        raise ResultsError(
            f"{bad.file}: the {bad.metric} of {bad.model} on {bad.dataset} ({bad.task}) is not a number. Evaluate that run "
            "again; if it stays so, its training diverged (see metrics.csv in the run's folder)."
        )
    frame["paper_name"] = frame["paper_name"].fillna(frame["dataset"])
    frame = _counts_to_percent(frame)
    outside = frame[~frame["value"].between(0, 100)]
    if len(outside):
        bad = outside.iloc[0]
        raise ResultsError(
            f"{bad.file}: the {bad.metric} of {bad.model} on {bad.dataset} is {bad.value:g}; scores are in percent, 0 to 100."
        )
    return frame


def _belongs(frame: pd.DataFrame, scale: str) -> pd.Series:
    """Which rows may stand in the paper's tables at a scale: its variants, trained on the scale's kind of corpus (a released
    checkpoint on generated sets is another matter), on the scale's own sets.
    """
    known = frame["model"].isin([*reported.MODELS, *reported.MODELS.values()])
    kind = frame["pretraining"].map(lambda name: _is_generated(str(name), scale) == (scale in GENERATED_SCALES))
    good = known & kind & (frame["pretraining"] != "unknown")
    rivals = frame[good].groupby(["task", "paper_name"])["dataset"].transform("nunique") > 1
    if rivals.any():  # say the real CIFAR-10 beside the set that takes its place
        from ..benchmarks import registry

        own = frame["dataset"].isin([spec.name for spec in registry(scale)])
        good &= own | ~rivals.reindex(frame.index, fill_value=False)
    return good


def _named(rows: pd.DataFrame, scale: str) -> pd.DataFrame:
    """Models and corpora under the paper's names; whether a corpus is a generated one in a column of its own."""
    return rows.assign(
        model=rows["model"].map(label),
        generated_corpus=[_is_generated(str(name), scale) for name in rows["pretraining"]],
        pretraining=rows["pretraining"].map(_role),
    )


def _tidy_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a number, after the seeds are pooled."""
    key = ["pretraining", "model", "task", "dataset", "metric", "seed"]
    clashes = frame.drop_duplicates([*key, "value"]).duplicated(key, keep=False)
    if clashes.any():
        bad = frame.drop_duplicates([*key, "value"])[clashes]
        first = bad.iloc[0]
        raise ResultsError(
            f"The {first.metric} of {first.model} on {first.dataset} ({first.task}, {first.pretraining}) stands with different "
            f"values in {' and '.join(sorted(set(bad['file'])))}. The report shows one model for each variant, corpus and "
            "seed: move the file that does not belong out of the results folder."
        )
    frame = frame.drop_duplicates(key)
    return pd.DataFrame([_pool_seeds(group) for _, group in frame.groupby(key[:-1], sort=False, dropna=False)])


def _pool_seeds(group: pd.DataFrame) -> dict:
    """The mean over training seeds. Its standard error holds both causes: the finite set of questions, which is the same
    for every seed and so does not average out, and the seeds.
    """
    row = group.iloc[0].to_dict()
    seeds = len(group)
    row["value"], row["seeds"] = group["value"].mean(), seeds
    if seeds > 1:
        sampling = (group["stderr"] ** 2).mean()
        row["stderr"] = math.sqrt((0 if np.isnan(sampling) else sampling) + group["value"].var(ddof=1) / seeds)
    columns = ["pretraining", "model", "task", "dataset", "paper_name", "metric", "value", "stderr", "n", "chance"]
    return {column: row[column] for column in [*columns, "seeds", "generated_corpus"]}


def _tidy_comparisons(raw: pd.DataFrame, numbers: pd.DataFrame, scale: str) -> pd.DataFrame:
    """Comparisons with CLIP, one row a key. Those that are not of the `numbers` (as `_named` gives them) are out of date,
    left behind by an earlier evaluation: they are dropped with a word.
    """
    frame = raw.copy().reset_index(drop=True)
    for column, default in (("p", np.nan), ("p_holm", np.nan), ("test", ""), ("seed", np.nan), ("baseline", BASELINE)):
        if column not in frame:
            frame[column] = default
    if "paper_name" not in frame:
        frame["paper_name"] = frame["dataset"]
    frame = frame[_belongs(frame, scale) & frame["baseline"].isin(["clip", BASELINE])].drop(columns="paper_name")
    frame["model"], frame["pretraining"] = frame["model"].map(label), frame["pretraining"].map(_role)
    strange = sorted(set(frame["verdict"]) - set(VERDICTS))
    if strange:
        raise ResultsError(
            f"comparisons.csv holds the verdict {strange[0]!r}; expected {', '.join(VERDICTS)}. Remove the file and run the "
            "notebook that wrote it again."
        )
    current = _current(frame, numbers)
    if not current.all():
        log.warning(
            "%d of %d comparisons are of other numbers than the results hold, from an earlier evaluation; two standard errors "
            "stand in for them. Compare anew: diffclip.evaluation.compare(%r), or the notebook.",
            (~current).sum(),
            len(current),
            scale,
        )
    names = numbers[["task", "dataset", "paper_name"]].drop_duplicates()
    frame = frame[current].merge(names, on=["task", "dataset"])
    key = ["pretraining", "model", "task", "dataset", "paper_name", "metric"]
    pooled = [_pool_comparisons(group) for _, group in frame.drop_duplicates([*key, "seed"]).groupby(key, sort=False)]
    return pd.DataFrame(pooled, columns=[*key, "difference", "low", "high", "p", "p_holm", "test", "verdict"])


def _current(comparisons: pd.DataFrame, numbers: pd.DataFrame) -> pd.Series:
    """Which comparisons are of the very numbers: both values they say they compared are found there."""
    key = ["pretraining", "model", "task", "dataset", "metric"]
    scores: dict[tuple, list[float]] = {}
    for row in numbers.to_dict("records"):
        scores.setdefault(tuple(row[column] for column in key), []).append(row["value"])

    def found(row: dict, model: str, column: str) -> bool:
        known = scores.get(tuple(({**row, "model": model})[name] for name in key), [])
        return any(column not in row or abs(value - row[column]) < 1e-3 for value in known)

    rows = comparisons.to_dict("records")
    current = [found(row, row["model"], "model_value") and found(row, BASELINE, "baseline_value") for row in rows]
    return pd.Series(current, index=comparisons.index, dtype=bool)


def _pool_comparisons(group: pd.DataFrame) -> dict:
    """One comparison stands as computed. Several seeds give the mean difference, with the interval of a single pair of
    runs (the questions are the same) widened by the spread over the seeds.
    """
    row = group.iloc[0].to_dict()
    if len(group) > 1:
        within = ((group["high"] - group["low"]) / (2 * Z95)).pow(2).mean()
        stderr = math.sqrt(within + group["difference"].var(ddof=1) / len(group))
        pooled = _from_stderr(group["difference"].mean(), stderr, f"{row['test']}, {len(group)} seeds")
        row |= {"difference": pooled.value, "low": pooled.low, "high": pooled.high, "verdict": pooled.verdict}
        row |= {
            "test": pooled.test,
            "p_holm": np.nan,
            "p": math.erfc(abs(pooled.value) / stderr / math.sqrt(2)) if stderr else np.nan,
        }
    return row


def _with_averages(numbers: pd.DataFrame, comparisons: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adds the averages that the paper prints, wherever every set they average is there."""
    key = ["pretraining", "model", "task", "metric"]
    averages = [
        _average(group, name, sets)
        for (_, _, task, _), group in numbers.groupby(key, sort=False)
        for name, sets in _averages_of(task, group)
        if _complete(group, name, sets)
    ]
    differences = [
        _average_difference(group, name, sets)
        for (_, _, task, _), group in comparisons.groupby(key, sort=False)
        for name, sets in _averages_of(task, group)
        if _complete(group, name, sets)
    ]
    return (
        pd.concat([numbers, pd.DataFrame(averages)], ignore_index=True) if averages else numbers,
        pd.concat([comparisons, pd.DataFrame(differences)], ignore_index=True) if differences else comparisons,
    )


def _averages_of(task: str, group: pd.DataFrame) -> list[tuple[str, tuple[str, ...]]]:
    """Name and members of every average over the sets of a task; `group` holds what there is of it."""
    if task == "mmvp_vlm":
        return [(AVERAGE, MMVP_SEVEN), (MMVP_ALL, mmvp_patterns(group))]
    for contents in reported.CONTENTS.values():
        sets = tuple(name for name in contents.get(task, ()) if name != AVERAGE)
        if len(sets) > 1 and AVERAGE in contents[task]:
            return [(AVERAGE, sets)]
    return []


def mmvp_patterns(numbers: pd.DataFrame) -> tuple[str, ...]:
    """The patterns in some results: the paper's seven in its order, then the others."""
    found = set(numbers.loc[numbers["task"] == "mmvp_vlm", "paper_name"]) - {AVERAGE, MMVP_ALL}
    return (*(name for name in MMVP_SEVEN if name in found), *sorted(found - set(MMVP_SEVEN)))


def _complete(group: pd.DataFrame, name: str, sets: tuple[str, ...]) -> bool:
    """Whether all the sets are there and their average is not there yet."""
    return set(sets) <= set(group["paper_name"]) and name not in set(group["paper_name"])


def _average(group: pd.DataFrame, name: str, sets: tuple[str, ...]) -> dict:
    """The mean over sets. They hold different questions, so its standard error is the root of the summed squares over
    their number.
    """
    part = group[group["paper_name"].isin(sets)]
    row = part.iloc[0].to_dict() | {"dataset": name, "paper_name": name, "value": part["value"].mean()}
    row |= {"n": part["n"].sum(skipna=False), "chance": part["chance"].mean(skipna=False)}
    return row | {"stderr": math.sqrt((part["stderr"] ** 2).sum(skipna=False)) / len(part)}


def _average_difference(group: pd.DataFrame, name: str, sets: tuple[str, ...]) -> dict:
    part = group[group["paper_name"].isin(sets)]
    stderr = math.sqrt((((part["high"] - part["low"]) / (2 * Z95)) ** 2).sum()) / len(part)
    mean = _from_stderr(part["difference"].mean(), stderr, f"mean of {len(part)} paired differences")
    row = part.iloc[0].to_dict() | {
        "dataset": name,
        "paper_name": name,
        "p": np.nan,
        "p_holm": np.nan,
        "test": mean.test,
    }
    return row | {"difference": mean.value, "low": mean.low, "high": mean.high, "verdict": mean.verdict}


def _from_stderr(difference: float, stderr: float, test: str) -> Difference:
    """A difference with the 95 % interval of a normal estimate, and the verdict that the interval gives."""
    low, high = difference - Z95 * stderr, difference + Z95 * stderr
    verdict = "improvement" if low > 0 else "decline" if high < 0 else "within noise"
    return Difference(difference, low, high, verdict, test)


def _counts_to_percent(frame: pd.DataFrame) -> pd.DataFrame:
    """`pairs_correct_of_N` becomes `accuracy` in percent of n = N pairs."""
    pairs = frame["metric"].str.extract(r"^pairs_correct_of_(\d+)$")[0].astype(float)
    counted = pairs.notna()
    frame.loc[counted, ["value", "stderr"]] = frame.loc[counted, ["value", "stderr"]].mul(100 / pairs[counted], axis=0)
    frame.loc[counted, "n"] = pairs[counted]
    frame.loc[counted, "metric"] = "accuracy"
    return frame


def _role(pretraining: object) -> str:
    """The corpus of the paper that a corpus is, or whose part it plays: "cc3m" and "generated ... CC3M" give "CC3M"."""
    found = re.search(r"cc\W?(3|12)m", str(pretraining), re.IGNORECASE)
    return f"CC{found[1]}M" if found else str(pretraining)


def _is_generated(pretraining: str, scale: str) -> bool:
    """Whether a corpus is a generated one: its name says so, or it is the key of one at a scale that has no other."""
    return "generated" in pretraining or (scale in GENERATED_SCALES and pretraining in ("cc3m", "cc12m"))


def _by_key(frame: pd.DataFrame) -> dict[tuple, dict]:
    key = ["pretraining", "model", "task", "paper_name", "metric"]
    return {tuple(row[column] for column in key): row for row in frame.to_dict("records")}


def _known(value: object, kind: type = float):
    return None if pd.isna(value) else kind(value)
