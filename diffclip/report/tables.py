"""Tables in the paper's form, the paper's own numbers above ours, and their renderings: csv, markdown, LaTeX, HTML."""

from __future__ import annotations

import html
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from .. import reported
from ..files import write_text
from ..reported import AVERAGE
from ..style import VERDICT_COLOURS, VERDICT_MARKS
from .results import BASELINE, REPORTED, Difference, Number, Results, ResultsError, Tally, finding, paper, tally

MINUS, NONE = "\u2212", "\u2013"
TASK_TITLES = {
    "linear_probe": "Linear probing",
    "few_shot": "Few-shot (5-way 5-shot)",
    "image_retrieval": "Image retrieval",
    "text_retrieval": "Text retrieval",
    "zero_shot": "Zero-shot",
    "zero_shot_ood": "Zero-shot under shift",
    "mmvp_vlm": "MMVP-VLM",
    "pope": "POPE",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of the grid, and the verdict that colours it."""

    text: str
    verdict: str | None = None


@dataclass(frozen=True)
class Section:
    """A grid under its own header.

    groups: (title, number of columns) above the columns. stand_for: the paper's set that each column takes the place of,
    "" where it is the same. rows: (pretraining, model, cells), or a string that heads the rows below it.
    """

    title: str
    groups: list[tuple[str, int]]
    columns: list[str]
    stand_for: list[str]
    rows: list[tuple[str, str, list[Cell]] | str]


@dataclass(frozen=True)
class Table:
    """A table of the report. `frame` holds its numbers, one a row, for computing with; the sections are for reading."""

    name: str
    title: str
    note: str
    sections: list[Section] = field(repr=False)
    frame: pd.DataFrame = field(repr=False)

    def to_csv(self) -> str:
        """The numbers of `frame`, one a row, to six decimals."""
        return self.frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")

    def to_markdown(self) -> str:
        """Pipe tables, one a section; markdown has no colours, the marks say it."""
        return "\n\n".join([f"**{_md(self.title)}**", *map(_md_section, self.sections), _md(self.note)]) + "\n"

    def to_latex(self) -> str:
        """A floating table for a document that uses the packages booktabs, graphicx and xcolor."""
        title, _, said = self.title.partition(". ")  # the document numbers its tables itself
        width = max(len(section.columns) for section in self.sections)
        lines = [
            "% Needs \\usepackage{booktabs,graphicx,xcolor}",
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{_tex(said)} [the paper's {_tex(title)}]. {_tex(self.note)}}}",
            f"\\label{{tab:{self.name}}}",
            "\\vspace{4pt}",
            "\\resizebox{\\textwidth}{!}{%",
            f"\\begin{{tabular}}{{ll{'c' * width}}}",
            "\\toprule",
        ]
        for i, section in enumerate(self.sections):
            lines += [*["\\midrule", "\\addlinespace"] * bool(i), *_tex_section(section, width)]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table*}"]) + "\n"

    def to_html(self) -> str:
        """A fragment that needs no style sheet; the report's page makes it prettier."""
        title, note = html.escape(self.title), html.escape(self.note)
        grids = "\n".join(map(_html_section, self.sections))
        return f'<section class="table" id="{self.name}">\n<h3>{title}</h3>\n{grids}\n<p class="note">{note}</p>\n</section>'

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `<name>.csv`, `.md` and `.tex` into `folder` and returns the paths."""
        renderings = {"csv": self.to_csv(), "md": self.to_markdown(), "tex": self.to_latex()}
        return [write_text(Path(folder) / f"{self.name}.{kind}", text) for kind, text in renderings.items()]


# --- what stands in the tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    task: str
    name: str  # of the paper's set
    metric: str
    head: str | None = None  # instead of the set's name


def table1(results: Results) -> Table:
    """Linear probing and few-shot on nine sets (the paper's table 1), the paper's numbers above ours."""
    blocks = {
        TASK_TITLES[task]: [Column(task, name, "accuracy") for name in names]
        for task, names in reported.CONTENTS["table1"].items()
    }
    groups = [("Accuracy, %", len(reported.CLASSIFICATION) + 1)]
    return _table("table1", "Table 1", "05_table1_classification", results, blocks, groups)


def table2(results: Results) -> Table:
    """Recall@5 in both directions on three sets, and many-class zero-shot accuracy (the paper's table 2)."""
    metrics = {"image_retrieval": "recall@5", "text_retrieval": "recall@5", "zero_shot": "accuracy"}
    columns = [
        Column(task, name, metrics[task]) for task, names in reported.CONTENTS["table2"].items() for name in names
    ]
    groups = [("Image retrieval, recall@5, %", 4), ("Text retrieval, recall@5, %", 4), ("Zero-shot, %", 1)]
    return _table("table2", "Table 2", "06_table2_retrieval", results, {"": columns}, groups)


def table3(results: Results) -> Table:
    """POPE: does a language model that sees through the encoder name absent objects (the paper's table 3)."""
    metrics = ("accuracy", "precision", "recall")
    kinds = reported.CONTENTS["table3"]["pope"]
    columns = [Column("pope", kind, metric, metric.capitalize()) for kind in kinds for metric in metrics]
    groups = [(f"{kind.capitalize()} absentees, %", len(metrics)) for kind in kinds]
    return _table("table3", "Table 3", None, results, {"": columns}, groups, digits=2)


def _table(
    name: str,
    title: str,
    notebook: str | None,
    results: Results,
    blocks: dict[str, list[Column]],
    groups: list[tuple[str, int]],
    digits: int = 1,
) -> Table:
    columns = [column for block in blocks.values() for column in block]
    pretrainings = results.pretrainings(*{column.task for column in columns})
    if not pretrainings:
        raise ResultsError(missing(title, notebook, results.origin))
    origins = [results] if results.is_paper else [paper(), results]
    sections = [_section(origin, blocks, groups, digits) for origin in origins]
    frame = pd.DataFrame([row for origin in origins for row in _frame_rows(name, origin, columns)])
    theirs, ours = (_tally(origin, pretrainings, columns) for origin in (paper(), results))
    said = finding(results, ours, theirs, "entries" if results.is_paper else "comparisons")
    return Table(name, f"{title}. {said}", _note(results, ours, frame, notebook), sections, frame)


def missing(title: str, notebook: str | None, scale: str) -> str:
    """What to say where results are missing."""
    if notebook is None:
        return f"{title} has no results at scale {scale} yet."
    return (
        f"{title} has no results at scale {scale} yet. Make them with "
        f"`diffclip reproduce --scale {scale} --only {notebook}`, then run `diffclip report --scale {scale}`."
    )


def _tally(results: Results, pretrainings: list[str], columns: list[Column]) -> Tally:
    """Over the sets themselves: an average repeats them and is not counted."""
    return tally(
        [
            results.difference(pretraining, "DiffCLIP", column.task, column.name, column.metric)
            for pretraining in pretrainings
            for column in columns
            if column.name != AVERAGE
        ]
    )


def _note(results: Results, ours: Tally, frame: pd.DataFrame, notebook: str | None) -> str:
    if results.is_paper:
        return "The paper's numbers as printed; the differences are coloured by their sign. The paper gives no errors."
    note = (
        "Paper: numbers as printed, differences coloured by their sign, no errors given. Here: \u00b1 is one standard error; "
        "\u25b2 and \u25bc mark a difference with p below 0.05 whose 95 % interval leaves out zero, \u2248 one within noise; "
        f"brackets hold the interval in points. Of {ours.total} such comparisons about {0.05 * ours.total:.1f} would be marked by chance alone."
    )
    if results.generated:
        note += (
            " Every set here is named in the place of the paper's set above it: the questions differ, so do the levels."
        )
    if frame.loc[frame["origin"] != REPORTED, "value"].isna().any():
        note += " A dash: not evaluated yet" + (f" (notebook {notebook})." if notebook else ".")
    return note


def _section(results: Results, blocks: dict[str, list[Column]], groups: list[tuple[str, int]], digits: int) -> Section:
    first = next(iter(blocks.values()))
    own = [results.stand_in(c.task, c.name) for c in first]
    pretrainings = results.pretrainings(*{c.task for columns in blocks.values() for c in columns})
    rows: list = []
    for title, columns in blocks.items():
        rows += [title] * bool(title)
        for pretraining in pretrainings:
            head = results.corpus(pretraining)
            for model in (BASELINE, "DiffCLIP"):
                numbers = [results.number(pretraining, model, c.task, c.name, c.metric) for c in columns]
                rows.append((head, model, [Cell(_number(number, digits)) for number in numbers]))
                head = ""
            differences = [results.difference(pretraining, "DiffCLIP", c.task, c.name, c.metric) for c in columns]
            rows.append(("", "difference", [_difference(d, digits) for d in differences]))
            if not results.is_paper:
                rows.append(("", "95 % interval", [_interval(d, digits) for d in differences]))
    return Section(
        results.label,
        groups,
        [c.head or name for c, name in zip(first, own, strict=True)],
        ["" if c.head or name == c.name else c.name for c, name in zip(first, own, strict=True)],
        rows,
    )


def _frame_rows(table: str, results: Results, columns: list[Column]) -> list[dict]:
    rows = []
    for pretraining in results.pretrainings(*{c.task for c in columns}):
        for column in columns:
            for model in (BASELINE, "DiffCLIP"):
                key = (pretraining, model, column.task, column.name, column.metric)
                number = results.number(*key) or Number(float("nan"))
                difference = results.difference(*key)
                rows.append(
                    {
                        "table": table,
                        "origin": results.origin,
                        "pretraining": results.corpus(pretraining),
                        "model": model,
                        "task": column.task,
                        "dataset": results.stand_in(column.task, column.name),
                        "in_place_of": column.name,
                        "metric": column.metric,
                        **vars(number),
                        "difference": difference.value if difference else None,
                        "low": difference.low if difference else None,
                        "high": difference.high if difference else None,
                        "verdict": difference.verdict if difference else None,
                    }
                )
    return rows


def _number(number: Number | None, digits: int) -> str:
    if number is None:
        return NONE
    error = "" if number.stderr is None else f" \u00b1 {number.stderr:.{digits}f}"
    return f"{number.value:.{digits}f}{error}"


def signed(value: float, digits: int = 1) -> str:
    """A number of points with its sign and a true minus; without a sign what rounds to zero: "+1.2", "-0.3", "0.0"."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval in points, "[-0.3, +1.2]"; a bound that rounds to zero keeps its sign, which decides the verdict."""
    ends = (f"{MINUS if end < 0 else '+'}{abs(end):.{digits}f}" for end in (low, high))
    return f"[{', '.join(ends)}]"


def _difference(difference: Difference | None, digits: int) -> Cell:
    if difference is None:
        return Cell(NONE)
    text = signed(difference.value, digits)
    if difference.verdict:
        return Cell(f"{text} {VERDICT_MARKS[difference.verdict]}", difference.verdict)
    return Cell(text, None if text[0].isdigit() else "improvement" if difference.value > 0 else "decline")


def _interval(difference: Difference | None, digits: int) -> Cell:
    if difference is None or difference.low is None:
        return Cell(NONE)
    return Cell(interval(difference.low, difference.high, digits), difference.verdict)


# --- renderings ----------------------------------------------------------------------------------------------------------


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _md_section(section: Section) -> str:
    heads = [_md(f"{c} (for {s})" if s else c) for c, s in zip(section.columns, section.stand_for, strict=True)]
    if len(section.groups) > 1:
        spans = [title.split(",")[0] for title, count in section.groups for _ in range(count)]
        heads = [f"{_md(span)}: {head}" for span, head in zip(spans, heads, strict=True)]
    lines = [["Pretraining", "Model", *heads], ["---", "---", *["---:"] * len(heads)]]
    for row in section.rows:
        if isinstance(row, str):
            lines.append([f"**{_md(row)}**", "", *[""] * len(heads)])
        else:
            lines.append([_md(row[0]), _md(row[1]), *(_md(cell.text) for cell in row[2])])
    return f"*{_md(section.title)}*\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    MINUS: "$-$",
    NONE: "--",
    "\u00b1": "$\\pm$",
    "\u25b2": "$\\uparrow$",
    "\u25bc": "$\\downarrow$",
    "\u2248": "$\\approx$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    value, sign, error = cell.text.partition(" \u00b1 ")
    text = f"{_tex(value)}{{\\scriptsize $\\pm${error}}}" if sign else _tex(cell.text)
    if cell.text.startswith("["):
        text = f"{{\\scriptsize {text}}}"
    if cell.verdict:
        return f"\\textcolor[HTML]{{{VERDICT_COLOURS[cell.verdict].lstrip('#')}}}{{{text}}}"
    return text


def _tex_row(cells: list[str], width: int) -> str:
    return " & ".join([*cells, *[""] * (width + 2 - len(cells))]) + " \\\\"


def _tex_section(section: Section, width: int) -> list[str]:
    lines = [f"\\multicolumn{{{width + 2}}}{{l}}{{\\textbf{{{_tex(section.title)}}}}} \\\\", "\\midrule"]
    spans = [f"\\multicolumn{{{count}}}{{c}}{{{_tex(title)}}}" for title, count in section.groups]
    unused = width - sum(count for _, count in section.groups)
    lines.append(" & ".join(["", "", *spans, *[""] * unused]) + " \\\\")
    start = 3
    for _, count in section.groups:
        lines.append(f"\\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    lines.append(_tex_row(["Pretraining", "Model", *map(_tex, section.columns)], width))
    if any(section.stand_for):
        heads = [f"{{\\scriptsize {_tex(name)}}}" if name else "" for name in section.stand_for]
        lines.append(_tex_row(["", "{\\scriptsize in place of}", *heads], width))
    for row in section.rows:
        if isinstance(row, str):
            lines += ["\\midrule", f"\\multicolumn{{{width + 2}}}{{l}}{{\\textit{{{_tex(row)}}}}} \\\\"]
        else:
            lines += ["\\midrule"] * bool(row[0]) + [
                _tex_row([_tex(row[0]), _tex(row[1]), *map(_tex_cell, row[2])], width)
            ]
    return lines


def _html_section(section: Section) -> str:
    width = len(section.columns) + 2
    spans = "".join(
        f'<th colspan="{count}" scope="colgroup">{html.escape(title)}</th>' for title, count in section.groups
    )
    heads = "".join(
        f'<th scope="col">{html.escape(name)}'
        + (f'<br><small style="font-weight:normal">for {html.escape(other)}</small>' if other else "")
        + "</th>"
        for name, other in zip(section.columns, section.stand_for, strict=True)
    )
    lines = [
        f"<table><caption>{html.escape(section.title)}</caption>",
        f'<thead><tr><td colspan="2"></td>{spans}</tr>',
        f'<tr><th scope="col">Pretraining</th><th scope="col">Model</th>{heads}</tr></thead><tbody>',
    ]
    for i, row in enumerate(section.rows):
        if isinstance(row, str):
            title = html.escape(row)
            lines.append(f'<tr class="block"><th colspan="{width}" style="text-align:left">{title}</th></tr>')
            continue
        first, second, cells = row
        head = ""
        if first:  # spans the rows below it that have no head of their own
            below = itertools.takewhile(
                lambda other: not isinstance(other, str) and not other[0], section.rows[i + 1 :]
            )
            head = f'<th scope="rowgroup" rowspan="{1 + len(list(below))}">{html.escape(first)}</th>'
        kind = "first" if first else "interval" if "interval" in second else "more"
        body = "".join(map(_html_cell, cells))
        lines.append(f'<tr class="{kind}">{head}<th scope="row">{html.escape(second)}</th>{body}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _html_cell(cell: Cell) -> str:
    value, sign, error = cell.text.partition(" \u00b1 ")
    text = f"{value}<small>&nbsp;\u00b1&nbsp;{error}</small>" if sign else html.escape(cell.text)
    if not cell.verdict:
        return f"<td>{text}</td>"
    return f'<td style="color:{VERDICT_COLOURS[cell.verdict]}" title="{cell.verdict}">{text}</td>'
