"""Uncertainty for every number, and paired comparisons of two models that answered the same questions.

Every score of the kit is a weighted mean of outcomes, `Outcomes`: accuracy weighs images equally, mean per-class
accuracy weighs classes equally, recall has a query an outcome, few-shot an outcome a test image (the share of its
appearances answered rightly). Outcomes that hang together, the five captions of an image say, form a cluster, and
clusters are what is resampled: independent draws from the population that the set stands for. Where a score averages
over strata (classes), each stratum is resampled by itself.

Standard errors are those of the linearised weighted mean over clusters (Cochran, Sampling Techniques, chapter 9),
which for plain accuracy is the binomial one up to n/(n - 1). Comparisons: McNemar's exact test where both models
answer right or wrong with equal weights, a paired bootstrap over clusters otherwise.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .checks import EvaluationError

IMPROVEMENT, DECLINE, NOISE = "improvement", "decline", "within noise"
ALPHA = 0.05
RESAMPLES = 2000
_DRAWS = 2_000_000  # indices drawn at a time: bounds the memory of a bootstrap


@dataclass(frozen=True)
class Outcomes:
    """What stands behind one score: value = sum of weight * outcome, in the unit of the outcomes.

    outcome, weight: [N] float64, the weights sum to one. cluster: [N] int64, equal for outcomes that are not
    independent. stratum: [N] int64, equal within what is resampled together; a cluster lies in one stratum.
    """

    outcome: np.ndarray
    weight: np.ndarray
    cluster: np.ndarray
    stratum: np.ndarray

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def value(self) -> float:
        return float(self.weight @ self.outcome)

    @property
    def n(self) -> int:
        """Independent units: clusters."""
        return len(np.unique(self.cluster))

    @property
    def stderr(self) -> float:
        """Standard error of `value`; nan if no stratum has two clusters, which its spread could be read from."""
        return _stderr(self, self.outcome)

    @property
    def binary(self) -> bool:
        """Right or wrong in any unit, equal weights, each outcome its own cluster, one stratum: McNemar's setting."""
        return (
            len(set(np.unique(self.outcome)) - {0.0}) <= 1
            and bool(np.allclose(self.weight, 1 / len(self)))
            and self.n == len(self)
            and len(np.unique(self.stratum)) == 1
        )


def outcomes(
    outcome: Sequence[float] | np.ndarray,
    *,
    weight: np.ndarray | None = None,
    cluster: np.ndarray | None = None,
    stratum: np.ndarray | None = None,
) -> Outcomes:
    """Outcomes from [N] values (booleans too); by default equal weights, no clusters, one stratum."""
    outcome = np.asarray(outcome, dtype=np.float64)
    if outcome.ndim != 1 or len(outcome) < 2 or not np.isfinite(outcome).all():
        raise EvaluationError(
            f"Uncertainty needs a list of at least two finite outcomes, but got shape {outcome.shape}"
            + ("." if outcome.ndim != 1 or len(outcome) < 2 else " with NaN or infinity in it.")
        )
    n = len(outcome)
    weight = np.full(n, 1 / n) if weight is None else np.asarray(weight, dtype=np.float64)
    cluster = np.arange(n) if cluster is None else np.asarray(cluster, dtype=np.int64)
    stratum = np.zeros(n, dtype=np.int64) if stratum is None else np.asarray(stratum, dtype=np.int64)
    for name, array in (("weights", weight), ("clusters", cluster), ("strata", stratum)):
        if array.shape != (n,):
            raise EvaluationError(f"There are {n} outcomes but {len(array)} {name}; every outcome needs one.")
    if (weight < 0).any() or weight.sum() <= 0:
        raise EvaluationError("Weights should be zero or more, and not all zero.")
    return Outcomes(outcome, weight / weight.sum(), cluster, stratum)


def accuracy_outcomes(correct: np.ndarray, labels: np.ndarray | None = None) -> Outcomes:
    """Right answers [N] bool; with `labels` [N] the score is the mean over classes of each class's accuracy."""
    if labels is None:
        return outcomes(correct)
    labels = np.asarray(labels, dtype=np.int64)
    count = np.bincount(labels)
    return outcomes(correct, weight=1 / (count[labels] * np.count_nonzero(count)), stratum=labels)


@dataclass(frozen=True)
class Comparison:
    """Model minus baseline, with its 95 % interval, a p-value, the test that gave it, and the verdict."""

    baseline: float
    model: float
    difference: float
    low: float
    high: float
    p: float
    test: str
    verdict: str
    n: int


def compare(
    baseline: Outcomes, model: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0, alpha: float = ALPHA
) -> Comparison:
    """Compare two models on the same questions.

    The interval is the percentile bootstrap of the paired difference over clusters. A difference is called an
    improvement or a decline only if its p-value is below `alpha` and the interval leaves zero out; everything else is
    within noise. Raises EvaluationError if the two did not answer the same questions.
    """
    same = len(baseline) == len(model) and all(
        np.allclose(a, b)
        for a, b in (
            (baseline.weight, model.weight),
            (baseline.cluster, model.cluster),
            (baseline.stratum, model.stratum),
        )
    )
    if not same:
        raise EvaluationError(
            f"A paired comparison needs the same questions in the same order, but the two models answered "
            f"{len(baseline)} and {len(model)}, or other ones. Evaluate both on the same version of the set."
        )
    delta = model.outcome - baseline.outcome
    difference = float(model.weight @ delta)
    draws = bootstrap(model, delta, resamples=resamples, seed=seed)
    low, high = np.quantile(draws, (alpha / 2, 1 - alpha / 2))
    if baseline.binary and model.binary:
        p, test = mcnemar(baseline.outcome > 0, model.outcome > 0), "McNemar"
    else:
        # Two-sided: how often the difference changes sign under resampling; never below what the resamples can show.
        beyond = min((draws <= 0).mean(), (draws >= 0).mean())
        p, test = float(min(1.0, max(2 * beyond, 1 / resamples))), "paired bootstrap"
    return Comparison(
        baseline=baseline.value,
        model=model.value,
        difference=difference,
        low=float(low),
        high=float(high),
        p=p,
        test=test,
        verdict=verdict(difference, low, high, p, alpha),
        n=model.n,
    )


def verdict(difference: float, low: float, high: float, p: float, alpha: float = ALPHA) -> str:
    """ "improvement", "decline" or "within noise"."""
    if p >= alpha or low <= 0 <= high:
        return NOISE
    return IMPROVEMENT if difference > 0 else DECLINE


def mcnemar(baseline: np.ndarray, model: np.ndarray) -> float:
    """McNemar's exact two-sided p-value for right answers [N] bool: a binomial test on those where the two differ."""
    gained, lost = int((model & ~baseline).sum()), int((baseline & ~model).sum())
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


def bootstrap(
    what: Outcomes, values: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """[resamples] weighted means of `values` (default: the outcomes) with clusters redrawn within their strata."""
    values = what.outcome if values is None else values
    totals, weights, strata = _clusters(what, values)
    rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(what.weight).tobytes())])
    pairs = np.stack([totals, weights], 1)
    mean = np.zeros(resamples)
    for stratum in np.unique(strata):
        rows = pairs[strata == stratum]
        share = rows[:, 1].sum()
        if share > 0:
            total, weight = _redraw(rows, resamples, rng)
            # Clusters of unequal weight: a ratio within the stratum, so that the stratum keeps its share of the score.
            mean += share * total / np.maximum(weight, 1e-300)
    return mean / weights.sum()


def _redraw(rows: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Column sums [resamples] of the two columns of `rows` [n, 2], of n rows drawn with replacement each time."""
    n = len(rows)
    distinct, count = np.unique(rows, axis=0, return_counts=True)
    if 8 * len(distinct) <= n:  # a few kinds of rows, as with right and wrong: draw how many there are of each
        sums = rng.multinomial(n, count / n, size=resamples) @ distinct
    else:
        sums = np.empty((resamples, 2))
        step = max(1, _DRAWS // n)
        for i in range(0, resamples, step):
            index = rng.integers(n, size=(min(step, resamples - i), n), dtype=np.int32)
            for column in range(2):
                sums[i : i + step, column] = rows[:, column][index].sum(1)
    return sums[:, 0], sums[:, 1]


def interval(what: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0, alpha: float = ALPHA) -> tuple[float, float]:
    """Percentile bootstrap interval of one score."""
    low, high = np.quantile(bootstrap(what, resamples=resamples, seed=seed), (alpha / 2, 1 - alpha / 2))
    return float(low), float(high)


def wilson(successes: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1]; sensible at 0 and n too."""
    if not 0 <= successes <= n or n == 0:
        raise EvaluationError(f"A proportion needs 0 to n successes of n > 0 trials; got {successes} of {n}.")
    found = stats.binomtest(successes, n).proportion_ci(1 - alpha, method="wilson")
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of many p-values at once: adjusted values, in the order given."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1)
    return out


def _clusters(what: Outcomes, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per cluster: the weighted sum of values, the weight, the stratum."""
    _, first, index = np.unique(what.cluster, return_index=True, return_inverse=True)
    totals = np.bincount(index, weights=what.weight * values)
    return totals, np.bincount(index, weights=what.weight), what.stratum[first]


def _stderr(what: Outcomes, values: np.ndarray) -> float:
    totals, weights, strata = _clusters(what, values)
    variance, spread, alone = 0.0, [], []
    for stratum in np.unique(strata):
        rows = strata == stratum
        n, share = int(rows.sum()), weights[rows].sum()
        if share == 0:
            continue
        if n < 2:
            alone.append(share)
            continue
        residual = totals[rows] - weights[rows] * totals[rows].sum() / share
        part = n / (n - 1) * float(residual @ residual)
        variance += part
        spread.append(part * n / share**2)  # of one cluster's mean
    if alone:  # a class with one test image: it says nothing of its own spread, so it takes that of the other classes
        variance += sum(share**2 for share in alone) * (np.mean(spread) if spread else np.nan)
    return float(np.sqrt(variance))
