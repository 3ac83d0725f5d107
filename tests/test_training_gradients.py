"""Pieces and processes give the gradient of one big batch, in all four variants."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from training_helpers import run_distributed

from diffclip.large_batch import backward_through_batch
from diffclip.model import VARIANTS, contrastive_loss, create_model

BATCH = 12


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 49406, (BATCH, 24), generator=generator)
    tokens[:, 15] = 49407
    return images, tokens


def double_model(variant, checkpointing=False):
    model = create_model(variant, "smoke", seed=1).double()
    model.gradient_checkpointing(checkpointing)
    return model


def gradients_of(model) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy() for name, p in model.named_parameters()}


def expected(variant):
    """One process, one batch, the plain loss and nothing of the code under test."""
    model = double_model(variant)
    loss, accuracy = contrastive_loss(**model(*batch()))
    loss.backward()
    return loss.item(), accuracy.item(), gradients_of(model)


def through_the_trainer(variants, sizes, checkpointing=False):
    """What this process has after `backward_through_batch`, its share of the batch cut into pieces of these sizes."""
    accelerator = Accelerator()
    found = {}
    for variant in variants:
        model = double_model(variant, checkpointing)
        share = BATCH // accelerator.num_processes
        images, tokens = (x.split(share)[accelerator.process_index] for x in batch())
        pieces = list(zip(images.split(sizes or share), tokens.split(sizes or share), strict=True))
        out = backward_through_batch(accelerator.prepare(model), pieces, accelerator=accelerator)
        found[variant] = (out["loss"].item(), out["accuracy"].item(), gradients_of(model))
    return found


def assert_same(found, variant):
    loss, accuracy, gradients = expected(variant)
    assert found[0] == pytest.approx(loss, rel=1e-12) and found[1] == pytest.approx(accuracy, rel=1e-6)
    for name, gradient in gradients.items():
        # A key bias adds the same number to all scores of a query, which a softmax does not see.
        assert np.abs(gradient).max() > 1e-9 or "k_proj.bias" in name, f"{name} has no gradient to compare"
        np.testing.assert_allclose(found[2][name], gradient, rtol=1e-9, atol=1e-13, err_msg=f"{variant} {name}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [None, 6, 1, [5, 5, 2]], ids=str)
def test_pieces_equal_one_big_batch(variant, sizes):
    assert_same(through_the_trainer([variant], sizes)[variant], variant)


def test_pieces_with_gradient_checkpointing():
    assert_same(through_the_trainer(["diffclip"], 4, checkpointing=True)["diffclip"], "diffclip")


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "sizes"), [(2, None), (2, [4, 2]), (4, None), (4, 1)], ids=str)
def test_processes_equal_one_process_with_the_joint_batch(processes, sizes):
    for found in run_distributed(processes, through_the_trainer, list(VARIANTS), sizes):
        for variant in VARIANTS:
            assert_same(found[variant], variant)


@pytest.mark.processes
def test_processes_with_pieces_and_gradient_checkpointing():
    for found in run_distributed(2, through_the_trainer, ["diffclip"], 3, True):
        assert_same(found["diffclip"], "diffclip")


class _Live:
    """Counts the bytes that autograd keeps for the backward pass."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.nbytes
        _Live.now += self.size
        _Live.peak = max(_Live.peak, _Live.now)

    def __del__(self):
        _Live.now -= self.size


def peak_of(pieces: int, size: int) -> int:
    model = create_model("diffclip", "smoke", seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pieces * size, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 49407, (pieces * size, 24), generator=generator)
    cut = list(zip(images.split(size), tokens.split(size), strict=True))
    _Live.now = _Live.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Live, lambda kept: kept.tensor):
        backward_through_batch(model, cut, accelerator=Accelerator())
    return _Live.peak


def test_memory_does_not_grow_with_the_number_of_pieces():
    # Weights that the graph refers to count in both; what may grow is the loss's own batch x batch logits.
    assert peak_of(pieces=16, size=8) < 1.05 * peak_of(pieces=2, size=8)
    assert peak_of(pieces=1, size=128) > 5 * peak_of(pieces=16, size=8)
