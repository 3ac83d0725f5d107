"""Tables: the paper's form, every rendering of it, and the colours of the verdicts."""

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
import synthetic_results

from diffclip import report
from diffclip.report import tables
from diffclip.style import VERDICT_COLOURS


@pytest.fixture(scope="module")
def results():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    return report.from_frames(rows, synthetic_results.comparisons(rows), "mini")


@pytest.fixture(scope="module", params=["table1", "table2"])
def table(request, results):
    return getattr(report, request.param)(results)


def test_table1_has_the_papers_form(results):
    paper, ours = report.table1(results).sections
    assert paper.columns == [
        "Caltech-101",
        "DTD",
        "Pets",
        "Flowers",
        "SUN397",
        "Aircraft",
        "CIFAR-10",
        "CIFAR-100",
        "Food-101",
        "Avg.",
    ]
    assert [row if isinstance(row, str) else row[:2] for row in paper.rows] == [
        "Linear probing", ("CC3M", "CLIP"), ("", "DiffCLIP"), ("", "difference"), ("CC12M", "CLIP"), ("", "DiffCLIP"), ("", "difference"),
        "Few-shot (5-way 5-shot)", ("CC3M", "CLIP"), ("", "DiffCLIP"), ("", "difference"), ("CC12M", "CLIP"), ("", "DiffCLIP"), ("", "difference"),
    ]  # fmt: skip
    assert [cell.text for cell in paper.rows[3][2]][:6] == ["+3.7", "+1.5", "+1.2", "+0.8", "+2.1", "\u22121.1"]
    assert ours.columns[0] == synthetic_results.NINE["Caltech-101"] and ours.stand_for[0] == "Caltech-101"
    assert not set(ours.columns[:-1]) & set(paper.columns)  # no generated set under a real one's name
    assert all("\u00b1" in cell.text for cell in ours.rows[1][2])


def test_the_paper_alone_can_be_shown():
    table = report.table2(report.paper())
    assert len(table.sections) == 1 and "as reported" in table.title
    assert table.sections[0].rows[2][2][-1].text == "+0.8"  # zero-shot, CC3M


def test_table3_of_the_paper_keeps_two_decimals():
    cells = report.table3(report.paper()).sections[0].rows[2][2]
    assert [cell.text for cell in cells][:3] == ["+0.27", "+0.14", "+0.35"]
    assert cells[3].text == "0.00" and cells[3].verdict is None


def test_table3_of_ours():
    rows = synthetic_results.numbers(models=("clip", "diffclip")).query("task == 'few_shot' and paper_name == 'Pets'")
    pope = [
        rows.assign(task="pope", dataset=kind, paper_name=kind, metric=metric, value=value)
        for kind in ("random", "popular", "adversarial")
        for metric, value in (("accuracy", 61.5), ("precision", 60.25), ("recall", 70.125))
    ]
    ours = report.table3(report.from_frames(pd.concat(pope), None, "mini")).sections[1]
    assert ours.columns == ["Accuracy", "Precision", "Recall"] * 3
    assert [cell.text.split()[0] for cell in ours.rows[0][2]][:3] == ["61.50", "60.25", "70.12"]
    assert len(ours.rows) == 8  # two corpora here, though the paper reports one


def test_the_title_counts_what_the_table_shows(table):
    judged = table.frame[(table.frame["origin"] == "mini") & (table.frame["model"] == "DiffCLIP")]
    verdicts = judged.loc[judged["in_place_of"] != "Avg.", "verdict"].value_counts()
    assert f"beats CLIP on {verdicts['improvement']} of {verdicts.sum()} comparisons" in table.title
    assert f"{verdicts['within noise']} within noise" in table.title


def test_csv_round_trip(table, tmp_path):
    read = pd.read_csv(io.StringIO(table.to_csv()))
    assert list(read.columns) == list(table.frame.columns) and len(read) == len(table.frame)
    numeric = ["value", "stderr", "n", "difference", "low", "high"]
    pd.testing.assert_frame_equal(
        read[numeric], table.frame[numeric].astype(float), rtol=0, atol=1e-6, check_dtype=False
    )
    csv, md, tex = table.save(tmp_path / "deep")
    assert csv.read_text(encoding="utf-8") == table.to_csv()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == sorted(path.name for path in (csv, md, tex))


def test_markdown_is_rectangular(table):
    grids = [grid.splitlines() for grid in table.to_markdown().split("\n\n") if grid.startswith("|")]
    assert len(grids) == 2
    for grid in grids:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in grid}) == 1
        assert re.fullmatch(r"(\| -+:? )+\|", grid[1])


def _body(tex):
    return tex[tex.index("\\toprule") : tex.index("\\end{tabular}")]


def test_latex_is_well_formed(table):
    tex = table.to_latex()
    text = tex.replace("\\{", "").replace("\\}", "")
    assert text.count("{") == text.count("}")
    for environment in ("table*", "tabular"):
        assert tex.count(f"\\begin{{{environment}}}") == tex.count(f"\\end{{{environment}}}") == 1
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)[1])
    rows = [line for line in _body(tex).splitlines() if line.endswith("\\\\")]
    assert len(rows) > 20
    for row in rows:
        spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        assert len(re.findall(r"(?<!\\)&", row)) + 1 - len(spans) + sum(spans) == columns, row
    assert tex.isascii()
    assert not re.search(r"(?<!\\)[%_#]", tex.split("\n", 1)[1].replace("{!}{%", ""))  # all escaped but the macro's own


def test_latex_escapes_what_would_break_it():
    assert tables._tex("50 % of a_b & c#d {e} $ ~^\\") == (
        "50 \\% of a\\_b \\& c\\#d \\{e\\} \\$ \\textasciitilde{}\\textasciicircum{}\\textbackslash{}"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(table, tmp_path):
    document = "\\documentclass{article}\\usepackage{booktabs,graphicx,xcolor}\\begin{document}%s\\end{document}"
    (tmp_path / "t.tex").write_text(document % table.to_latex(), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-1500:]


@pytest.mark.parametrize("verdict", ["improvement", "decline", "within noise"])
def test_verdicts_have_their_colours(verdict):
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    pairs = synthetic_results.comparisons(rows).assign(verdict=verdict, difference=1.0, low=-1.0, high=3.0)
    table = report.table2(report.from_frames(rows, pairs, "mini"))
    colour = VERDICT_COLOURS[verdict]
    single = table.sections[1].rows[2][2][0]
    assert single.verdict == verdict
    assert f'color:{colour}" title="{verdict}">+1.0' in table.to_html()
    assert f"\\textcolor[HTML]{{{colour[1:]}}}{{+1.0 " in table.to_latex()


def test_the_papers_differences_are_coloured_by_sign():
    cells = report.table1(report.paper()).sections[0].rows[3][2]
    assert cells[0].verdict == "improvement" and cells[5].text == "\u22121.1" and cells[5].verdict == "decline"


def test_html_opens_and_closes_its_elements(table):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attributes):
            if tag != "br":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(table.to_html())
    assert parser.open == []
    assert table._repr_html_() == table.to_html()


def test_names_are_escaped():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    rows["dataset"] = rows["dataset"].replace("made-up-a", "<b>&_|")
    table = report.table1(report.from_frames(rows, None, "mini"))
    assert "&lt;b&gt;&amp;_|" in table.to_html() and "<b>" not in table.to_html()
    assert "<b>&\\_\\|" in table.to_markdown()
    assert "<b>\\&\\_|" in table.to_latex()


def test_missing_sets_are_dashes_and_named_in_the_note(results):
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    table = report.table1(report.from_frames(rows[rows["paper_name"] != "Pets"], None, "mini"))
    ours = table.sections[1].rows[1][2]
    assert ours[2].text == ours[-1].text == "\u2013" and ours[0].text != "\u2013"
    assert table.sections[1].columns[2] == "(none yet)" and table.sections[1].stand_for[2] == "Pets"
    assert "05_table1_classification" in table.note
    assert "not evaluated" not in report.table1(results).note


def test_a_task_not_run_keeps_its_rows_under_our_names():
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    table = report.table1(report.from_frames(rows[rows["task"] != "linear_probe"], None, "mini"))
    assert table.sections[1].columns[0] == synthetic_results.NINE["Caltech-101"]
    assert {cell.text for cell in table.sections[1].rows[1][2]} == {"\u2013"}


def test_without_a_single_number_it_says_which_notebook(results):
    rows = synthetic_results.numbers().query("task == 'zero_shot_ood'")
    with pytest.raises(report.ResultsError, match="--only 05_table1_classification"):
        report.table1(report.from_frames(rows, None, "mini"))
    with pytest.raises(report.ResultsError, match="Table 3 has no results"):
        report.table3(results)


@pytest.mark.parametrize(
    "value, text", [(1.24, "+1.2"), (-0.3, "\u22120.3"), (0.04, "0.0"), (-0.04, "0.0"), (0, "0.0")]
)
def test_signed(value, text):
    assert tables.signed(value) == text


def test_a_bound_that_rounds_to_zero_keeps_its_sign():
    assert tables.interval(0.02, 3.1) == "[+0.0, +3.1]"
    assert tables.interval(-3.1, -0.02) == "[\u22123.1, \u22120.0]"
