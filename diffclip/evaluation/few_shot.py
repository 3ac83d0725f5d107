"""Few-shot classification: many small tasks, solved by the nearest class prototype.

Protocol: El Banani et al. 2023, after SimpleShot (Wang et al. 2019). An episode draws 5 classes, 5 support images of
each from train and 6 query images of each from test. Features are centred on the support mean and L2-normalised, a
prototype is the mean of its class, and a query takes the nearest prototype in Euclidean distance. 5 000 episodes; the
mean accuracy and the standard deviation over episodes (with n - 1) are reported.

The original draws and scores one episode after another. Here all episodes are drawn at once, and scored many at a time
without centring or normalising a copy of the features: with m the support mean and p a prototype,

    ||q - m||^2 = ||q||^2 - 2 q.m + ||m||^2          (q - m).p = q.p - m.p

so a gathered query needs one product with [prototypes, m]. To keep these differences accurate in float32, the mean of
all features is removed first; it cancels in every episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import EvaluationError, check_features, check_labels

EPISODES, WAYS, SHOTS, QUERIES = 5000, 5, 5, 6
_BLOCK = 2_000_000  # gathered feature values held at a time: 8 MB, which mostly stay in cache


@dataclass(frozen=True)
class Episodes:
    """Which images each episode uses: rows of train and of test, grouped by class."""

    support: Tensor  # [E, ways, shots] int64
    query: Tensor  # [E, ways, queries] int64


@dataclass(frozen=True)
class FewShotResult:
    """Mean and standard deviation over episodes as shares in [0, 1], and every answer behind them."""

    mean: float
    std: float
    accuracy: Tensor  # [E] float64
    correct: Tensor  # [E, ways, queries] bool
    query: Tensor  # [E, ways, queries] int64: the test row each answer is about


def sample_episodes(
    train_labels: Tensor | Sequence[int],
    test_labels: Tensor | Sequence[int],
    *,
    episodes: int = EPISODES,
    ways: int = WAYS,
    shots: int = SHOTS,
    queries: int = QUERIES,
    seed: int = 0,
    skip_short: bool = False,
) -> Episodes:
    """Draw episodes: classes without replacement, then images of each class without replacement.

    The draw depends on the labels and the seed alone, so two models meet the same episodes. A class with fewer images
    than an episode needs is an error, unless `skip_short` leaves such classes out of the draw.
    """
    train = check_labels(train_labels, "the training labels").cpu().numpy()
    test = check_labels(test_labels, "the test labels").cpu().numpy()
    size = max(train.max(), test.max()) + 1
    train_count, test_count = np.bincount(train, minlength=size), np.bincount(test, minlength=size)
    classes = np.flatnonzero((train_count > 0) | (test_count > 0))
    fit = (train_count[classes] >= shots) & (test_count[classes] >= queries)
    if not fit.all() and not skip_short:
        c = classes[~fit][0]
        raise EvaluationError(
            f"{int((~fit).sum())} of {len(classes)} classes are too small for an episode, which needs {shots} training "
            f"and {queries} test images of a class: class {c} has {train_count[c]} and {test_count[c]}. Take more "
            "images, fewer shots or queries, or leave such classes out with skip_short=True."
        )
    classes = classes[fit]
    if len(classes) < ways:
        raise EvaluationError(
            f"An episode needs {ways} classes, but only {len(classes)} have {shots} training and {queries} test images."
        )
    rng = np.random.default_rng(seed)
    chosen = classes[_distinct(rng, np.full(episodes, len(classes)), ways)].ravel()
    return Episodes(
        support=_draw(rng, train, train_count, chosen, shots).view(episodes, ways, shots),
        query=_draw(rng, test, test_count, chosen, queries).view(episodes, ways, queries),
    )


def _draw(rng: np.random.Generator, labels: np.ndarray, count: np.ndarray, chosen: np.ndarray, k: int) -> Tensor:
    """k different rows of each class in `chosen` [R]: [R, k]."""
    by_class = np.argsort(labels, kind="stable")
    first = np.cumsum(count) - count
    return torch.from_numpy(by_class[first[chosen][:, None] + _distinct(rng, count[chosen], k)])


def _distinct(rng: np.random.Generator, high: np.ndarray, k: int) -> np.ndarray:
    """k different integers below high[r] for every row r, in random order: [R, k].

    Integer j is drawn from the high - j that are left and then stepped over those taken, smallest first.
    """
    drawn, taken = [], []
    for j in range(k):
        value = (rng.random(len(high)) * (high - j)).astype(np.int64)
        for t in taken:
            value += value >= t
        drawn.append(value)
        for i, t in enumerate(taken):  # insert, keeping `taken` sorted in each row
            taken[i], value = np.minimum(t, value), np.maximum(t, value)
        taken.append(value)
    return np.stack(drawn, 1)


def score(train_features: Tensor, test_features: Tensor, episodes: Episodes) -> FewShotResult:
    """Classify every query of every episode: features [N_train, D] and [N_test, D], any norm."""
    train = check_features(train_features, "the training features").float()
    test = check_features(test_features, "the test features", width=train.shape[1]).float()
    support, query = episodes.support.to(train.device), episodes.query.to(train.device)
    (count, ways, shots), queries = support.shape, query.shape[2]
    for rows, features, name in ((support, train, "support"), (query, test, "query")):
        if rows.min() < 0 or rows.max() >= len(features):
            raise EvaluationError(
                f"The episodes name {name} image {int(rows.max())}, but there are features of {len(features)} images "
                "only. Were the episodes drawn for another set?"
            )
    offset = train.mean(0)
    train, test = train - offset, test - offset
    train_square, test_square = train.square().sum(1), test.square().sum(1)

    correct = torch.empty(count, ways, queries, dtype=torch.bool, device=train.device)
    right = torch.arange(ways, device=train.device)[:, None]
    block = min(count, max(1, _BLOCK // (ways * max(shots, queries) * train.shape[1])))
    gathered = train.new_empty(
        block * ways * max(shots, queries), train.shape[1]
    )  # buffers are reused: fewer page faults
    targets = train.new_empty(block, ways + 1, train.shape[1])
    for i in range(0, count, block):
        s, q = (
            support[i : i + block].flatten(1),
            query[i : i + block].flatten(1),
        )  # [e, ways * shots], [e, ways * queries]
        e = len(s)
        # Prototype c is u_c - t_c m: u_c the sum of its rows over their centred lengths, t_c the sum of those weights.
        u, m = targets[:e, :ways], targets[:e, ways:]  # [e, ways, D], [e, 1, D]
        m[:, 0] = F.embedding_bag(s, train, mode="sum") / (ways * shots)
        m2 = m.square().sum(2)  # [e, 1]
        rows = torch.index_select(train, 0, s.flatten(), out=gathered[: s.numel()]).view(e, ways * shots, -1)
        sm = torch.bmm(m, rows.transpose(1, 2))[:, 0]  # [e, ways * shots]
        weight = _inverse_length(train_square[s] - 2 * sm + m2) / shots
        u[:] = F.embedding_bag(s.view(-1, shots), train, mode="sum", per_sample_weights=weight.view(-1, shots)).view(
            e, ways, -1
        )
        t = weight.view(e, ways, shots).sum(2)
        um = torch.bmm(u, m.transpose(1, 2))[..., 0]  # [e, ways]
        pm = um - t * m2
        p2 = u.square().sum(2) - t * (um + pm)

        rows = torch.index_select(test, 0, q.flatten(), out=gathered[: q.numel()]).view(e, ways * queries, -1)
        dots = torch.bmm(rows, targets[:e].transpose(1, 2))  # q.u_c and q.m, [e, ways * queries, ways + 1]
        qm = dots[..., ways:]
        inverse = _inverse_length(test_square[q] - 2 * qm[..., 0] + m2)[..., None]
        # Squared distance of the normalised query, less the 1 that all prototypes share.
        distance = p2[:, None] - 2 * (dots[..., :ways] - t[:, None] * qm - pm[:, None]) * inverse
        correct[i : i + block] = distance.argmin(2).view(e, ways, queries) == right
    accuracy = correct.flatten(1).double().mean(1)
    std = accuracy.std().item() if count > 1 else float("nan")
    return FewShotResult(accuracy.mean().item(), std, accuracy, correct, query)


def _inverse_length(square: Tensor) -> Tensor:
    return square.clamp_min(1e-24).rsqrt()


def few_shot(
    train_features: Tensor,
    train_labels: Tensor | Sequence[int],
    test_features: Tensor,
    test_labels: Tensor | Sequence[int],
    **episode: int | bool,
) -> FewShotResult:
    """Draw episodes and score them; keyword arguments are those of `sample_episodes`."""
    train = check_features(train_features, "the training features")
    test = check_features(test_features, "the test features", width=train.shape[1])
    train_labels = check_labels(train_labels, "the training labels", len(train))
    test_labels = check_labels(test_labels, "the test labels", len(test))
    return score(train, test, sample_episodes(train_labels, test_labels, **episode))
