"""Figures: the form of the paper's, heights and intervals that equal the numbers, titles that are counted, stable bytes."""

import io

import matplotlib
import numpy as np
import pytest
import synthetic_results
from matplotlib.patches import Rectangle
from PIL import Image

from diffclip import report, style
from diffclip.report import figures

FIGURES = ("figure1", "figure3", "figure4", "figure5")


@pytest.fixture(scope="module")
def results():
    rows = synthetic_results.numbers()
    return report.from_frames(rows, synthetic_results.comparisons(rows), "mini")


@pytest.fixture(scope="module")
def drawn(results):
    return {name: getattr(report, name)(results) for name in FIGURES}


def _bars(ax):
    return [p for p in ax.patches if isinstance(p, Rectangle) and p.get_height() > 0]


@pytest.mark.parametrize("name, panels", [("figure1", 2), ("figure3", 4), ("figure4", 2), ("figure5", 2)])
def test_every_panel_says_whose_numbers_it_shows(drawn, name, panels):
    axes = drawn[name].axes
    assert len(axes) == panels
    for ax, is_paper in zip(axes, [True, False] * 2, strict=False):
        title = ax.get_title(loc="center") or ax.get_title(loc="left")
        assert title.startswith("Paper: real data, as reported" if is_paper else "Here: generated data, scale mini")
        assert ("generated corpus for" in title) != is_paper
        tint = matplotlib.colors.to_hex(ax.get_facecolor()) == style.PAPER_TINT.lower()
        assert tint == is_paper


def test_figure1_shows_the_papers_summary_and_ours(drawn, results):
    paper, ours = drawn["figure1"].axes
    heights = [bar.get_height() for bar in _bars(paper)]
    assert heights == [63.8, 64.8, 73.9, 74.6, 28.9, 30.1, 38.3, 40.1, 13.6, 14.4, 9.7, 10.0]
    expected = [
        results.number("CC3M", model, *key).value for key in figures.SIX.values() for model in ("CLIP", "DiffCLIP")
    ]
    assert [bar.get_height() for bar in _bars(ours)] == pytest.approx(expected)
    assert not paper.containers[0].patches[0].get_hatch() and paper.containers[1].patches[0].get_hatch()


def test_intervals_are_95_percent_on_ours_only(drawn, results):
    paper, ours = drawn["figure1"].axes
    intervals = [c for c in ours.containers if isinstance(c, matplotlib.container.ErrorbarContainer)]
    assert len(intervals) == 12
    assert not any(isinstance(c, matplotlib.container.ErrorbarContainer) for c in paper.containers)
    (low, high) = intervals[0][2][0].get_segments()[0][:, 1]
    number = results.number("CC3M", "CLIP", "linear_probe", "Avg.", "accuracy")
    assert (high - low) / 2 == pytest.approx(1.96 * number.stderr, rel=1e-3)


def test_guessing_is_drawn_where_it_is_known(drawn, results):
    ours = drawn["figure1"].axes[1]
    levels = [line.get_segments()[0][0, 1] for line in ours.collections if line.get_linestyle()[0][1] is not None]
    assert [level for level in levels if level in (2.0, 20.0)] == [2.0, 20.0, 2.0, 2.0, 2.0, 2.0]
    legend = [text.get_text() for text in drawn["figure1"].legends[0].get_texts()]
    assert "guessing" in legend
    rows = synthetic_results.numbers(models=("clip", "diffclip"), chance=False)
    without = report.figure1(report.from_frames(rows, None, "mini"))
    assert "guessing" not in [text.get_text() for text in without.legends[0].get_texts()]


def test_figure5_has_four_variants_in_their_colours(drawn):
    for ax in drawn["figure5"].axes:
        bars = _bars(ax)
        assert len(bars) == 24
        assert [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in bars[:4]] == list(
            style.COLOURS.values()
        )


def test_figure3_names_generated_sets_and_whose_place_they_take(drawn):
    labels = [" ".join(t.get_text().split()) for t in drawn["figure3"].axes[1].get_xticklabels()]
    assert "for ImageNet" in labels[0] and labels[0].startswith("made-up")
    assert not any(label.startswith("ImageNet") for label in labels)


def test_figure4_writes_counts_and_shows_nine_patterns(drawn, results):
    paper, ours = ([t.get_text().strip() for t in ax.texts] for ax in drawn["figure4"].axes)
    assert sum(" of 15" in text for text in paper) == 7
    assert sum(" of 60" in text for text in ours) == 9
    assert "8 \u2192 10 of 15" in paper
    key = ("mmvp_vlm", "Texts", "accuracy")
    before, after = (round(results.number("CC12M", m, *key).value * 0.6) for m in ("CLIP", "DiffCLIP"))
    assert any(text.startswith(f"{before} \u2192 {after} of 60") for text in ours)


@pytest.mark.parametrize("name", FIGURES)
def test_titles_state_the_finding(drawn, name):
    title = drawn[name].get_suptitle()
    assert title.startswith(f"Figure {name[-1]}. ")
    assert "beats CLIP on" in title or "Better/worse" in title or "do not differ" in title


@pytest.mark.parametrize(
    "verdict, words",
    [
        ("improvement", "DiffCLIP beats CLIP on 6 of 6 task groups (the paper: above on 6 of 6)"),
        ("within noise", "do not differ beyond noise on any of 6 task groups"),
        ("decline", "beats CLIP on 0 of 6 task groups; 6 worse"),
    ],
)
def test_the_title_follows_the_numbers(verdict, words):
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    low, high = {"improvement": (1, 2), "within noise": (-1, 2), "decline": (-2, -1)}[verdict]
    pairs = synthetic_results.comparisons(rows).assign(verdict=verdict, difference=(low + high) / 2, low=low, high=high)
    title = report.figure1(report.from_frames(rows, pairs, "mini")).get_suptitle()
    assert words in " ".join(title.split())


def test_only_one_corpus_is_enough():
    rows = synthetic_results.numbers().query("pretraining.str.endswith('CC3M')")
    results = report.from_frames(rows, None, "mini")
    assert "generated corpus for CC3M" in report.figure5(results).axes[1].get_title(loc="left")
    assert len(report.figure3(results).axes) == 2
    title = " ".join(report.figure4(results).get_suptitle().split())
    assert "(the paper: above on 5 of 7)" in title  # its CC12M, beside our CC3M


def test_intervals_stay_between_0_and_100():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    rows["stderr"] = rows["stderr"] * 20
    for ax in report.figure1(report.from_frames(rows, None, "mini")).axes[1:]:
        bars = [c for c in ax.containers if isinstance(c, matplotlib.container.ErrorbarContainer)]
        ends = np.concatenate([bar[2][0].get_segments()[0][:, 1] for bar in bars])
        assert ends.min() == 0.0 and ends.max() <= 100.0


@pytest.mark.parametrize("name", FIGURES)
def test_the_paper_alone_can_be_drawn(name):
    figure = getattr(report, name)(report.paper())
    assert "as reported" in figure.get_suptitle()
    assert all(ax.get_title(loc="left").startswith("Paper") or ax.get_title().startswith("Paper") for ax in figure.axes)


@pytest.mark.parametrize("name, notebook", [("figure1", "11_figure1_summary"), ("figure5", "10_figure5_variants")])
def test_missing_results_name_the_notebook(name, notebook):
    rows = synthetic_results.numbers(models=("clip",))
    with pytest.raises(report.ResultsError, match=f"--only {notebook}"):
        getattr(report, name)(report.from_frames(rows, None, "mini"))


def test_files_are_small_and_the_same_every_time(drawn, results, tmp_path):
    for name in ("figure1", "figure4"):
        first = style.save(drawn[name], tmp_path / "one" / name)
        again = style.save(getattr(report, name)(results), tmp_path / "two" / name)
        for one, two in zip(first, again, strict=True):
            assert one.read_bytes() == two.read_bytes()
            assert one.stat().st_size < 150_000
        assert b"CreationDate" not in first[1].read_bytes()
    assert style.render(drawn["figure1"], "svg") == style.render(report.figure1(results), "svg")
    with Image.open(first[0]) as picture:
        assert picture.mode == "P" and picture.width > 1500
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


def test_a_picture_of_many_colours_keeps_them():
    with style.use():
        figure = style.figure(3, 3)
        figure.subplots().imshow(np.random.default_rng(0).random((64, 64, 3)))
    with Image.open(io.BytesIO(style.render(figure, "png"))) as picture:
        assert picture.mode == "RGB"


def test_a_figure_shows_itself_in_a_notebook(drawn):
    assert drawn["figure1"]._repr_png_().startswith(b"\x89PNG")


def test_wilson_interval():
    # Brown, Cai and DasGupta's (2001) form, checked against statsmodels' proportion_confint(10, 15, method="wilson")
    assert figures.wilson(10 / 15, 15) == pytest.approx((0.4171, 0.8482), abs=5e-4)
    assert figures.wilson(0.0, 15)[0] == 0.0 and figures.wilson(1.0, 15)[1] == 1.0


def test_style_is_confined_and_readable_in_grey():
    before = dict(matplotlib.rcParams)
    with style.use():
        assert matplotlib.rcParams["svg.hashsalt"] == "diffclip"
    assert dict(matplotlib.rcParams) == before
    grey = [np.dot(matplotlib.colors.to_rgb(c), (0.299, 0.587, 0.114)) for c in style.COLOURS.values()]
    assert np.diff(np.sort(grey)).min() > 0.08
    assert len(set(style.HATCHES.values())) == len(set(style.MARKERS.values())) == 4


def test_style_refuses_what_it_does_not_know(drawn):
    with pytest.raises(ValueError, match="no variant"):
        style.colour("SigLIP")
    with pytest.raises(ValueError, match="png, pdf, svg"):
        style.render(drawn["figure1"], "gif")
    assert style.label("diffclip_dynamic") == style.label("DiffCLIP*") == "DiffCLIP*"
