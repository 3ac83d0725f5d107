"""Uncertainty: known formulas, coverage on simulated models, pairing, clusters and strata, verdicts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from diffclip.evaluation import EvaluationError
from diffclip.evaluation import statistics as st_
from diffclip.evaluation.statistics import Outcomes, accuracy_outcomes, bootstrap, compare, outcomes


def answers(seed, n=400, base=0.6, gain=0.0, agree=0.7):
    """Right answers of two models that agree on a share `agree` of the questions."""
    rng = np.random.default_rng(seed)
    a = rng.random(n) < base
    fresh = rng.random(n) < base
    b = np.where(rng.random(n) < agree, a, fresh) | (rng.random(n) < gain)
    return a, b


# ------------------------------------------------------------------------------------------------- standard errors
def test_plain_accuracy_has_the_binomial_error():
    right = np.arange(200) < 60
    found = accuracy_outcomes(right)
    assert found.value == pytest.approx(0.3) and found.n == 200
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 199))


def test_mean_per_class_accuracy_and_its_error_by_hand():
    labels = np.repeat([0, 1, 4], [10, 40, 5])  # classes 2 and 3 have no image
    right = np.concatenate([np.arange(10) < 5, np.arange(40) < 10, np.arange(5) < 4])
    found = accuracy_outcomes(right, labels)
    assert found.value == pytest.approx((0.5 + 0.25 + 0.8) / 3)
    variance = 0.25 / 9 + 0.25 * 0.75 / 39 + 0.8 * 0.2 / 4
    assert found.stderr == pytest.approx(math.sqrt(variance) / 3)


def test_a_class_with_one_image_takes_the_spread_of_the_others():
    labels = np.repeat([0, 1, 2], [20, 20, 1])
    right = np.concatenate([np.arange(20) < 10, np.arange(20) < 10, [True]])
    one = math.sqrt(2 * 0.25 / 19 + 0.25 * 20 / 19) / 3
    assert accuracy_outcomes(right, labels).stderr == pytest.approx(one)
    assert math.isnan(accuracy_outcomes(np.array([True, False]), np.array([0, 1])).stderr)


def test_captions_of_an_image_that_fail_together_count_as_one():
    image = np.repeat(np.arange(100), 5)
    together = np.repeat(np.arange(100) < 40, 5)
    clustered = outcomes(together, cluster=image)
    assert clustered.n == 100 and clustered.value == pytest.approx(0.4)
    assert clustered.stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 99))
    assert outcomes(together).stderr == pytest.approx(clustered.stderr / math.sqrt(5), rel=0.01)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_the_bootstrap_agrees_with_the_formula(seed, clusters, strata):
    rng = np.random.default_rng(seed)
    n = 300
    cluster = np.repeat(np.arange(n // 3), 3) if clusters else np.arange(n)
    stratum = cluster % 4 if strata else np.zeros(n, dtype=int)
    level = rng.random(n)[cluster] * 0.5 + stratum * 0.1
    found = outcomes((rng.random(n) < level), cluster=cluster, stratum=stratum, weight=rng.integers(1, 4, n)[cluster])
    drawn = bootstrap(found, resamples=4000, seed=seed)
    assert drawn.mean() == pytest.approx(found.value, abs=4 * found.stderr / math.sqrt(1000))
    assert drawn.std() == pytest.approx(found.stderr, rel=0.1)


def test_both_ways_of_drawing_have_the_same_distribution(monkeypatch):
    right = outcomes(np.random.default_rng(0).random(500) < 0.3)
    quick = bootstrap(right, resamples=4000)
    monkeypatch.setattr(np, "unique", _no_duplicates(np.unique))
    monkeypatch.setattr(st_, "_DRAWS", 10_000)  # several blocks
    plain = bootstrap(right, resamples=4000)
    assert not np.array_equal(quick, plain)
    assert scipy_stats.ks_2samp(quick.round(6), plain.round(6)).pvalue > 0.01


def _no_duplicates(unique):
    def wrapped(array, axis=None, return_counts=False, **rest):
        if axis == 0 and return_counts:
            return array, np.ones(len(array), dtype=int)
        return unique(array, axis=axis, return_counts=return_counts, **rest)

    return wrapped


def test_a_bootstrap_repeats_itself_and_a_seed_changes_it():
    right = outcomes(np.arange(50) < 20)
    assert np.array_equal(bootstrap(right), bootstrap(right))
    assert not np.array_equal(bootstrap(right), bootstrap(right, seed=1))


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    inside = 0
    for i in range(300):
        low, high = st_.interval(outcomes(rng.random(150) < 0.3), resamples=500, seed=i)
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 300 <= 0.985


def test_wilson():
    assert st_.wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert st_.wilson(10, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))
    with pytest.raises(EvaluationError, match="21 of 20"):
        st_.wilson(21, 20)


# -------------------------------------------------------------------------------------------------- paired comparisons
@pytest.mark.parametrize("gained, lost", [(0, 0), (1, 0), (6, 1), (30, 12), (400, 300)])
def test_mcnemar_is_the_binomial_test_of_those_that_differ(gained, lost):
    a = np.array([False] * gained + [True] * lost + [True] * 50)
    b = np.array([True] * gained + [False] * lost + [True] * 50)
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) * 0.5**n if n else 1
    assert st_.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert st_.mcnemar(b, a) == pytest.approx(st_.mcnemar(a, b))


def test_right_and_wrong_go_to_mcnemar_in_any_unit():
    a, b = answers(0, gain=0.2)
    share, percent = (compare(outcomes(u * a), outcomes(u * b)) for u in (1, 100))
    assert share.test == percent.test == "McNemar" and share.p == percent.p
    assert percent.difference == pytest.approx(100 * (b.mean() - a.mean()))
    assert percent.low == pytest.approx(100 * share.low)
    assert compare(outcomes(a * 0), outcomes(b)).test == "McNemar"  # a model that is always wrong


@pytest.mark.parametrize("gain, expected", [(0.25, "improvement"), (0.0, "within noise")])
def test_verdicts(gain, expected):
    a, b = answers(3, gain=gain)
    found = compare(outcomes(a), outcomes(b))
    assert found.verdict == expected
    assert found.low <= found.difference <= found.high and found.model - found.baseline == pytest.approx(
        found.difference
    )
    back = compare(outcomes(b), outcomes(a))
    assert back.verdict == {"improvement": "decline"}.get(expected, expected)


@pytest.mark.parametrize("kind", ["plain", "classes", "captions"])
def test_false_alarms_are_as_rare_as_they_should_be(kind):
    """Two models of equal worth: about one comparison in twenty may speak of a difference."""
    alarms, runs = 0, 200
    for seed in range(runs):
        a, b = answers(seed, n=240)
        if kind == "plain":
            pair = outcomes(a), outcomes(b)
        elif kind == "classes":
            labels = np.arange(240) % 6
            pair = accuracy_outcomes(a, labels), accuracy_outcomes(b, labels)
        else:
            image = np.arange(240) // 5
            pair = outcomes(a, cluster=image), outcomes(b, cluster=image)
        alarms += compare(*pair, resamples=400, seed=seed).verdict != "within noise"
    assert alarms / runs <= 0.10


def test_pairing_sees_what_two_separate_errors_do_not():
    a = np.arange(1000) % 10 < 6
    b = a | (np.arange(1000) % 50 == 7)  # agrees everywhere else
    found = compare(outcomes(a), outcomes(b))
    unpaired = math.hypot(outcomes(a).stderr, outcomes(b).stderr)
    assert found.difference < 1.96 * unpaired and found.verdict == "improvement"


def test_clusters_make_a_comparison_more_careful():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(40), 5)
    better = np.repeat(rng.random(40) < 0.62, 5)  # whole images are won or lost
    a = np.repeat(rng.random(40) < 0.4, 5)
    alone, together = (compare(outcomes(a, cluster=c), outcomes(better, cluster=c)) for c in (None, image))
    assert together.high - together.low > 1.8 * (alone.high - alone.low)
    assert together.p > alone.p and together.test == "paired bootstrap" and together.n == 40


def test_identical_models_do_not_differ():
    a, _ = answers(0)
    for pair in (outcomes(a), accuracy_outcomes(a, np.arange(400) % 7)):
        found = compare(pair, pair)
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
        assert found.verdict == "within noise"


def test_a_p_value_never_claims_more_than_the_resamples_can_show():
    a = np.zeros(100)
    found = compare(
        outcomes(a, cluster=np.arange(100) // 2), outcomes(a + 1, cluster=np.arange(100) // 2), resamples=200
    )
    assert found.p == 1 / 200 and found.verdict == "improvement"


def test_other_questions_are_refused():
    a, b = answers(0)
    with pytest.raises(EvaluationError, match="400 and 399"):
        compare(outcomes(a), outcomes(b[1:]))
    with pytest.raises(EvaluationError, match="same questions"):
        compare(outcomes(a, cluster=np.arange(400) // 2), outcomes(b))


def test_outcomes_that_mean_nothing_are_refused():
    for bad, words in (([1.0], "at least two"), ([1.0, np.nan], "NaN"), (np.ones((2, 2)), "list")):
        with pytest.raises(EvaluationError, match=words):
            outcomes(bad)
    with pytest.raises(EvaluationError, match="3 outcomes but 2 clusters"):
        outcomes([0, 1, 0], cluster=np.zeros(2))
    with pytest.raises(EvaluationError, match="not all zero"):
        outcomes([0, 1], weight=np.zeros(2))


def test_weights_sum_to_one():
    found = outcomes([1, 0, 1], weight=np.array([2, 1, 1]))
    assert isinstance(found, Outcomes) and found.value == 0.75 and found.weight.sum() == 1


def test_holm_by_hand():
    assert st_.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st_.holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert len(st_.holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_only_raises(p):
    adjusted = st_.holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all() and (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()
