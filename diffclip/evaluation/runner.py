"""From a model and a scale's evaluation sets to tidy results, one number a row, and from those to comparisons.

Each (task, set) is finished by writing its outcomes, item by item, to `results/items/<subject>/`; the subject's table
`results/<subject>.csv` is made of those files. So work that was interrupted repeats nothing that was finished, and two
models can be compared on the very questions they answered without either being loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffclip import benchmarks, training
from diffclip.files import write_text, written_whole
from diffclip.scales import Scale, get_scale

from . import few_shot, linear_probe, mmvp, retrieval, statistics, zero_shot
from .checks import EvaluationError, check_class_list, check_top_k
from .features import Features, Subject, subject
from .statistics import Outcomes, accuracy_outcomes, outcomes

log = logging.getLogger("diffclip")

COLUMNS = (
    "source", "pretraining", "model", "task", "dataset", "metric", "value", "provenance",
    "scale", "seed", "n", "stderr", "paper_name", "chance", "note",
)  # fmt: skip
TASKS = ("zero_shot", "zero_shot_ood", "linear_probe", "few_shot", "retrieval", "mmvp_vlm")
SETS_OF = {  # task -> task of the evaluation sets it runs on
    "zero_shot": "shift",
    "zero_shot_ood": "shift",
    "linear_probe": "classification",
    "few_shot": "classification",
    "retrieval": "retrieval",
    "mmvp_vlm": "mmvp",
}
RECALLS = (1, 5, 10)
_VERSION = 2  # of the protocols; a change evaluates anew


@dataclass(frozen=True)
class Score:
    """One number and what stands behind it. value: in the metric's unit, percent but for counts of pairs."""

    task: str
    dataset: str
    metric: str
    value: float
    stderr: float
    n: int
    paper_name: str
    chance: float
    note: str
    items: Outcomes  # in percent


def evaluate(
    source: Subject | training.Run | str | Path,
    scale: str | Scale = "mini",
    *,
    tasks: Sequence[str] | None = None,
    sets: Sequence[str] | None = None,
    progress: bool = True,
    root: str | Path | None = None,
) -> pd.DataFrame:
    """Evaluate one model on a scale's sets and return its tidy rows (columns COLUMNS), those found and those new.

    source: a Subject, a run, or whatever `features.subject` takes. tasks: of TASKS, default all. sets: names of
    evaluation sets (or of the paper's sets whose place they take, or folders, or hub ids); default all of the scale.
    root: instead of data/runs/<scale>. Values are in percent; stderr in the same unit; n the questions; chance what
    guessing scores. Raises ValueError for an unknown task or set, and EvaluationError before any feature is extracted
    where a set cannot be used.
    """
    scale = get_scale(scale) if isinstance(scale, str) else scale
    chosen = _choose(tasks)
    who = source if isinstance(source, Subject) else subject(source)
    root = Path(root) if root is not None else scale.runs_root
    folder = _items_folder(root, who.name)
    features = Features(who, root / "features", progress=progress)
    for spec, todo in _plan(scale, chosen, sets):
        # A generated set is made and verified at every load, so its content decides whether a number still holds. A
        # real one goes by its name and revision: what was finished is not fetched again.
        splits = _open(spec, scale, todo) if spec.source == "generated" else {}
        missing = [task for task in todo if not _finished(folder, task, spec, who, scale, splits)]
        if not missing:
            continue
        splits = splits or _open(
            spec, scale, missing
        )  # what is wrong with a set comes out before features are extracted
        for task in missing:
            scores = list(_RUN[task](features, spec, splits["test"], splits.get("train"), scale))
            _write_scores(folder, task, spec, who, scale, splits, scores)
    return write_table(root, who, scale)


def write_table(root: str | Path, who: Subject, scale: Scale) -> pd.DataFrame:
    """(Re)write results/<subject>.csv from the finished items; returns it.

    Items of other weights, or of generated sets that the scale no longer has, are left out.
    """
    root, rows = Path(root), []
    generated = {spec.name for spec in benchmarks.registry(scale)}
    for path, content in _contents(_items_folder(root, who.name)):
        if content["key"] != who.key or (content["source"] == "generated" and content["set"] not in generated):
            continue
        if _outcomes_file(path, content) is None:
            continue
        rows += [
            {
                "source": "measured",
                "pretraining": who.pretraining,
                "model": who.model,
                "provenance": who.name,
                "scale": scale.name,
                "seed": who.seed,
                **{k: v for k, v in score.items() if k in COLUMNS},
            }
            for score in content["scores"]
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_text(root / "results" / f"{who.name}.csv", table.to_csv(index=False))
    return table


def compare(scale: str | Scale = "mini", *, baseline: str = "clip", root: str | Path | None = None) -> pd.DataFrame:
    """Compare every evaluated model with the baseline of the same pretraining and seed, on the same questions.

    Writes results/comparisons.csv and returns it: pretraining, task, dataset, metric, paper_name, seed, baseline,
    model, baseline_value, model_value, difference, low, high, p, p_holm, test, verdict, n. Differences are in percent
    points. p_holm is Holm's correction over all the comparisons of one model and task.
    """
    scale = get_scale(scale) if isinstance(scale, str) else scale
    root = Path(root) if root is not None else scale.runs_root
    results = root / "results"
    tables = [pd.read_csv(path) for path in sorted(results.glob("*.csv")) if not path.name.startswith("comparisons")]
    if not tables:
        raise EvaluationError(
            f"There is nothing to compare in {results}: evaluate some models first (`diffclip evaluate`)."
        )
    rows = pd.concat(tables)
    out = []
    for (pretraining, seed), group in rows.groupby(["pretraining", "seed"], sort=True):
        bases = group[group["model"] == baseline]["provenance"].unique()
        if len(bases) != 1:
            continue  # nobody to compare with, or more than one: the caller's own comparison
        for name in group[group["model"] != baseline]["provenance"].unique():
            out += list(_compare_two(results, pretraining, seed, group, bases[0], name, scale))
    table = pd.DataFrame(out, columns=_COMPARISON_COLUMNS)
    if len(table):
        table["p_holm"] = table.groupby(["pretraining", "model", "task", "seed"])["p"].transform(statistics.holm)
    write_text(results / "comparisons.csv", table.to_csv(index=False))
    return table


_COMPARISON_COLUMNS = (
    "pretraining", "task", "dataset", "metric", "paper_name", "seed", "baseline", "model", "baseline_value",
    "model_value", "difference", "low", "high", "p", "p_holm", "test", "verdict", "n",
)  # fmt: skip


def items(root: str | Path, name: str, task: str, dataset: str, metric: str) -> Outcomes | None:
    """The outcomes behind one number of one subject, in percent, or None if they are not there. root:
    data/runs/<scale>."""
    return _answers(Path(root), name).get((task, dataset, metric), (None, None))[0]


def _answers(root: Path, name: str) -> dict[tuple[str, str, str], tuple[Outcomes, str]]:
    """(task, dataset, metric) -> the outcomes of a subject and the fingerprint of the questions they answer."""
    found = {}
    for path, content in _contents(_items_folder(root, name)):
        if (file := _outcomes_file(path, content)) is None:
            continue
        with np.load(file) as arrays:
            for i, score in enumerate(content["scores"]):
                outcome = Outcomes(*(arrays[f"{part}{i}"] for part in _PARTS))
                found[score["task"], score["dataset"], score["metric"]] = outcome, content["questions"]
    return found


_PARTS = ("outcome", "weight", "cluster", "stratum")


def _compare_two(
    results: Path, pretraining: str, seed: int, group: pd.DataFrame, base: str, name: str, scale: Scale
) -> Iterator[dict]:
    ours, theirs = _answers(results.parent, name), _answers(results.parent, base)
    for row in group[group["provenance"] == name].itertuples():
        key = (row.task, row.dataset, row.metric)
        if key not in ours or key not in theirs:
            continue
        (b, questions), (a, other_questions) = ours[key], theirs[key]
        if questions != other_questions:
            log.warning(
                "%s and %s answered different versions of %s (%s); they are not compared. Evaluate both again.",
                name, base, row.dataset, row.task,
            )  # fmt: skip
            continue
        found = statistics.compare(a, b, resamples=scale.bootstrap)
        yield {
            "pretraining": pretraining,
            "task": row.task,
            "dataset": row.dataset,
            "metric": "accuracy" if row.task == "mmvp_vlm" else row.metric,
            "paper_name": row.paper_name,
            "seed": seed,
            "baseline": group[group["provenance"] == base]["model"].iloc[0],
            "model": row.model,
            "baseline_value": found.baseline,
            "model_value": found.model,
            "p_holm": np.nan,
            **{k: v for k, v in asdict(found).items() if k in _COMPARISON_COLUMNS and k not in ("baseline", "model")},
        }


# ------------------------------------------------------------------------------------------------------ what to run
def _choose(tasks: Sequence[str] | None) -> tuple[str, ...]:
    if tasks is None:
        return TASKS
    # The two directions of retrieval are one evaluation.
    wanted = ["retrieval" if t in retrieval.DIRECTIONS else t for t in tasks]
    unknown = [t for t in wanted if t not in TASKS]
    if unknown:
        raise ValueError(f"Unknown evaluation task {unknown[0]!r}; choose from {', '.join(TASKS)}.")
    return tuple(dict.fromkeys(wanted))


def _plan(
    scale: Scale, tasks: Iterable[str], sets: Sequence[str] | None
) -> Iterator[tuple[benchmarks.BenchmarkSpec, list[str]]]:
    """(set, its tasks), each set once, so that its images are embedded once."""
    if sets is None:
        specs = benchmarks.registry(scale)
    else:
        specs = [benchmarks.resolve(name, scale) for name in sets]
    for spec in specs:
        todo = [t for t in tasks if SETS_OF[t] == spec.task]
        if spec.paper_name != "ImageNet":  # table 2's zero-shot number is ImageNet's alone
            todo = [t for t in todo if t != "zero_shot"]
        if todo:
            yield spec, todo
        elif sets is not None:
            log.warning("%s is a %s set; none of the tasks %s runs on it.", spec.name, spec.task, ", ".join(tasks))


def _open(spec: benchmarks.BenchmarkSpec, scale: Scale, tasks: Sequence[str]) -> dict[str, benchmarks.Benchmark]:
    """The splits that the tasks need, checked as far as can be without features."""
    splits = {"test": benchmarks.load(spec, scale, "test")}
    test = splits["test"]
    if spec.task in ("classification", "shift"):
        check_class_list(test.classnames, test.templates, test.labels, spec.name)
    if spec.task == "retrieval":
        check_top_k(RECALLS, len(test), spec.name)
    if {"linear_probe", "few_shot"} & set(tasks):
        train = splits["train"] = benchmarks.load(spec, scale, "train")
        check_class_list(train.classnames, train.templates, train.labels, f"{spec.name} (train)")
        if "few_shot" in tasks:  # drawing an episode checks that every class has enough images
            few_shot.sample_episodes(train.labels, test.labels, episodes=1, skip_short=spec.source != "generated")
    return splits


# ------------------------------------------------------------------------------------------------- protocols on sets
def _zero_shot(features: Features, spec, test, train, scale: Scale, task: str = "zero_shot") -> Iterator[Score]:
    result = zero_shot.score(
        zero_shot.logits(features.images(test), features.classes(test)), torch.as_tensor(test.labels), ks=(1,)
    )
    yield _score(task, spec, "accuracy", accuracy_outcomes(result.correct.numpy()), test.chance)


def _zero_shot_ood(*arguments) -> Iterator[Score]:
    return _zero_shot(*arguments, task="zero_shot_ood")


def _linear_probe(features: Features, spec, test, train, scale: Scale) -> Iterator[Score]:
    per_class = spec.metric == "mean_per_class_accuracy"
    result = linear_probe.linear_probe(
        features.images(train).to(features.device),  # a GPU, if there is one, fits much faster
        torch.as_tensor(train.labels),
        features.images(test).to(features.device),
        torch.as_tensor(test.labels),
        mean_per_class=per_class,
        n_classes=len(test.classnames),
    )
    found = accuracy_outcomes(result.correct.cpu().numpy(), test.labels if per_class else None)
    note = f"C = {result.c:.3g}" + ("; mean per-class accuracy" if per_class else "")
    yield _score("linear_probe", spec, "accuracy", found, test.chance, note=note)


def _few_shot(features: Features, spec, test, train, scale: Scale) -> Iterator[Score]:
    result = few_shot.few_shot(
        features.images(train),
        train.labels,
        features.images(test),
        test.labels,
        episodes=scale.episodes,
        skip_short=spec.source != "generated",
    )
    # An outcome is a test image: the share of its appearances answered rightly. Its standard error speaks of other
    # images of the kind, not only of other episodes with these, which would be too sure of itself by far.
    query, correct = result.query.flatten().numpy(), result.correct.flatten().double().numpy()
    seen = np.bincount(query, minlength=len(test.labels))
    right = np.bincount(query, weights=correct, minlength=len(test.labels))
    share = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
    ways = result.correct.shape[1]
    note = f"{scale.episodes} episodes of {ways} classes; standard deviation over episodes {100 * result.std:.1f}"
    yield _score("few_shot", spec, "accuracy", outcomes(share, weight=seen), 1 / ways, note=note)


def _retrieval(features: Features, spec, test, train, scale: Scale) -> Iterator[Score]:
    owner = np.repeat(np.arange(len(test.captions)), [len(c) for c in test.captions])
    texts = [caption for captions in test.captions for caption in captions]
    result = retrieval.score(features.images(test), features.texts(test, "captions", texts), torch.as_tensor(owner))
    for direction in retrieval.DIRECTIONS:
        # The captions of an image succeed and fail together: they are one cluster.
        cluster = owner if direction == "image_retrieval" else None
        for k in RECALLS:
            hits = result.hits(direction, k).numpy()
            chance = min(1.0, k / len(test.captions))
            if direction == "text_retrieval":
                chance = _any_of(k, len(texts), len(texts) / len(test.captions))
            yield _score(direction, spec, f"recall@{k}", outcomes(hits, cluster=cluster), chance)


def _any_of(k: int, n: int, right: float) -> float:
    """Chance that k of n captions drawn at random hold at least one of `right` right ones."""
    return 1 - float(np.prod([(n - right - i) / (n - i) for i in range(k)]))


def _mmvp(features: Features, spec, test, train, scale: Scale) -> Iterator[Score]:
    prompts = [mmvp.PROMPT + statement for pair in test.pairs for statement in pair.statements]
    texts = features.texts(test, "statements", prompts).unflatten(0, (-1, 2))
    pictures = features.images(test)[torch.tensor([pair.images for pair in test.pairs])]
    patterns = [pair.pattern for pair in test.pairs]
    result = mmvp.score(mmvp.similarities(pictures, texts), patterns)
    names = np.array(patterns)
    for pattern, (_, n) in result.pattern_counts.items():
        found = outcomes(result.correct.numpy()[names == pattern])
        yield _score(
            "mmvp_vlm", spec, f"pairs_correct_of_{n}", found, 0.25, dataset=pattern, paper_name=pattern, count=n
        )


_RUN = {
    "zero_shot": _zero_shot,
    "zero_shot_ood": _zero_shot_ood,
    "linear_probe": _linear_probe,
    "few_shot": _few_shot,
    "retrieval": _retrieval,
    "mmvp_vlm": _mmvp,
}


def _score(
    task: str,
    spec,
    metric: str,
    found: Outcomes,
    chance: float | None,
    *,
    note: str = "",
    dataset: str = "",
    paper_name: str = "",
    count: int | None = None,
) -> Score:
    """Outcomes in [0, 1] to a score in percent, or to a number of pairs out of `count`."""
    factor = 100 if count is None else count
    percent = Outcomes(100 * found.outcome, found.weight, found.cluster, found.stratum)
    return Score(
        task=task,
        dataset=dataset or spec.name,
        metric=metric,
        value=round(factor * found.value, 6),
        stderr=factor * found.stderr,
        n=len(found),
        paper_name=paper_name or spec.paper_name,
        chance=100 * chance if chance is not None else float("nan"),
        note=note,
        items=percent,
    )


# ------------------------------------------------------------------------------------------------------------- files
def _items_folder(root: Path, name: str) -> Path:
    return root / "results" / "items" / name


def _identity(task: str, spec, who: Subject, scale: Scale) -> str:
    """What a finished number depends on: the weights, the set as specified, the protocol and its settings."""
    parts = [_VERSION, who.key, task, asdict(spec), scale.episodes if task == "few_shot" else None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _questions(splits: dict[str, benchmarks.Benchmark], task: str) -> str:
    """A hash of the content that a task is evaluated on."""
    used = [splits["test"].fingerprint]
    if task in ("linear_probe", "few_shot"):
        used.append(splits["train"].fingerprint)
    return hashlib.sha256(json.dumps(used, sort_keys=True, default=str).encode()).hexdigest()


def _path(folder: Path, task: str, spec) -> Path:
    return folder / (f"{task}-{spec.name}".replace("/", "_") + ".json")


def _write_scores(
    folder: Path,
    task: str,
    spec,
    who: Subject,
    scale: Scale,
    splits: dict[str, benchmarks.Benchmark],
    scores: list[Score],
) -> None:
    path = _path(folder, task, spec)
    arrays = {f"{part}{i}": getattr(score.items, part) for i, score in enumerate(scores) for part in _PARTS}
    with written_whole(path.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays)
    content = {
        "key": who.key,
        "identity": _identity(task, spec, who, scale),
        "questions": _questions(splits, task),
        "set": spec.name,
        "source": spec.source,
        "sha256": _sha256(path.with_suffix(".npz")),
        "scores": [{k: v for k, v in vars(s).items() if k != "items"} for s in scores],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")  # last: it says that the rest is there


def _read(path: Path) -> dict | None:
    """What `_write_scores` wrote; None where nothing usable is, with a word if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = {"key", "identity", "questions", "set", "source", "sha256", "scores"} - content.keys()
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        log.warning("%s is damaged; what it held is evaluated again.", path)
        return None
    return None if missing else content  # written by an earlier version


def _outcomes_file(path: Path, content: dict) -> Path | None:
    """The outcomes that belong to a file of scores, if they are whole."""
    file = path.with_suffix(".npz")
    try:
        whole = _sha256(file) == content["sha256"]
    except OSError:
        whole = False
    if not whole:
        log.warning("%s is damaged or missing; what it held is evaluated again.", file)
    return file if whole else None


def _contents(folder: Path) -> Iterator[tuple[Path, dict]]:
    for path in sorted(folder.glob("*.json")):
        if (content := _read(path)) is not None:
            yield path, content


def _finished(
    folder: Path, task: str, spec, who: Subject, scale: Scale, splits: dict[str, benchmarks.Benchmark]
) -> bool:
    path = _path(folder, task, spec)
    content = _read(path)
    return (
        content is not None
        and content["identity"] == _identity(task, spec, who, scale)
        and (not splits or content["questions"] == _questions(splits, task))
        and _outcomes_file(path, content) is not None
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
