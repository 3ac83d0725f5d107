"""Tidy results: what is read, pooled, averaged and judged before anything is drawn."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic_results

from diffclip import report, reported
from diffclip.report.results import Difference, tally


def rows(values, **columns):
    """Tidy rows of one set, a row for each (model, seed, value)."""
    base = {
        "pretraining": "cc3m",
        "task": "zero_shot",
        "dataset": "made-up-set",
        "metric": "accuracy",
        "paper_name": "ImageNet",
    }
    listed = [{**base, "model": m, "seed": s, "value": v, "stderr": 2.0, "n": 500} for m, s, v in values]
    return pd.DataFrame(listed).assign(**columns)


KEY = ("zero_shot", "ImageNet", "accuracy")


def test_reads_what_the_evaluation_wrote(tmp_path):
    results = report.read("mini", synthetic_results.write(tmp_path))
    assert results.origin == "mini" and results.generated
    assert results.label == "Here: generated data, scale mini"
    assert results.pretrainings() == ["CC3M", "CC12M"]
    assert results.corpus("CC3M") == "generated corpus for CC3M"
    assert results.stand_in("linear_probe", "DTD") == synthetic_results.NINE["DTD"]


def test_the_paper_takes_the_same_form():
    paper = report.paper()
    assert paper.is_paper and not paper.generated and paper.corpus("CC3M") == "CC3M"
    number = paper.number("CC12M", "DiffCLIP", "mmvp_vlm", "Color and Appearance", "accuracy")
    assert (number.value, number.n, number.stderr) == (pytest.approx(66.667, abs=1e-3), 15, None)
    difference = paper.difference("CC3M", "DiffCLIP", "linear_probe", "Caltech-101", "accuracy")
    assert difference == Difference(3.7)


def test_without_results_it_says_what_to_run(tmp_path):
    with pytest.raises(report.ResultsError, match=r"diffclip reproduce --scale mini"):
        report.read("mini", tmp_path / "nothing")
    with pytest.raises(report.ResultsError, match="no row"):
        report.from_frames(rows([("clip", 0, 1.0)]).iloc[:0], None, "mini")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: f.drop(columns="metric"), r"few_shot.csv lacks the column\(s\) metric"),
        (lambda f: f.assign(value=np.nan), "is not a number.*diverged"),
        (lambda f: f.assign(value=101.0), "in percent"),
        (lambda f: pd.concat([f, f.assign(value=f["value"] + 1)]), "different values"),
    ],
)
def test_results_that_cannot_be_right_are_refused(tmp_path, spoil, words):
    folder = synthetic_results.write(tmp_path)
    file = folder / "few_shot.csv"
    spoil(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(ValueError, match=words):
        report.read("mini", folder)


def test_a_strange_verdict_is_refused(tmp_path):
    folder = synthetic_results.write(tmp_path)
    file = folder / "comparisons.csv"
    pd.read_csv(file).assign(verdict="better").to_csv(file, index=False)
    with pytest.raises(report.ResultsError, match="'better'"):
        report.read("mini", folder)


def test_a_number_written_twice_counts_once(tmp_path):
    folder = synthetic_results.write(tmp_path)
    once = report.read("mini", folder)
    pd.read_csv(folder / "few_shot.csv").to_csv(folder / "few_shot_again.csv", index=False)
    pd.testing.assert_frame_equal(report.read("mini", folder).numbers, once.numbers)


def test_seeds_are_pooled_with_both_causes_of_error():
    results = report.from_frames(rows([("clip", 0, 30.0), ("clip", 1, 34.0), ("clip", 2, 32.0)]), None, "mini")
    number = results.number("CC3M", "CLIP", *KEY)
    assert number.value == 32.0
    # 2 points of sampling error, common to the seeds, and a standard deviation of 2 over three seeds
    assert number.stderr == pytest.approx(math.sqrt(2.0**2 + 2.0**2 / 3))


def test_comparisons_of_several_seeds_are_pooled():
    numbers = rows([("clip", 0, 30.0), ("clip", 1, 31.0), ("diffclip", 0, 32.0), ("diffclip", 1, 39.0)])
    pairs = pd.DataFrame(
        [
            {**dict(zip(("task", "metric"), ("zero_shot", "accuracy"), strict=True)), "pretraining": "cc3m", "seed": s,
             "dataset": "made-up-set", "baseline": "clip", "model": "diffclip", "difference": d, "low": d - 1.96, "high": d + 1.96,
             "p": 0.04, "test": "McNemar", "verdict": "improvement"}
            for s, d in ((0, 2.0), (1, 8.0))
        ]
    )  # fmt: skip
    difference = report.from_frames(numbers, pairs, "mini").difference("CC3M", "DiffCLIP", *KEY)
    assert difference.value == 5.0 and difference.test == "McNemar, 2 seeds"
    # a standard error of 1 for the questions and 4.24 / sqrt(2) = 3 for the seeds: the two gains do not add up to a verdict
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * math.sqrt(10), rel=1e-3)
    assert difference.verdict == "within noise"


@pytest.mark.parametrize("gain, verdict", [(9.0, "improvement"), (-9.0, "decline"), (3.0, "within noise")])
def test_without_comparisons_two_standard_errors_decide(gain, verdict):
    results = report.from_frames(rows([("clip", 0, 40.0), ("diffclip", 0, 40.0 + gain)]), None, "mini")
    difference = results.difference("CC3M", "DiffCLIP", *KEY)
    assert difference.value == pytest.approx(gain) and difference.verdict == verdict
    assert difference.high - difference.value == pytest.approx(1.96 * math.sqrt(8), rel=1e-3)
    assert "unpaired" in difference.test


def test_averages_are_those_of_the_paper_with_their_errors():
    numbers = synthetic_results.numbers(models=("clip", "diffclip"))
    results = report.from_frames(numbers, synthetic_results.comparisons(numbers), "mini")
    part = numbers.query("pretraining.str.endswith('CC12M') and model == 'clip' and task == 'linear_probe'")
    average = results.number("CC12M", "CLIP", "linear_probe", "Avg.", "accuracy")
    assert average.value == pytest.approx(part["value"].mean())
    assert average.stderr == pytest.approx(np.sqrt((part["stderr"] ** 2).sum()) / 9)
    other = results.number("CC12M", "DiffCLIP", "linear_probe", "Avg.", "accuracy")
    difference = results.difference("CC12M", "DiffCLIP", "linear_probe", "Avg.", "accuracy")
    assert difference.value == pytest.approx(other.value - average.value)
    assert (difference.low > 0) == (difference.verdict == "improvement")


def test_the_mmvp_average_is_over_the_papers_seven_patterns():
    numbers = synthetic_results.numbers(models=("clip",)).query("pretraining.str.endswith('CC3M')")
    results = report.from_frames(numbers, None, "mini")
    mmvp = numbers[numbers["task"] == "mmvp_vlm"].set_index("paper_name")["value"] / 60 * 100
    seven = [name for name in reported.CONTENTS["figure4"]["mmvp_vlm"] if name != "Avg."]
    key = ("CC3M", "CLIP", "mmvp_vlm")
    assert results.number(*key, "Avg.", "accuracy").value == pytest.approx(mmvp[seven].mean())
    assert results.number(*key, "All patterns", "accuracy").value == pytest.approx(mmvp.mean())


def test_an_incomplete_average_is_not_made():
    numbers = synthetic_results.numbers(models=("clip",))
    results = report.from_frames(numbers[numbers["paper_name"] != "Pets"], None, "mini")
    assert results.number("CC3M", "CLIP", "linear_probe", "Avg.", "accuracy") is None
    assert results.number("CC3M", "CLIP", "image_retrieval", "Avg.", "recall@5") is not None


def test_counts_of_pairs_become_percent():
    numbers = rows(
        [("clip", 0, 12.0)], task="mmvp_vlm", metric="pairs_correct_of_60", paper_name="Texts", dataset="Texts"
    )
    number = report.from_frames(numbers, None, "mini").number("CC3M", "CLIP", "mmvp_vlm", "Texts", "accuracy")
    assert (number.value, number.n) == (20.0, 60)


@pytest.mark.parametrize(
    "written, scale, role, shown",
    [
        ("cc3m", "mini", "CC3M", "generated corpus for CC3M"),
        ("generated corpus in the place of CC12M", "gpu", "CC12M", "generated corpus for CC12M"),
        ("CC12M", "released", "CC12M", "CC12M"),
        ("my-photos", "paper", "my-photos", "my-photos"),
    ],
)
def test_a_generated_corpus_never_bears_a_real_name_alone(written, scale, role, shown):
    results = report.from_frames(rows([("clip", 0, 1.0), ("diffclip", 0, 2.0)], pretraining=written), None, scale)
    assert results.pretrainings() == [role]
    assert results.corpus(role) == shown


def test_the_columns_are_those_that_the_evaluation_writes():
    from diffclip.evaluation import runner

    numbers = synthetic_results.numbers(models=("clip", "diffclip"))
    assert tuple(numbers.columns) == runner.COLUMNS
    assert tuple(synthetic_results.comparisons(numbers).columns) == runner._COMPARISON_COLUMNS


@pytest.mark.parametrize(
    "foreign",
    [
        {"model": "ViT-B-32", "pretraining": "laion2b"},  # another family
        {"pretraining": "CC3M", "value": 55.0},  # a released checkpoint on generated sets, beside the one trained here
        {"pretraining": "unknown"},  # a checkpoint that does not say what it was trained on
    ],
)
def test_what_belongs_in_no_table_is_kept_apart(foreign):
    numbers = rows([("clip", 0, 30.0), ("diffclip", 0, 40.0)])
    results = report.from_frames(pd.concat([numbers, numbers.iloc[:1].assign(**foreign)]), None, "mini")
    assert len(results.also) == 1 and len(results.numbers) == 2
    assert results.number("CC3M", "CLIP", *KEY).value == 30.0
    with pytest.raises(report.ResultsError, match="None of the 1 results"):
        report.from_frames(numbers.iloc[:1].assign(**foreign), None, "mini")


def test_a_real_set_does_not_take_the_place_of_its_stand_in():
    own = rows([("clip", 0, 60.0)], task="few_shot", dataset="digits", paper_name="CIFAR-10")
    real = rows([("clip", 0, 30.0)], task="few_shot", dataset="vtab-cifar10", paper_name="CIFAR-10")
    results = report.from_frames(pd.concat([real, own]), None, "mini")
    assert results.number("CC3M", "CLIP", "few_shot", "CIFAR-10", "accuracy").value == 60.0
    assert results.also["dataset"].tolist() == ["vtab-cifar10"]


def test_the_scale_named_paper_is_not_the_paper():
    results = report.from_frames(rows([("clip", 0, 30.0)], pretraining="CC3M"), None, "paper")
    assert not results.is_paper and results.label == "Here: real data, scale paper"
    assert results.stand_in("zero_shot", "ImageNet") == "ImageNet"


def test_comparisons_of_other_numbers_are_out_of_date(caplog):
    numbers = synthetic_results.numbers(models=("clip", "diffclip"))
    pairs = synthetic_results.comparisons(numbers)
    key = ("CC3M", "DiffCLIP", "few_shot", "Pets", "accuracy")
    fresh = report.from_frames(numbers, pairs, "mini")
    assert fresh.difference(*key).test == "made up" and not caplog.records
    trained_anew = numbers.assign(value=numbers["value"].where(numbers["task"] != "few_shot", numbers["value"] * 0.9))
    stale = report.from_frames(trained_anew, pairs, "mini")
    assert "18 of 102 comparisons are of other numbers" in caplog.text
    difference = stale.difference(*key)
    assert "unpaired" in difference.test
    assert difference.value == pytest.approx(stale.number(*key).value - stale.number("CC3M", "CLIP", *key[2:]).value)


@pytest.mark.parametrize(
    "differences, sentence",
    [
        ([(1, "improvement")] * 3 + [(1, "within noise")] * 5 + [(-1, "decline")],
         "DiffCLIP beats CLIP on 3 of 9 sets; 5 within noise, 1 worse"),
        ([(1, "within noise")] * 4, "DiffCLIP and CLIP do not differ beyond noise on any of 4 sets"),
        ([(1, "improvement")] * 2, "DiffCLIP beats CLIP on 2 of 2 sets"),
        ([(1, None), (0, None), (-1, None)], "DiffCLIP is above CLIP on 1 of 3 sets; 1 lower, 1 equal"),
    ],
)  # fmt: skip
def test_the_finding_is_counted(differences, sentence):
    found = [Difference(value, value - 0.5, value + 0.5, verdict) for value, verdict in differences]
    assert tally([*found, None]).sentence() == sentence
