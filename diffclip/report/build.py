"""Everything at once: all tables and figures as files, and the page that shows them beside the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from .. import reported, style
from ..files import write_text
from ..paths import data_root, figures_root
from . import figures, page, tables
from .results import Results, ResultsError, read

SOURCES = ("table1", "table2", "table3", "figure3", "figure4", "figure5", "figure1")


@dataclass(frozen=True)
class Part:
    """A table or figure of the report: how it is made, and the words for who cannot see it."""

    name: str
    title: str
    make: Callable[[Results], tables.Table | Figure]
    about: str


PARTS = (
    Part("figure1", "Figure 1: the summary", figures.figure1, "Bars of CLIP and DiffCLIP over six groups of tasks."),
    Part("table1", "Table 1: linear probing and few-shot", tables.table1, ""),
    Part("table2", "Table 2: retrieval and zero-shot", tables.table2, ""),
    Part(
        "figure3",
        "Figure 3: robustness under shift",
        figures.figure3,
        "Bars of zero-shot accuracy on the base set, its four shifts and their average, for CLIP and DiffCLIP.",
    ),
    Part(
        "figure4",
        "Figure 4: fine-grained understanding",
        figures.figure4,
        "Radar charts of the pairs told apart for each visual pattern of MMVP, by CLIP and DiffCLIP.",
    ),
    Part(
        "figure5",
        "Figure 5: the variants",
        figures.figure5,
        "Bars of CLIP, DiffCLIP, DiffCLIP* and DiffCLIP-vision over six groups of tasks.",
    ),
    Part("table3", "Table 3: hallucination", tables.table3, ""),
)


@dataclass
class Built:
    """What came of a part: its rendering for the page, or why there is none."""

    part: Part
    table: tables.Table | None = None
    figure: Figure | None = None
    missing: str | None = None
    paths: list[Path] = field(default_factory=list)


def build_report(scale: str, folder: str | Path | None = None, runs: str | Path | None = None) -> list[Path]:
    """Rebuilds every table and figure of a scale from its tidy results, without any model, and returns the paths written.

    folder: where to, `figures/<scale>` by default. runs: the scale's runs and results, `data/runs/<scale>` by default.
    Tables go out as csv, md and tex, figures as png and pdf, the comparison with the paper as `beside_paper.csv` and all of
    it as `report.html`, one file that needs no other. The same results give the same bytes. A part without results is
    left out, and the page says which command makes it. Raises ResultsError if there is nothing at all to show.
    """
    folder = Path(folder) if folder is not None else figures_root(scale)
    runs = Path(runs) if runs is not None else data_root() / "runs" / scale
    results = read(scale, runs / "results")
    parts = [
        part for part in PARTS if part.name != "table3" or results.pretrainings("pope")
    ]  # POPE needs another model
    built = [_build(part, results, folder) for part in parts]
    if all(one.missing for one in built):
        raise ResultsError(
            f"The results of scale {scale!r} in {runs / 'results'} hold none of the report's tables and figures. "
            + built[0].missing
        )
    beside = beside_paper(results)
    paths = [path for one in built for path in one.paths]
    csv = beside.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    paths.append(write_text(folder / "beside_paper.csv", csv))
    text = page.render(results, built, beside, _runs(runs), folder)
    return [*paths, write_text(folder / "report.html", text)]


def beside_paper(results: Results) -> pd.DataFrame:
    """`reported.compare` over every table and figure of the paper that we have numbers for; `source` names it."""
    parts = [reported.compare(results, source).assign(source=source) for source in SOURCES]
    rows = pd.concat([part for part in parts if part["diffclip"].notna().any()])
    rows = rows[rows["diffclip"].notna()]
    return rows[["source", *(column for column in rows.columns if column != "source")]].reset_index(drop=True)


def _build(part: Part, results: Results, folder: Path) -> Built:
    try:
        made = part.make(results)
    except ResultsError as error:
        return Built(part, missing=str(error))
    if isinstance(made, tables.Table):
        return Built(part, table=made, paths=made.save(folder))
    return Built(part, figure=made, paths=style.save(made, folder / part.name))


def _runs(folder: Path) -> list[dict]:
    """The configurations of the runs beneath a folder, by name; one that cannot be read is passed over with its name."""
    configs = []
    for file in sorted(folder.glob("*/config.json")):
        try:
            configs.append({"name": file.parent.name, **json.loads(file.read_text(encoding="utf-8"))})
        except (ValueError, OSError):
            configs.append({"name": f"{file.parent.name} (its config.json cannot be read)"})
    return configs
