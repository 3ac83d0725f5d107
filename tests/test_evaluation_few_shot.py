"""Few-shot episodes: the golden ones, the drawing, a plain reading, and what must not matter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import normalize

from diffclip.evaluation import EvaluationError
from diffclip.evaluation import few_shot as fs

GOLDEN = Path(__file__).parent / "golden"


def task(seed, n=90, classes=7, width=6):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=g)
    train, test = (centres[labels] + 1.5 * torch.randn(n, width, generator=g) + 4 for _ in range(2))
    return train, labels, test, labels


def plain(train, test, episodes):
    """One episode at a time, as the protocol reads."""
    correct = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        ways, shots = support.shape
        s, q = train[support.flatten()].double(), test[query.flatten()].double()
        centre = s.mean(0)
        prototypes = normalize(s - centre, dim=1).view(ways, shots, -1).mean(1)
        nearest = torch.cdist(normalize(q - centre, dim=1), prototypes).argmin(1)
        correct.append(nearest.view(ways, -1) == torch.arange(ways)[:, None])
    return torch.stack(correct)


def test_golden_episodes():
    tensors = load_file(GOLDEN / "protocols.safetensors")
    expected = json.loads((GOLDEN / "protocols.json").read_text())["few_shot"]
    support, query = tensors["few_shot.support_index"], tensors["few_shot.query_index"]
    ways = expected["n_way"]
    episodes = fs.Episodes(support.view(len(support), ways, -1), query.view(len(query), ways, -1))
    assert episodes.query.shape == (expected["episodes"], ways, expected["n_query"])
    result = fs.score(tensors["probe.train_features"], tensors["probe.test_features"], episodes)
    assert 100 * result.mean == pytest.approx(expected["mean"], rel=1e-6)
    assert 100 * result.std == pytest.approx(expected["std"], rel=1e-6)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([(5, 5, 6), (2, 1, 3), (7, 3, 1)]))
def test_agrees_with_one_episode_at_a_time(seed, shape):
    train, train_labels, test, test_labels = task(seed)
    ways, shots, queries = shape
    episodes = fs.sample_episodes(
        train_labels, test_labels, episodes=40, ways=ways, shots=shots, queries=queries, seed=seed
    )
    result = fs.score(train, test, episodes)
    assert torch.equal(result.correct, plain(train, test, episodes))
    assert result.mean == pytest.approx(result.correct.double().mean().item())


def test_blocks_do_not_show(monkeypatch):
    train, train_labels, test, test_labels = task(0)
    episodes = fs.sample_episodes(train_labels, test_labels, episodes=50)
    whole = fs.score(train, test, episodes)
    monkeypatch.setattr(fs, "_BLOCK", 7 * 30 * train.shape[1])
    assert torch.equal(fs.score(train, test, episodes).correct, whole.correct)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_order_of_images_scale_shift_and_rotation_do_not_matter(seed):
    train, train_labels, test, test_labels = task(seed)
    episodes = fs.sample_episodes(train_labels, test_labels, episodes=30, seed=seed)
    before = fs.score(train, test, episodes)
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=g))[0]
    i, j = torch.randperm(len(train), generator=g), torch.randperm(len(test), generator=g)
    moved = fs.Episodes(i.argsort()[episodes.support], j.argsort()[episodes.query])
    # Images of a class may change places within an episode, too.
    moved = fs.Episodes(moved.support.flip(2), moved.query)
    after = fs.score((train @ rotation * 3 + 20)[i], (test @ rotation * 3 + 20)[j], moved)
    assert (after.correct != before.correct).sum() <= 1  # a query half-way between two prototypes, once in a while


def test_a_large_common_offset_costs_no_accuracy():
    train, train_labels, test, test_labels = task(1)
    episodes = fs.sample_episodes(train_labels, test_labels, episodes=200)
    near, far = (fs.score((train + shift).float(), (test + shift).float(), episodes) for shift in (0, 300))
    assert (near.correct != far.correct).float().mean() < 1e-3


def test_episodes_are_drawn_as_defined():
    train_labels, test_labels = torch.arange(200) % 8, torch.arange(160).flip(0) % 8
    episodes = fs.sample_episodes(train_labels, test_labels, episodes=300, seed=1)
    for rows, labels, k in ((episodes.support, train_labels, 5), (episodes.query, test_labels, 6)):
        assert rows.shape == (300, 5, k)
        classes = labels[rows]
        assert (classes == classes[..., :1]).all()  # one class a row
        assert all(len(set(e[:, 0].tolist())) == 5 for e in classes)  # five different classes
        assert all(len(set(r.tolist())) == k for e in rows for r in e)  # different images
    assert torch.equal(train_labels[episodes.support[..., 0]], test_labels[episodes.query[..., 0]])


def test_every_class_and_image_is_equally_likely():
    labels = torch.arange(60) % 6
    episodes = fs.sample_episodes(labels, labels, episodes=20_000, ways=2, shots=3, queries=2)
    for rows, share in ((episodes.support, 3), (episodes.query, 2)):
        counts = np.bincount(rows.flatten(), minlength=60)
        expected = 20_000 * 2 * share / 60
        assert abs(counts - expected).max() < 6 * np.sqrt(expected)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_distinct_numbers_are_distinct_and_cover_the_range(seed, k):
    rng = np.random.default_rng(seed)
    high = rng.integers(k, k + 4, 200)
    drawn = fs._distinct(rng, high, k)
    assert (drawn >= 0).all() and (drawn < high[:, None]).all()
    assert all(len(set(row)) == k for row in drawn.tolist())


def test_the_order_of_a_draw_is_uniform():
    drawn = fs._distinct(np.random.default_rng(0), np.full(60_000, 3), 3)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 6 and abs(counts - 10_000).max() < 500


def test_the_seed_alone_decides_so_that_models_meet_the_same_episodes():
    labels = torch.arange(100) % 7
    one, two, other = (fs.sample_episodes(labels, labels, episodes=20, seed=s) for s in (4, 4, 5))
    assert torch.equal(one.query, two.query) and torch.equal(one.support, two.support)
    assert not torch.equal(one.query, other.query)


def test_chance_for_features_without_information():
    labels = torch.arange(200) % 10
    g = torch.Generator().manual_seed(0)
    noise = fs.few_shot(torch.randn(200, 32, generator=g), labels, torch.randn(200, 32, generator=g), labels)
    assert noise.mean == pytest.approx(0.2, abs=0.05)
    constant = fs.few_shot(torch.ones(200, 4), labels, torch.ones(200, 4), labels, episodes=50)
    assert constant.mean == pytest.approx(0.2)


def test_classes_that_are_too_small():
    train, test = torch.arange(60) % 6, torch.cat([torch.arange(60) % 5, torch.full((3,), 5)])
    with pytest.raises(EvaluationError, match=r"1 of 6 classes.*class 5 has 10 and 3.*skip_short=True"):
        fs.sample_episodes(train, test)
    episodes = fs.sample_episodes(train, test, skip_short=True, episodes=50)
    assert 5 not in train[episodes.support]
    with pytest.raises(EvaluationError, match="only 5 have 5 training and 6 test"):
        fs.sample_episodes(train, test, ways=6, skip_short=True)
    with pytest.raises(EvaluationError, match="class 3 has 0 and 20"):
        fs.sample_episodes(torch.arange(60) % 3, torch.arange(80) % 4, ways=2)


def test_episodes_of_another_set_are_refused():
    train, train_labels, test, test_labels = task(0)
    episodes = fs.sample_episodes(train_labels, test_labels, episodes=5)
    with pytest.raises(EvaluationError, match="query image.*of 10 images only"):
        fs.score(train, test[:10], episodes)
    with pytest.raises(EvaluationError, match="test features.*NaN"):
        fs.score(train, test * torch.nan, episodes)
