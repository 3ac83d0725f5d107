"""The paper's numbers: complete, consistent with each other, and never confused with ours."""

import numpy as np
import pandas as pd
import pytest
import synthetic_results

from diffclip import reported


@pytest.fixture(scope="module")
def paper():
    return reported.load()


def test_holds_every_number_of_the_paper(paper):
    assert len(paper) == 210
    assert tuple(paper.columns) == reported.COLUMNS
    counts = paper["source"].value_counts().to_dict()
    assert counts == {
        "table1": 80, "table2": 36, "table3": 18, "figure1": 12, "figure3": 24, "figure4": 16, "figure5": 24,
    }  # fmt: skip


def test_facts_of_the_audit(paper):
    radar = paper[paper["metric"] == "pairs_correct_of_15"].groupby("model")["value"].sum()
    assert radar.to_dict() == {"CLIP": 23, "DiffCLIP": 29}
    pope = paper[(paper["task"] == "pope") & (paper["metric"] == "accuracy")]
    assert (pope["value"] - 50).abs().max() == pytest.approx(0.41)
    gaps = pope.pivot(index="dataset", columns="model", values="value")
    assert (gaps["DiffCLIP"] - gaps["CLIP"]).max() == pytest.approx(0.27)
    shift = {
        p: [reported.lookup("figure3", p, m, "zero_shot_ood", "Avg.") for m in ("clip", "diffclip")]
        for p in ("CC3M", "CC12M")
    }
    assert [round(b - a, 1) for a, b in shift.values()] == [0.3, 2.1]


def test_the_numbers_agree_with_each_other(paper):
    table = reported.checks(paper)
    assert len(table) == 46  # 20 averages, 24 repetitions, 2 radars
    assert table["agrees"].all()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: f.drop(columns="metric"), "lacks the column"),
        (lambda f: f.iloc[1:], "209 rows instead of 210"),
        (lambda f: pd.concat([f.iloc[:-1], f.iloc[:1]]), "repeat a key"),
        (lambda f: f.assign(value=f["value"].where(f.index != 3, 858.0)), "outside 0 to 100"),
        (lambda f: f.assign(model=f["model"].replace("DiffCLIP*", "DiffCLIP-star")), "'DiffCLIP-star'"),
        (lambda f: f.assign(dataset=f["dataset"].replace("DTD", "Textures")), "unexpected sets: Textures"),
        (lambda f: f.assign(value=f["value"].where(f.index != 3, 58.5)), "mean of 9 sets"),
        (lambda f: f.assign(value=f["value"].where(f["source"] != "figure1", 50.0)), "as in table"),
        (lambda f: f.assign(value=f["value"].where(f["metric"] != "pairs_correct_of_15", 2)), "pairs correct of 105"),
    ],
)
def test_a_spoilt_file_is_refused(paper, tmp_path, spoil, words):
    path = tmp_path / "reported.csv"
    spoil(paper.copy()).to_csv(path, index=False)
    with pytest.raises(ValueError, match=words):
        reported.load(path)


def test_lookup():
    assert reported.lookup("table1", "CC3M", "DiffCLIP", "linear_probe", "Caltech-101") == 76.2
    assert reported.lookup("figure5", "CC12M", "diffclip_vision", "few_shot", "Avg.") == 85.6
    assert reported.lookup("table3", "CC12M", "CLIP", "pope", "random", "recall") == 98.21
    with pytest.raises(KeyError, match=r"there is: Caltech-101 accuracy"):
        reported.lookup("table1", "CC3M", "CLIP", "linear_probe", "MNIST")
    with pytest.raises(ValueError, match="accuracy, precision, recall"):
        reported.lookup("table3", "CC12M", "CLIP", "pope", "random")
    with pytest.raises(ValueError, match="no column corpus"):
        reported.select(corpus="CC3M")


def test_compare_sets_ours_beside_the_paper_without_mixing_them():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    table = reported.compare(rows, "table1", synthetic_results.comparisons(rows))
    assert len(table) == 40  # two corpora, two tasks, nine sets and the average
    assert (table["relation"] == "takes its place").all()

    row = table[
        (table["pretraining"] == "CC3M") & (table["task"] == "few_shot") & (table["in_place_of"] == "Pets")
    ].iloc[0]
    assert (row["reported_clip"], row["reported_diffclip"], row["reported_difference"]) == (69.6, 71.6, 2.0)
    assert row["dataset"] == synthetic_results.NINE["Pets"]
    mine = rows[
        (rows["pretraining"] == synthetic_results.CORPORA["CC3M"])
        & (rows["task"] == "few_shot")
        & (rows["paper_name"] == "Pets")
    ]
    clip, diffclip = mine.set_index("model")["value"].loc[["clip", "diffclip"]]
    assert row["clip"] == clip and row["diffclip"] == diffclip
    assert row["difference"] == pytest.approx(diffclip - clip)
    assert row["low"] < row["difference"] < row["high"]


def test_compare_says_whether_the_directions_agree():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    pairs = synthetic_results.comparisons(rows)
    cases = {
        "Caltech-101": ("improvement", "same"),
        "DTD": ("decline", "opposite"),
        "Pets": ("within noise", "undecided"),
    }
    for name, (verdict, _) in cases.items():  # the paper reports a gain on all three
        pairs.loc[pairs["dataset"] == synthetic_results.NINE[name], "verdict"] = verdict
    table = reported.compare(rows, "table1", pairs).query("pretraining == 'CC3M' and task == 'linear_probe'")
    assert table.set_index("in_place_of")["direction"].loc[list(cases)].tolist() == [d for _, d in cases.values()]


def test_compare_keeps_what_we_lack_and_what_is_the_same_set():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    real = rows[rows["task"] == "zero_shot_ood"].assign(dataset=rows["paper_name"], scale="released")
    real["pretraining"] = real["pretraining"].str.split().str[-1]
    table = reported.compare(real.query("paper_name != 'ImageNet-R'"), "figure3", scale="released")
    assert (table["relation"].dropna() == "same set").all()
    lacking = table["in_place_of"].isin(["ImageNet-R", "Avg."])  # no average over four of five
    assert table.loc[lacking, "diffclip"].isna().all() and table.loc[lacking, "reported_diffclip"].notna().all()
    assert table.loc[~lacking, "diffclip"].notna().all()


def test_compare_covers_the_variants_and_the_patterns():
    rows = synthetic_results.numbers()
    variants = reported.compare(rows, "figure5")
    assert set(variants["model"]) == {"DiffCLIP", "DiffCLIP*", "DiffCLIP-vision"}
    assert np.isfinite(variants["difference"]).all()
    patterns = reported.compare(rows, "figure4").set_index("in_place_of")
    assert patterns.loc["Color and Appearance", "reported_diffclip"] == pytest.approx(100 * 10 / 15)
    assert patterns.loc["Color and Appearance", "relation"] == "takes its place"  # generated pairs, the same name
    with pytest.raises(ValueError, match="no numbers for 'figure2'"):
        reported.compare(rows, "figure2")
