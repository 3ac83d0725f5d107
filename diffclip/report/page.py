"""The report's page: one HTML file that needs no other file and no network, for a screen or a printer."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from .. import __version__, reported, style
from ..reported import AVERAGE
from . import tables
from .results import MMVP_ALL, PAIR, Difference, Results, mmvp_patterns, paper, tally
from .tables import TASK_TITLES, interval, signed

ORDER = ("figure1", "table1", "table2", "figure2", "figure3", "figure4", "figure5", "table3")
SETS = {  # task -> the sets of the paper's tables
    task: [name for name in names if name != AVERAGE]
    for source in ("table1", "table2", "figure3")
    for task, names in reported.CONTENTS[source].items()
}
SETS["zero_shot_ood"].remove("ImageNet")  # the base set is zero_shot's already
SUMMARY = (  # what is counted: task, metric
    ("linear_probe", "accuracy"),
    ("few_shot", "accuracy"),
    ("image_retrieval", "recall@5"),
    ("text_retrieval", "recall@5"),
    ("zero_shot", "accuracy"),
    ("zero_shot_ood", "accuracy"),
    ("mmvp_vlm", "accuracy"),
)


def render(results: Results, built: list, beside: pd.DataFrame, runs: list[dict], folder: Path) -> str:
    """The page as text. built: build.Built parts in order; beside: build.beside_paper; runs: configurations of the runs;
    folder: where figure 2, which other code draws, is looked for.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    rows, total = summary(results)
    return environment.from_string(PAGE).render(
        css=Markup(CSS),
        results=results,
        version=__version__,
        headline=headline(results, beside),
        summary=rows,
        total=total,
        parts=sorted(
            [*map(_part, built), _figure2(folder, results.origin)], key=lambda part: ORDER.index(part["name"])
        ),
        beside=_beside_rows(beside),
        chance=_chance_rows(results),
        also=_also_rows(results),
        runs=[_run(config) for config in runs],
        marks=style.VERDICT_MARKS,
        colours=style.VERDICT_COLOURS,
    )


def summary(results: Results) -> tuple[list[dict], dict]:
    """Counts of verdicts, a row for each task and corpus (`task`, `corpus`, `better`, `noise`, `worse`, and the paper's
    signs in words), and their sum. Averages are not counted: they repeat their sets.
    """
    rows = []
    for task, metric in SUMMARY:
        for pretraining in results.pretrainings(task, models=PAIR):
            here, theirs = (tally(_differences(origin, pretraining, task, metric)) for origin in (results, paper()))
            if here.total:
                words = (
                    f"{theirs.better} above, {theirs.worse} below, of {theirs.total}"
                    if theirs.total
                    else "not reported"
                )
                row = {
                    "task": TASK_TITLES[task],
                    "corpus": results.corpus(pretraining),
                    "paper": words,
                    "of": here.total,
                }
                rows.append(row | {"better": here.better, "noise": here.undecided, "worse": here.worse})
    return rows, {column: sum(row[column] for row in rows) for column in ("better", "noise", "worse", "of")}


def _differences(results: Results, pretraining: str, task: str, metric: str) -> list[Difference]:
    """DiffCLIP's differences on the sets of the paper (all patterns of MMVP), averages left out."""
    names = mmvp_patterns(results.numbers) if task == "mmvp_vlm" else dict.fromkeys(SETS[task])
    found = [results.difference(pretraining, "DiffCLIP", task, name, metric) for name in names]
    return [difference for difference in found if difference is not None]


def headline(results: Results, beside: pd.DataFrame) -> list[str]:
    """What the numbers say, in sentences made of them."""
    _, total = summary(results)
    better, worse, noise, of = (total[column] for column in ("better", "worse", "noise", "of"))
    first = (
        f"DiffCLIP is better than CLIP beyond noise in {better} of {of} comparisons here, worse in {worse}, and within "
        f"noise in {noise}. About {0.05 * of:.1f} of {of} would be marked either way if there were no difference at all."
    )
    sentences = [first]
    strict = [
        difference
        for task, metric in SUMMARY
        for pretraining in results.pretrainings(task, models=PAIR)
        for difference in _differences(results, pretraining, task, metric)
        if difference.p_holm is not None and difference.p_holm < 0.05 and difference.verdict != "within noise"
    ]
    if results.comparisons["p_holm"].notna().any():
        up = sum(difference.value > 0 for difference in strict)
        sentences.append(
            f"After Holm's correction over all the comparisons of a task, {up} of the improvements and {len(strict) - up} of "
            "the declines remain."
        )
    mine = beside[(beside["model"] == "DiffCLIP") & ~beside["source"].isin(["figure1", "figure5"])]
    again = (mine["task"] == "zero_shot_ood") & (mine["in_place_of"] == "ImageNet")  # it is in table 2 already
    mine = mine[(mine["in_place_of"] != AVERAGE) & ~again]
    counts = mine["direction"].value_counts()
    same, opposite = int(counts.get("same", 0)), int(counts.get("opposite", 0))
    if same + opposite:
        sentences.append(
            f"Of the comparisons decided here that the paper reports with a difference, {same} point the way the paper's do "
            f"and {opposite} the other way."
        )
    else:
        sentences.append("No comparison that the paper reports with a difference is decided here.")
    return sentences


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _part(one) -> dict:
    part = {"name": one.part.name, "title": one.part.title, "missing": _code(one.missing), "table": None, "images": []}
    if one.table is not None:
        part["table"] = Markup(one.table.to_html())
    if one.figure is not None:
        alt = f"{one.figure.get_suptitle()} {one.part.about}".replace("\n", " ")
        part["images"] = [{"source": data_uri(style.render(one.figure, "svg"), "image/svg+xml"), "alt": alt}]
    return part


def _figure2(folder: Path, scale: str) -> dict:
    """Figure 2 and its companions, as drawn by notebook 07 into the same folder."""
    images = [
        {
            "source": data_uri(file.read_bytes(), "image/png"),
            "alt": f"Relevance of image regions to a text, for CLIP and DiffCLIP ({file.stem}).",
        }
        for file in sorted(folder.glob("figure2*.png"))
    ]
    missing = None
    if not images:
        missing = tables.missing(
            "Figure 2, which is drawn from the models themselves,", "07_figure2_attention_maps", scale
        )
    return {
        "name": "figure2",
        "title": "Figure 2: where the models look",
        "missing": _code(missing),
        "table": None,
        "images": images,
    }


def _code(text: str | None) -> Markup | None:
    """A message for people, with `commands` set as code."""
    return None if text is None else Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _beside_rows(beside: pd.DataFrame) -> list[dict]:
    rows = []
    for row in beside[~beside["source"].isin(["figure1"])].to_dict("records"):
        known = {key: value for key, value in row.items() if not pd.isna(value)}
        rows.append(
            {
                "source": row["source"].replace("table", "Table ").replace("figure", "Figure "),
                "pretraining": row["pretraining"],
                "task": TASK_TITLES[row["task"]],
                "in_place_of": row["in_place_of"],
                "dataset": row["dataset"],
                "model": row["model"],
                "reported": signed(row["reported_difference"]),
                "difference": signed(known["difference"]) if "difference" in known else "\u2013",
                "interval": interval(known["low"], known["high"]) if "low" in known else "",
                "verdict": known.get("verdict", ""),
                "direction": known.get("direction", ""),
            }
        )
    return rows


def _chance_rows(results: Results) -> list[dict]:
    """CLIP against guessing, a row a set; empty if the results do not say what guessing scores."""
    rows = results.numbers[(results.numbers["model"] == "CLIP") & results.numbers["chance"].notna()]
    return [
        {
            "task": TASK_TITLES.get(row["task"], row["task"]),
            "dataset": row["dataset"],
            "corpus": results.corpus(row["pretraining"]),
            "metric": row["metric"],
            "n": "" if pd.isna(row["n"]) else f"{int(row['n']):,}",
            "chance": f"{row['chance']:.1f}",
            "clip": f"{row['value']:.1f}",
        }
        for row in rows.to_dict("records")
        if row["dataset"] not in (AVERAGE, MMVP_ALL)
    ]


def _also_rows(results: Results) -> list[dict]:
    """What was evaluated besides: a row a number."""
    return [
        {
            **{column: str(row[column]) for column in ("model", "pretraining", "task", "dataset", "metric")},
            "value": f"{row['value']:.1f}" + ("" if pd.isna(row["stderr"]) else f" \u00b1 {row['stderr']:.1f}"),
        }
        for row in results.also.to_dict("records")
    ]


def _run(config: dict) -> dict:
    """What a reader wants to know of a run, from its config.json."""
    recipe, corpus, sessions = (config.get(key) or {} for key in ("recipe", "corpus_fingerprint", "sessions"))
    last = sessions[-1] if sessions else {}
    versions = [f"{name} {last[name]}" for name in ("python", "torch", "timm", "numpy") if name in last]
    return {
        "name": config["name"],
        "corpus": corpus.get("display_name", config.get("corpus", "")),
        "pairs": f"{corpus['pairs']:,}" if "pairs" in corpus else "",
        "epochs": recipe.get("epochs", ""),
        "batch": recipe.get("batch_size", ""),
        "started": str(sessions[0].get("started", ""))[:10] if sessions else "",
        "device": last.get("device", ""),
        "versions": ", ".join(versions),
    }


CSS = """
:root { --ink: #1f2933; --faint: #5b6470; --line: #d9dee4; --tint: #f6f4ee; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: .4rem 0 .8rem; }
a { color: #1d5a96; }
nav { margin: 1.2rem 0 0; font-size: .92rem; line-height: 2; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
.lead { color: var(--faint); margin: 0 0 1rem; }
.notice { background: var(--tint); border-left: 4px solid #b9a66b; padding: .7rem 1rem; margin: 1rem 0; }
.missing { border: 1px dashed #9aa5b1; padding: .7rem 1rem; color: var(--faint); }
.note { font-size: .85rem; color: var(--faint); max-width: 62rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin: 0 0 1rem; width: 100%; }
caption { text-align: left; font-weight: 600; padding: .5rem 0 .3rem; }
th, td { padding: .22rem .45rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid #9aa5b1; vertical-align: bottom; white-space: normal; font-weight: 600; }
thead th[scope=colgroup] { text-align: center; border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 400; }
tr.first > * { border-top: 1px solid var(--line); }
tr.block > th { font-weight: 600; border-top: 1px solid #9aa5b1; padding-top: .5rem; }
tr.interval td { font-size: .72rem; }
.table tbody th[rowspan] { white-space: normal; width: 7.5rem; vertical-align: top; }
.table thead th:nth-child(-n+2):not([scope=colgroup]) { text-align: left; }
tr.total > * { border-top: 1px solid #9aa5b1; font-weight: 600; }
td small { color: var(--faint); }
.table table:first-of-type { background: var(--tint); }
table.words td, table.words th { text-align: left; }
table.words td.number, table.words th.number { text-align: right; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
code { background: #f1f3f5; padding: .1em .3em; border-radius: 3px; font-size: .9em; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; } h2, h3, caption { break-after: avoid; } figure, tr, .notice { break-inside: avoid; }
  h2 { margin-top: 1.2rem; } figure img { width: auto; max-width: 100%; max-height: 160mm; margin: 0 auto; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; break-inside: avoid; } details table { break-inside: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DiffCLIP reproduced: scale {{ results.origin }}</title>
<style>{{ css }}</style>
</head>
<body>
<header>
<h1>DiffCLIP reproduced, at scale {{ results.origin }}</h1>
<p class="lead">Every table and figure of the paper (arXiv 2503.06626), computed anew, beside the paper's own numbers.</p>
{% if results.generated %}
<p class="notice"><strong>The data here is generated.</strong> Models were trained on generated scenes and tested on
generated sets (and on handwritten digits). A set that takes the place of one of the paper's bears its own name and says
whose place it takes. Levels cannot be compared with the paper's; the question that can be asked is whether DiffCLIP does
better than CLIP under the same conditions.</p>
{% endif %}
<nav aria-label="Contents">
<a href="#summary">Summary</a>
{% for part in parts %}<a href="#part-{{ part.name }}">{{ part.title.split(":")[0] }}</a>
{% endfor %}
<a href="#beside">All comparisons</a> <a href="#chance">Guessing</a> <a href="#provenance">Provenance</a>
</nav>
</header>
<main>
<h2 id="summary">Summary</h2>
{% for sentence in headline %}<p>{{ sentence }}</p>
{% endfor %}
<div class="scroll"><table class="words">
<caption>DiffCLIP against CLIP, counted in sets (or patterns); the paper's column counts signs, since it gives no errors</caption>
<thead><tr><th scope="col">Task</th><th scope="col">Trained on</th>
{% for verdict in ("improvement", "within noise", "decline") %}
<th scope="col" class="number" style="color:{{ colours[verdict] }}">{{ marks[verdict] }}
{{ {"improvement": "better", "decline": "worse"}.get(verdict, verdict) }}</th>
{% endfor %}
<th scope="col" class="number">of</th><th scope="col">Paper, real data</th></tr></thead>
<tbody>
{% for row in summary %}
<tr class="first"><th scope="row">{{ row.task }}</th><td>{{ row.corpus }}</td><td class="number">{{ row.better }}</td>
<td class="number">{{ row.noise }}</td><td class="number">{{ row.worse }}</td><td class="number">{{ row.of }}</td>
<td>{{ row.paper }}</td></tr>
{% endfor %}
<tr class="total"><th scope="row">Together</th><td></td><td class="number">{{ total.better }}</td>
<td class="number">{{ total.noise }}</td><td class="number">{{ total.worse }}</td><td class="number">{{ total.of }}</td><td></td></tr>
</tbody></table></div>
{% for part in parts %}
<h2 id="part-{{ part.name }}">{{ part.title }}</h2>
{% if part.missing %}
<p class="missing">{{ part.missing }}</p>
{% elif part.table %}
<div class="scroll">{{ part.table }}</div>
{% endif %}
{% for image in part.images %}
<figure><img src="{{ image.source }}" alt="{{ image.alt }}"></figure>
{% endfor %}
{% endfor %}
<h2 id="beside">All comparisons, beside the paper's</h2>
<p>Differences from CLIP in points. The two columns answer different questions wherever a set takes another's place: hold their
directions against each other, not their sizes.</p>
<details><summary>{{ beside | length }} comparisons</summary>
<div class="scroll"><table class="words">
<thead><tr><th scope="col">Part</th><th scope="col">Model</th><th scope="col">Task</th><th scope="col">Trained for</th>
<th scope="col">The paper's set</th><th scope="col" class="number">Paper</th><th scope="col">Set here</th>
<th scope="col" class="number">Here</th><th scope="col">95 % interval</th><th scope="col">Verdict</th><th scope="col">Direction</th></tr></thead>
<tbody>
{% for row in beside %}
<tr><td>{{ row.source }}</td><td>{{ row.model }}</td><td>{{ row.task }}</td><td>{{ row.pretraining }}</td>
<td>{{ row.in_place_of }}</td><td class="number">{{ row.reported }}</td><td>{{ row.dataset }}</td>
<td class="number">{{ row.difference }}</td><td>{{ row.interval }}</td>
<td style="color:{{ colours.get(row.verdict, 'inherit') }}">{{ marks.get(row.verdict, "") }} {{ row.verdict }}</td>
<td>{{ row.direction }}</td></tr>
{% endfor %}
</tbody></table></div></details>
<h2 id="chance">Above guessing, below perfect</h2>
{% if chance %}
<p>A task says something only if the baseline is well above guessing and well below 100 %.</p>
<details><summary>{{ chance | length }} scores of CLIP</summary>
<div class="scroll"><table class="words">
<thead><tr><th scope="col">Task</th><th scope="col">Set</th><th scope="col">Trained on</th><th scope="col">Metric</th>
<th scope="col" class="number">Questions</th><th scope="col" class="number">Guessing, %</th><th scope="col" class="number">CLIP, %</th></tr></thead>
<tbody>
{% for row in chance %}
<tr><td>{{ row.task }}</td><td>{{ row.dataset }}</td><td>{{ row.corpus }}</td><td>{{ row.metric }}</td>
<td class="number">{{ row.n }}</td><td class="number">{{ row.chance }}</td><td class="number">{{ row.clip }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% else %}
<p class="missing">These results do not say what guessing would score; evaluate again to have it recorded.</p>
{% endif %}
{% if also %}
<h2 id="also">Also evaluated</h2>
<p>Other models and sets, which take no part in the tables and figures above.</p>
<details><summary>{{ also | length }} numbers</summary>
<div class="scroll"><table class="words">
<thead><tr><th scope="col">Model</th><th scope="col">Trained on</th><th scope="col">Task</th><th scope="col">Set</th>
<th scope="col">Metric</th><th scope="col" class="number">Value, %</th></tr></thead>
<tbody>
{% for row in also %}
<tr><td>{{ row.model }}</td><td>{{ row.pretraining }}</td><td>{{ row.task }}</td><td>{{ row.dataset }}</td>
<td>{{ row.metric }}</td><td class="number">{{ row.value }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
<h2 id="provenance">Provenance</h2>
{% if runs %}
<div class="scroll"><table class="words">
<caption>The models behind the numbers, from the config.json of each run</caption>
<thead><tr><th scope="col">Run</th><th scope="col">Corpus</th><th scope="col" class="number">Pairs</th>
<th scope="col" class="number">Epochs</th><th scope="col" class="number">Batch</th><th scope="col">Started</th>
<th scope="col">Device</th><th scope="col">Versions</th></tr></thead>
<tbody>
{% for run in runs %}
<tr><th scope="row">{{ run.name }}</th><td>{{ run.corpus }}</td><td class="number">{{ run.pairs }}</td>
<td class="number">{{ run.epochs }}</td><td class="number">{{ run.batch }}</td><td>{{ run.started }}</td><td>{{ run.device }}</td>
<td>{{ run.versions }}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p>No run was trained in this checkout at this scale.</p>
{% endif %}
<p class="note">The paper's numbers are data/paper/reported.csv of the repository: printed in the paper or measured from its
figures. Ours are the CSV files under data/runs/{{ results.origin }}/results. Made by diffclip {{ version }} with
<code>diffclip report --scale {{ results.origin }}</code>; the same results give the same page.</p>
</main>
</body>
</html>
"""
