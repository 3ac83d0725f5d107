"""MMVP-VLM: can a model tell apart two images that differ in one respect, given a statement about each?

Protocol: Tong et al. 2024 (Eyes Wide Shut), MMVP-VLM. Each pair has two images and two statements, the prompt is
"a photo of " + statement. For each statement a softmax over the two images picks one; the pair counts only if both
statements pick their own image, so guessing scores a quarter. A tie picks no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import EvaluationError, check_features

PROMPT = "a photo of "

PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)


@dataclass(frozen=True)
class MMVPResult:
    """Pair accuracy in [0, 1], and the pairs behind it."""

    accuracy: float  # over all pairs
    pattern_accuracy: dict[str, float]
    pattern_counts: dict[str, tuple[int, int]]  # right, all
    correct: Tensor  # [P] bool


def similarities(image_embed: Tensor, text_embed: Tensor) -> Tensor:
    """Cosines [P, 2 statements, 2 images] of image embeddings [P, 2, D] and statement embeddings [P, 2, D]."""
    if image_embed.shape != text_embed.shape or image_embed.ndim != 3 or image_embed.shape[1] != 2:
        raise EvaluationError(
            "MMVP needs two images and two statements a pair, as [pairs, 2, width] each, but the shapes are "
            f"{tuple(image_embed.shape)} and {tuple(text_embed.shape)}."
        )
    check_features(image_embed.flatten(0, 1), "the image embeddings")
    check_features(text_embed.flatten(0, 1), "the statement embeddings")
    return F.normalize(text_embed.float(), dim=-1) @ F.normalize(image_embed.float(), dim=-1).transpose(1, 2)


def score(scores: Tensor, patterns: Sequence[str] | None = None) -> MMVPResult:
    """Score pairs [P, 2 statements, 2 images]: statement i should prefer image i. `patterns`: one name a pair."""
    if scores.ndim != 3 or scores.shape[1:] != (2, 2):
        raise EvaluationError(f"MMVP scores should be [pairs, 2 statements, 2 images], not {tuple(scores.shape)}.")
    scores = check_features(scores.flatten(1), "the MMVP scores").view(-1, 2, 2)
    # The softmax over the images keeps their order, so comparing the scores gives the same answer exactly.
    correct = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    if patterns is None:
        patterns = ["all"] * len(correct)
    if len(patterns) != len(correct):
        raise EvaluationError(
            f"{len(patterns)} pattern names were given for {len(correct)} pairs; every pair needs one."
        )
    counts = {}
    for name in dict.fromkeys(patterns):
        chosen = torch.tensor([p == name for p in patterns])
        counts[name] = (int(correct.cpu()[chosen].sum()), int(chosen.sum()))
    return MMVPResult(
        accuracy=correct.double().mean().item(),
        pattern_accuracy={name: right / total for name, (right, total) in counts.items()},
        pattern_counts=counts,
        correct=correct,
    )
