"""The notebooks as a course: what each teaches, how long it takes, and in which order a workshop goes through them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pandas as pd

from diffclip.environment import ROOT


@dataclass(frozen=True)
class Chapter:
    """A notebook: its file's stem, what a reader finds there, the figure or table of the paper it rebuilds, and how long
    reading it takes. `run_minutes` is what it took at mini on two cores; a recorded time is preferred (see `overview`)."""

    name: str
    about: str
    paper: str
    read_minutes: int
    run_minutes: float


CHAPTERS = (
    Chapter("00_start_here", "the machine, the scales, the map", "", 10, 0.3),
    Chapter("01_attention_theory", "why subtract one attention map from another", "section 3", 40, 0.4),
    Chapter("02_models", "the two towers, the four variants, their budget", "sections 3 and 4.1", 30, 0.4),
    Chapter("03_captions", "what the models learn from", "section 4.1", 20, 0.5),
    Chapter("04_training", "the recipe, and both models trained", "section 4.1", 30, 1.5),
    Chapter("05_table1_classification", "linear probes and few-shot on nine sets", "table 1", 20, 5.8),
    Chapter("06_table2_retrieval", "finding images by caption, captions by image", "table 2", 15, 1.0),
    Chapter("07_figure2_attention_maps", "where the models look, and scored against masks", "figure 2", 25, 1.0),
    Chapter("08_figure3_robustness", "zero-shot under four distribution shifts", "figure 3", 15, 1.0),
    Chapter("09_figure4_fine_grained", "pairs that differ in exactly one respect", "figure 4", 15, 0.5),
    Chapter("10_figure5_variants", "the dynamic lambda, and one tower only", "figure 5", 20, 5.0),
    Chapter("11_figure1_summary", "everything in one picture, with verdicts", "figure 1", 15, 0.3),
)
"""The one place for the minutes: filled by hand from a run at mini, and used only where nothing was recorded."""


def recorded_seconds(name: str, scale: str) -> tuple[float, str] | None:
    """(seconds, where) of a notebook at `scale`: the longest run on this machine, for one that finds its models trained is
    quick, else as committed; None if neither is known."""
    from diffclip.scales import get_scale

    try:
        state = json.loads((get_scale(scale).runs_root / "notebooks" / "state.json").read_text(encoding="utf-8"))
        return float(state[name].get("longest", state[name]["seconds"])), "here"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never run here, or the file is damaged: it is only a note
    try:
        notes = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"]["diffclip"]
        return (float(notes["seconds"]), "as committed") if notes.get("scale") == scale else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def overview(scale: str = "mini") -> pd.DataFrame:
    """One row a notebook: what it is about, what of the paper it rebuilds, minutes to read and to run at `scale`.

    Minutes to run are those recorded here, else those noted in the committed notebook, else, at mini, those of `CHAPTERS`.
    """
    rows = []
    for chapter in CHAPTERS:
        found = recorded_seconds(chapter.name, scale)
        if found is None and scale == "mini":
            found = 60 * chapter.run_minutes, "estimate"
        seconds, where = found or (math.nan, "not run yet")
        rows.append((chapter.name, chapter.about, chapter.paper, chapter.read_minutes, round(seconds / 60, 1), where))
    columns = ["notebook", "about", "rebuilds", "minutes to read", "minutes to run", "timed"]
    return pd.DataFrame(rows, columns=columns)
