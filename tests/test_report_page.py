"""The whole report: every file from results alone, one self-contained page, nothing passed over in silence."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import synthetic_results

from diffclip import report
from diffclip.report import build
from diffclip.report import page as page_module


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("made-up")
    synthetic_results.write(root)
    config = {
        "scale": "mini",
        "corpus": "cc3m",
        "variant": "clip",
        "seed": 0,
        "recipe": {"epochs": 6, "batch_size": 256},
        "corpus_fingerprint": {"display_name": "generated corpus in the place of CC3M", "pairs": 8000},
        "sessions": [{"started": "2026-01-02T03:04:05+00:00", "device": "<x86&64>", "torch": "2.11.0"}],
    }
    folder = root / "runs" / "mini" / "cc3m-clip-seed0"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return root / "runs" / "mini"


@pytest.fixture(scope="module")
def built(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "mini"
    return folder, report.build_report("mini", folder, runs)


@pytest.fixture(scope="module")
def page(built):
    return (built[0] / "report.html").read_text(encoding="utf-8")


def test_writes_every_table_and_figure(built):
    folder, paths = built
    names = {path.name for path in paths}
    assert names == {path.name for path in folder.iterdir()}
    for table in ("table1", "table2"):
        assert {f"{table}.csv", f"{table}.md", f"{table}.tex"} <= names
    for figure in ("figure1", "figure3", "figure4", "figure5"):
        assert {f"{figure}.png", f"{figure}.pdf"} <= names
        assert (folder / f"{figure}.png").stat().st_size < 150_000
    assert {"report.html", "beside_paper.csv"} <= names


def test_a_second_time_gives_the_same_bytes(built, runs, tmp_path):
    folder, paths = built
    again = report.build_report("mini", tmp_path, runs)
    assert [path.name for path in again] == [path.name for path in paths]
    different = [path.name for path in again if path.read_bytes() != (folder / path.name).read_bytes()]
    assert different == []


def test_no_model_and_no_torch_is_loaded(runs, tmp_path):
    code = (
        "import sys; from diffclip import report; "
        f"report.read('mini', {str(runs / 'results')!r}); "
        "heavy = {'torch', 'timm', 'diffclip.model'} & set(sys.modules); sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    root = Path(report.__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr


class _Page(HTMLParser):
    """Collects what a page refers to, and checks that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.images, self.rows = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.images += [attributes] * (tag == "img")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file(page):
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert all(link.startswith(("data:image/", "#")) for link in parser.links)
    assert {link[1:] for link in parser.links if link.startswith("#")} <= set(parser.ids)
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"@import|url\(|<script|<link", page)
    assert len(page.encode()) < 3_000_000


def test_the_page_can_be_heard(page):
    parser = _Page()
    parser.feed(page)
    assert '<html lang="en">' in page
    assert len(parser.images) == 4
    assert all(len(image["alt"]) > 60 and "CLIP" in image["alt"] for image in parser.images)
    assert page.count("<caption>") >= 5 and 'scope="row"' in page


def test_the_page_says_what_is_generated_and_counts_verdicts(page, runs):
    assert "The data here is generated." in page and "generated corpus for CC3M" in page
    pairs = pd.read_csv(runs / "results" / "comparisons.csv").query("model == 'diffclip'")
    pairs = pairs[~pairs["metric"].isin(["recall@1", "recall@10"])]
    pairs = pairs[(pairs["task"] != "zero_shot_ood") | (pairs["paper_name"] != "ImageNet")]  # zero_shot's, once
    counts = pairs["verdict"].value_counts()
    sentence = f"DiffCLIP is better than CLIP beyond noise in {counts['improvement']} of {len(pairs)} comparisons here"
    assert sentence in " ".join(page.split())
    assert f"worse in {counts['decline']}, and within noise in {counts['within noise']}" in " ".join(page.split())


def test_the_page_names_the_runs(page):
    for words in ("cc3m-clip-seed0", "generated corpus in the place of CC3M", "8,000", "2026-01-02", "torch 2.11.0"):
        assert words in page
    assert "&lt;x86&amp;64&gt;" in page  # and escapes what they say


def test_missing_parts_are_named_with_their_command(page):
    text = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "Table 3" not in text  # nobody has answered POPE's questions
    assert "Figure 2, which is drawn from the models themselves, has no results" in text and "--only 07_figure2" in text


def test_guessing_stands_beside_the_baseline(page):
    assert "Above guessing, below perfect" in page and "do not say what guessing would score" not in page
    row = re.search(r"<tr><td>Few-shot.*?</tr>", page, re.DOTALL)[0]
    assert '<td class="number">20.0</td>' in row


def test_what_was_evaluated_besides_is_listed(runs):
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    other = rows.iloc[:1].assign(model="ViT-B-32", pretraining="laion<2b>", value=12.34)
    results = report.from_frames(pd.concat([rows, other]), None, "mini")
    text = page_module.render(results, [], report.beside_paper(results), [], runs)
    assert "ViT-B-32" in text and "laion&lt;2b&gt;" in text and "12.3 \u00b1" in text


def test_holms_correction_is_counted(runs):
    rows = synthetic_results.numbers(models=("clip", "diffclip"))
    pairs = synthetic_results.comparisons(rows)
    pairs = pairs.assign(p_holm=1.0)
    gains = pairs.index[(pairs["verdict"] == "improvement") & (pairs["task"] == "few_shot")]
    pairs.loc[gains[:2], "p_holm"] = 0.01
    results = report.from_frames(rows, pairs, "mini")
    sentences = " ".join(page_module.headline(results, report.beside_paper(results)))
    assert "2 of the improvements and 0 of the declines remain" in sentences


def test_half_the_results_give_half_the_report(tmp_path):
    results = synthetic_results.write(tmp_path, models=("clip", "diffclip"))
    for file in results.iterdir():
        if file.stem not in ("few_shot", "zero_shot_ood", "comparisons"):
            file.unlink()
    out = tmp_path / "out"
    names = {path.name for path in report.build_report("mini", out, results.parent)}
    wanted = {"table1.csv", "table1.md", "table1.tex", "figure3.png", "figure3.pdf", "beside_paper.csv", "report.html"}
    assert names >= wanted and not {"table2.csv", "figure4.png", "figure5.png"} & names
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "--only 10_figure5_variants" in text and "--only 06_table2_retrieval" in text
    assert "A dash: not evaluated yet (notebook 05_table1_classification)" in text


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(report.ResultsError, match="diffclip reproduce --scale mini"):
        report.build_report("mini", tmp_path / "out", tmp_path)
    results = tmp_path / "runs" / "mini" / "results"
    results.mkdir(parents=True)
    rows = synthetic_results.numbers(models=("clip",)).query("task == 'zero_shot'").assign(task="speed")
    rows.to_csv(results / "speed.csv", index=False)
    with pytest.raises(report.ResultsError, match="none of the report's tables and figures"):
        report.build_report("mini", tmp_path / "out", tmp_path / "runs" / "mini")
    assert not (tmp_path / "out").exists()


def test_figure_2_is_taken_from_the_folder(built, runs, tmp_path):
    picture = (built[0] / "figure1.png").read_bytes()
    (tmp_path / "figure2.png").write_bytes(picture)
    results = report.read("mini", runs / "results")
    text = page_module.render(results, [], report.beside_paper(results), [], tmp_path)
    assert page_module.data_uri(picture, "image/png") in text
    assert "07_figure2_attention_maps" not in text


def test_an_unreadable_config_is_named(runs, tmp_path):
    (tmp_path / "cc3m-clip-seed0").mkdir()
    (tmp_path / "cc3m-clip-seed0" / "config.json").write_text("{", encoding="utf-8")
    assert build._runs(tmp_path) == [{"name": "cc3m-clip-seed0 (its config.json cannot be read)"}]


def test_beside_paper_holds_every_comparison_that_we_have(built):
    table = pd.read_csv(built[0] / "beside_paper.csv")
    assert set(table["source"]) == {"table1", "table2", "figure1", "figure3", "figure4", "figure5"}
    assert (table["relation"] == "takes its place").all()
    assert table[["reported_clip", "clip", "difference", "low", "high"]].notna().all().all()
