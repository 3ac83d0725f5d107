"""Checks shared by the protocols: they refuse what would cost an evaluation and yield a number without meaning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class EvaluationError(ValueError):
    """Something about the features, the labels or a benchmark makes an evaluation meaningless."""


def check_features(features: Tensor, name: str, count: int | None = None, width: int | None = None) -> Tensor:
    """Return `features` [N, D] as floating point of at least 32 bits, or say why they cannot be scored."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or 0 in features.shape:
        raise EvaluationError(
            f"{name} should be a matrix with a row an item, but its shape is {tuple(features.shape)}. "
            "Stack the embeddings to [items, width] first."
        )
    if count is not None and len(features) != count:
        raise EvaluationError(
            f"{name} has {len(features)} rows for {count} items. Every item needs exactly one row, in the same order: "
            "were the features extracted from another split?"
        )
    if width is not None and features.shape[1] != width:
        raise EvaluationError(
            f"{name} is {features.shape[1]} wide where {width} was expected. "
            "Features that are compared must come from the same model."
        )
    if not features.is_floating_point():
        features = features.float()
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    # The sum is finite only if every value is (or if opposite infinities were hidden in it, which gives NaN).
    if not torch.isfinite(features.sum(dtype=torch.float64)):
        rows = (~torch.isfinite(features)).any(1).nonzero().flatten()
        raise EvaluationError(
            f"{name} holds NaN or infinite values in {len(rows)} of {len(features)} rows (the first is row {rows[0]}). "
            "A diverged model or half-precision overflow does that; evaluate in float32 or pick an earlier checkpoint."
        )
    return features


def check_labels(
    labels: Tensor | Sequence[int], name: str, count: int | None = None, classes: int | None = None
) -> Tensor:
    """Return `labels` [N] as int64 in [0, classes), or say what does not fit."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1 or len(labels) == 0:
        raise EvaluationError(
            f"{name} should be a non-empty list of integers, but has type {labels.dtype} and shape "
            f"{tuple(labels.shape)}."
        )
    labels = labels.long()
    if count is not None and len(labels) != count:
        raise EvaluationError(f"{name} has {len(labels)} entries for {count} items; every item needs one.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "0 or more" if classes is None else f"0 to {classes - 1}, one for each of the {classes} classes"
        raise EvaluationError(
            f"{name} runs from {low} to {high}, but a label should be {limit}. "
            "The class list does not belong to these labels: check classnames.txt of the set."
        )
    return labels


def check_class_list(
    classnames: Sequence[str], templates: Sequence[str], labels: Tensor | Sequence[int], name: str
) -> None:
    """Refuse a classification set whose class list, prompt templates and labels do not belong together."""
    if not classnames:
        raise EvaluationError(f"{name} has no class names, so there is nothing to choose from. Add classnames.txt.")
    if not templates:
        raise EvaluationError(
            f"{name} has no prompt templates, so its class names cannot be turned into text. Add "
            "zeroshot_classification_templates.txt with a line a template, such as: a photo of a {c}."
        )
    blind = [t for t in templates if "{c}" not in t]
    if blind:
        raise EvaluationError(
            f"{name}: the prompt template {blind[0]!r} has no place for the class. Write {{c}} where its name "
            "should go."
        )
    check_labels(labels, f"the labels of {name}", classes=len(classnames))


def check_top_k(ks: Sequence[int], gallery: int, name: str) -> None:
    """Refuse a k for which every query would be a hit, or none."""
    for k in ks:
        if not 1 <= k <= gallery:
            raise EvaluationError(
                f"{name}: top {k} was asked for, but the gallery holds {gallery} items. "
                f"Choose k from 1 to {gallery}; at k = {gallery} every query is a hit."
            )


def accuracy(correct: Tensor, labels: Tensor, mean_per_class: bool = False) -> float:
    """Share of right answers in [0, 1]; with `mean_per_class` the mean over the classes present in `labels`."""
    correct = correct.double()
    if not mean_per_class:
        return correct.mean().item()
    total = torch.bincount(labels)
    hits = torch.bincount(labels, weights=correct)
    present = total > 0
    return (hits[present] / total[present]).mean().item()
