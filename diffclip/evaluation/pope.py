"""POPE: does a vision-language model see objects that are not there? Scoring of its yes/no answers only.

Protocol: Li et al. 2023 (Evaluating Object Hallucination). Six questions an image, three about objects that are there
and three about absent ones, which are drawn at random, by popularity or by co-occurrence ("adversarial"). An answer
whose first sentence holds the word "no" or "not" is a no; everything else is a yes, so that hedging and empty answers
count as yes. Yes is the positive class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checks import EvaluationError

STRATEGIES = ("random", "popular", "adversarial")

_SENTENCE_END = re.compile(r"[.!?\n]")
_NEGATION = re.compile(r"\b(no|not)\b", re.IGNORECASE)


@dataclass(frozen=True)
class POPEResult:
    """Shares in [0, 1]. A ratio without a denominator (the precision of a model that never says yes) is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    said_yes: np.ndarray  # [N] bool
    truth: np.ndarray  # [N] bool

    @property
    def correct(self) -> np.ndarray:
        """[N] bool."""
        return self.said_yes == self.truth


def says_yes(answer: str) -> bool:
    """Read one free-form answer."""
    first = _SENTENCE_END.split(answer.strip(), maxsplit=1)[0]
    return _NEGATION.search(first) is None


def score(answers: Sequence[str], labels: Sequence[str | bool]) -> POPEResult:
    """Score answers (free text) against labels ("yes"/"no" or booleans), one a question."""
    if len(answers) != len(labels) or len(answers) == 0:
        raise EvaluationError(
            f"POPE needs an answer to each question, but there are {len(answers)} answers and {len(labels)} questions."
        )
    return score_decisions([says_yes(a) for a in answers], [_truth(label) for label in labels])


def score_decisions(said_yes: Sequence[bool], truth: Sequence[bool]) -> POPEResult:
    """Score answers that have been read already: both [N] bool."""
    said, true = np.asarray(said_yes, dtype=bool), np.asarray(truth, dtype=bool)
    hits = int((said & true).sum())
    precision = hits / said.sum() if said.any() else 0.0
    recall = hits / true.sum() if true.any() else 0.0
    return POPEResult(
        accuracy=float((said == true).mean()),
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * hits / (said.sum() + true.sum())) if said.any() or true.any() else 0.0,
        yes_ratio=float(said.mean()),
        said_yes=said,
        truth=true,
    )


def _truth(label: str | bool) -> bool:
    if isinstance(label, (bool, np.bool_)):
        return bool(label)
    text = str(label).strip().lower()
    if text not in ("yes", "no"):
        raise EvaluationError(
            f"A POPE label should be yes or no, but one is {label!r}. Was a column of answers passed?"
        )
    return text == "yes"
