"""The linear probe: the golden optima, optimality itself, and the search for C."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from diffclip.evaluation import EvaluationError
from diffclip.evaluation import linear_probe as lp

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    tensors = load_file(GOLDEN / "protocols.safetensors")
    data = [tensors[f"probe.{k}"] for k in ("train_features", "train_labels", "test_features", "test_labels")]
    return data, json.loads((GOLDEN / "protocols.json").read_text())["probe"]


def clusters(seed, n=120, width=8, classes=4, spread=1.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=g)
    features = centres[labels] + spread * torch.randn(n, width, generator=g) + 3 * torch.randn(width, generator=g)
    return features.to(dtype), labels


def plain_fit(features, labels, c, classes):
    """The original procedure: L-BFGS, strong Wolfe, 1000 iterations, from zero; here to the end of float64."""
    layer = torch.nn.Linear(features.shape[1], classes, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    features = features.double()
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=1000, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def closure():
        optimiser.zero_grad()
        loss = lp.objective(layer.weight, layer.bias, features, labels, c)
        loss.backward()
        return loss

    optimiser.step(closure)
    layer.requires_grad_(False)
    return layer, lp.objective(layer.weight, layer.bias, features, labels, c).item()


def test_golden_optima(golden):
    (features, labels, test_features, test_labels), expected = golden
    probes = lp.fit(features, labels, [float(c) for c in expected])
    for (c, values), probe in zip(expected.items(), probes, strict=True):
        recomputed = lp.objective(probe.weight, probe.bias, features.double(), labels, float(c)).item()
        assert probe.objective == pytest.approx(recomputed, rel=1e-9)
        assert probe.objective == pytest.approx(values["objective"], rel=1e-4), c
        assert probe.objective <= values["objective"] * (1 + 1e-6), c
        assert probe.weight.norm().item() == pytest.approx(values["weight_norm"], rel=1e-3), c
        accuracy = 100 * (probe.logits(test_features).argmax(1) == test_labels).double().mean().item()
        assert accuracy == pytest.approx(values["test_accuracy"], abs=1e-4), c


def test_zero_is_found_exactly_where_it_is_the_optimum(golden):
    (features, labels, *_), _ = golden
    critical = lp._Solver(features, labels).critical
    below, above = lp.fit(features, labels, [critical * 0.999, critical * 1.02])
    assert below.weight.norm() == 0 and above.weight.norm() > 1e-3
    # Just below, no direction leads down: the gradient of the cross-entropy is shorter than 0.5 / C.
    weight = torch.zeros_like(below.weight, requires_grad=True)
    torch.nn.functional.cross_entropy(features.double() @ weight.T + below.bias, labels).backward()
    assert weight.grad.norm() <= 0.5 / below.c
    assert weight.grad.norm() > 0.5 / above.c
    assert above.objective < lp.objective(weight, below.bias, features.double(), labels, above.c)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([0.3, 1.0, 3.0]), st.floats(-1, 5))
def test_the_gradient_vanishes_at_the_solution(seed, spread, exponent):
    features, labels = clusters(seed, spread=spread)
    probe = lp.fit(features, labels, 10.0**exponent)[0]
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features.double() @ weight.T + bias, labels)
    loss.backward()
    pull = 0.5 / probe.c
    norm = probe.weight.norm()
    if norm == 0:
        assert weight.grad.norm() <= pull * (1 + 1e-9)
    else:
        assert (weight.grad + pull * probe.weight / norm).norm() <= 1e-3 * pull
    assert bias.grad.norm() <= 1e-3 * pull


@pytest.mark.parametrize("n, width", [(120, 8), (40, 60)])
def test_objective_is_never_above_the_original_procedure(n, width):
    features, labels = clusters(5, n=n, width=width)
    for c, probe in zip((3.0, 100.0, 1e4), lp.fit(features, labels, [3.0, 100.0, 1e4]), strict=True):
        _, reached = plain_fit(features, labels, c, 4)
        assert probe.objective <= reached * (1 + 1e-6)


def test_many_at_once_equals_one_at_a_time():
    features, labels = clusters(2)
    cs = [1e6, 3.0, 0.7, 50.0, 1e-6, 1e4]
    for one, many in zip(cs, lp.fit(features, labels, cs), strict=True):
        alone = lp.fit(features, labels, one)[0]
        assert many.c == one and many.objective == pytest.approx(alone.objective, rel=1e-6)


def test_where_conjugate_gradients_take_long_the_hessian_is_solved_outright(monkeypatch):
    """Nearly separable classes at a large C: hard for conjugate gradients. Both ways lead to the same optimum."""
    features, labels = clusters(3, n=240, width=40, classes=8, spread=1.4)
    outright, found = [], []
    solve = lp._Solver._solve_directly
    monkeypatch.setattr(lp._Solver, "_solve_directly", lambda *a: outright.append(1) or solve(*a))
    for limit in (lp._DIRECT_AT_MOST, 0):  # 0: by conjugate gradients alone
        monkeypatch.setattr(lp, "_DIRECT_AT_MOST", limit)
        found.append([probe.objective for probe in lp.fit(features, labels, [1e3, 1e5])])
        used = len(outright)
        outright.clear()
        assert (used > 0) == (limit > 0)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_shift_and_rotation_of_the_features_change_nothing():
    features, labels = clusters(3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    a = lp.fit(features, labels, 20.0)[0]
    b = lp.fit(features @ rotation + 100, labels, 20.0)[0]
    assert a.objective == pytest.approx(b.objective, rel=1e-7)
    assert torch.allclose(a.weight @ rotation, b.weight, atol=1e-3)


def test_half_precision_features_are_taken_as_float32():
    features, labels = clusters(0)
    half = features.half()
    assert lp.fit(half, labels, 10.0)[0].objective == lp.fit(half.float(), labels, 10.0)[0].objective


def test_a_class_without_training_images_is_never_predicted():
    features, labels = clusters(1)
    probe = lp.fit(features, labels * 2, 10.0, n_classes=8)[0]
    assert probe.weight.shape == (8, 8) and set(probe.logits(features).argmax(1).tolist()) == {0, 2, 4, 6}


def plain_sweep(train, train_labels, valid, valid_labels, classes):
    """The search with the original fits, one C at a time."""

    def score(cs):
        fits = [plain_fit(train, train_labels, c, classes)[0] for c in cs]
        return [(fit(valid.double()).argmax(1) == valid_labels).double().mean().item() for fit in fits]

    return lp.choose_c(score)


def test_the_sweep_finds_the_c_of_a_plain_one(golden):
    (features, labels, test_features, test_labels), _ = golden
    kept, held = lp.stratified_split(labels, seed=0)
    c, seen = plain_sweep(features[kept], labels[kept], features[held], labels[held], 6)
    ours = lp.linear_probe(features, labels, test_features, test_labels)
    assert ours.c == c and ours.validation == seen
    layer, reached = plain_fit(features, labels, c, 6)  # the final fit uses train and validation
    assert ours.probe.objective == pytest.approx(reached, rel=1e-5)
    assert torch.equal(ours.prediction, layer(test_features.double()).argmax(1))


def test_the_search_zooms_in_on_a_peak():
    for peak in (3e-5, 0.02, 1.0, 37.0, 8e5):
        asked = []

        def score(cs, peak=peak, asked=asked):
            asked.extend(cs)
            return [-abs(np.log10(c) - np.log10(peak)) for c in cs]

        c, seen = lp.choose_c(score)
        assert abs(np.log10(c / peak)) < 0.5 * 4 / 28 + 1e-9  # the nearest of 29 values over four decades
        assert len(asked) == len(set(asked)) <= 7 + 11 and c in seen
        assert all(1e-6 * 0.999 <= value <= 1e6 * 1.001 for value in asked)


def test_of_equal_scores_the_smallest_coarse_value_wins():
    assert lp.choose_c(lambda cs: [0.5] * len(cs))[0] == 1e-6
    assert lp.choose_c(lambda cs: [float(c >= 1) for c in cs])[0] == 1


@given(st.lists(st.integers(0, 4), min_size=25, max_size=80), st.integers(0, 5))
def test_a_fifth_of_every_class_is_held_out(values, seed):
    labels = torch.tensor(values)
    kept, held = lp.stratified_split(labels, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for c in labels.unique():
        assert (labels[held] == c).sum() == (labels == c).sum() // 5


def test_mean_per_class_accuracy_weighs_classes_alike():
    features, labels = clusters(0, n=400, spread=2.0)
    rare = labels.clone()
    many = torch.cat([torch.arange(400)[labels != 3], torch.arange(400)[labels == 3][:5]])
    result = lp.linear_probe(features[:200], rare[:200], features[many], rare[many], mean_per_class=True)
    by_class = [result.correct[result.labels == c].double().mean().item() for c in range(4)]
    assert result.accuracy == pytest.approx(np.mean(by_class))
    assert result.accuracy != pytest.approx(result.correct.double().mean().item())


def test_a_given_validation_split_is_used():
    features, labels = clusters(0, n=300, spread=2.0)
    validation = (features[100:200], labels[100:200])
    result = lp.linear_probe(features[:100], labels[:100], features[200:], labels[200:], validation=validation)
    probe = lp.fit(features[:200], labels[:200], result.c)[0]
    assert result.probe.objective == pytest.approx(probe.objective, rel=1e-6)


def test_clear_errors():
    features, labels = clusters(0)
    with pytest.raises(EvaluationError, match="training features.*NaN"):
        lp.fit(features / 0, labels, 1.0)
    with pytest.raises(EvaluationError, match="one class only"):
        lp.fit(features, labels * 0, 1.0)
    with pytest.raises(EvaluationError, match="C should be a positive number"):
        lp.fit(features, labels, 0.0)
    with pytest.raises(EvaluationError, match="test labels runs from 0 to 3.*3 classes"):
        lp.linear_probe(features[labels < 3], labels[labels < 3], features, labels, n_classes=3)
    with pytest.raises(EvaluationError, match="No class has the five training images"):
        lp.linear_probe(features[:16], labels[:16], features, labels)
    with pytest.raises(EvaluationError, match="test features is 7 wide"):
        lp.linear_probe(features, labels, features[:, :7], labels)
