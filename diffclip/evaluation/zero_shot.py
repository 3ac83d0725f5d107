"""Zero-shot classification: an image takes the class whose prompt embedding is nearest.

Protocol: Radford et al. 2021 (CLIP), section 3.1.4, as the LAION CLIP Benchmark computes it. A class embedding is the
normalised mean of the normalised embeddings of all prompt templates; the score is the cosine. Top-1 and top-5 accuracy
and the mean per-class recall are reported.

Ties, which matter only when a model has collapsed or a class is listed twice, go to the class listed first. A model
that embeds everything alike therefore answers the first class and scores what always answering that class scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import EvaluationError, accuracy, check_features, check_labels, check_top_k


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores as shares in [0, 1], and what each image contributed to them."""

    accuracy: dict[int, float]  # k -> top-k accuracy
    mean_per_class_recall: float
    prediction: Tensor  # [N] int64, the class answered
    rank: Tensor  # [N] int64, classes placed before the right one; 0 is a right answer
    labels: Tensor  # [N] int64

    @property
    def correct(self) -> Tensor:
        """[N] bool, right at top 1."""
        return self.rank == 0


def class_embeddings(prompt_embed: Tensor) -> Tensor:
    """Ensemble the prompts of each class: [C, T, D] (any norm) to unit vectors [C, D]."""
    if prompt_embed.ndim != 3:
        raise EvaluationError(
            f"Prompt embeddings should be [classes, templates, width], but the shape is {tuple(prompt_embed.shape)}."
        )
    check_features(prompt_embed.flatten(0, 1), "the prompt embeddings")
    return F.normalize(F.normalize(prompt_embed.float(), dim=-1).mean(1), dim=-1)


def logits(image_embed: Tensor, class_embed: Tensor) -> Tensor:
    """Cosine of each image [N, D] with each class [C, D]: [N, C]. Neither side needs to be normalised."""
    image_embed = check_features(image_embed, "the image embeddings")
    class_embed = check_features(class_embed, "the class embeddings", width=image_embed.shape[1])
    return F.normalize(image_embed, dim=-1) @ F.normalize(class_embed, dim=-1).T


def score(scores: Tensor, labels: Tensor | Sequence[int], ks: Sequence[int] = (1, 5)) -> ZeroShotResult:
    """Score class scores [N, C] against labels [N].

    Raises EvaluationError where labels and classes do not match, a score is not finite, or a k exceeds C.
    """
    scores = check_features(scores, "the class scores")
    labels = check_labels(labels, "the labels", len(scores), scores.shape[1]).to(scores.device)
    check_top_k(ks, scores.shape[1], "zero-shot classification")
    right = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > right) | ((scores == right) & before)).sum(1)
    return ZeroShotResult(
        accuracy={k: accuracy(rank < k, labels) for k in ks},
        mean_per_class_recall=accuracy(rank == 0, labels, mean_per_class=True),
        prediction=scores.argmax(1),
        rank=rank,
        labels=labels,
    )
