"""What a training will take: counted operations, schedules, memory, and the sentences about them."""

from dataclasses import replace

import pytest
import torch

from diffclip import budget
from diffclip.anatomy import counted_flops
from diffclip.budget import Measured, dry_run, model_flops
from diffclip.model import SIZES, VARIANTS, create_model
from diffclip.scales import get_scale


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_the_formula_counts_what_torch_counts(size, variant):
    flops = model_flops(size, variant)
    assert {"vision": flops.image, "text": flops.caption} == counted_flops(variant, size, implementation="maps")


def test_the_formula_by_hand():
    # ViT-B/16: 12 layers of 24 w^2 T + 4 T^2 w, T = 197, w = 768; published as 17.5 billion multiply-adds with the head.
    by_hand = 12 * (24 * 768**2 * 197 + 4 * 197**2 * 768) + 2 * 196 * 768 * 768 + 2 * 768 * 512
    assert model_flops("vit_b_16").image == by_hand
    assert model_flops("vit_b_16").image / 2 == pytest.approx(17.5e9, rel=0.01)
    assert model_flops("vit_b_16").training == 3 * model_flops("vit_b_16").pair
    with pytest.raises(ValueError, match="Unknown variant"):
        model_flops("vit_b_16", "clap")


@pytest.fixture
def known(monkeypatch):
    """Numbers in the place of measurements: 2 ms a pair, 10 ms an update, 1 MB a pair, 1 ms to load."""
    measured = Measured(2e-3, 1e-2, 1e6, 1e-3, 1000.0, 8)
    monkeypatch.setattr(budget, "measure", lambda *args, **kwargs: measured)
    return measured


def test_the_papers_recipe(known):
    b = dry_run("paper", "cc12m", "diffclip", devices=8)
    assert (b.schedule.steps_per_epoch, b.steps) == (1928, 77_120)
    assert b.samples == 77_120 * 4096 and b.image_tokens == b.samples * 197 and b.text_tokens == b.samples * 77
    assert b.parameters == 149_629_185
    assert b.total_flops == pytest.approx(3.9e19, rel=0.02)
    assert b.share == 512 and b.run_bytes == 28 * b.parameters
    # 12 workers a device load faster than this device computes; on a CPU they would share its cores.
    computing = 512 * 2e-3 + 1e-2
    assert replace(b, on_gpu=True).step_seconds == pytest.approx(computing)
    assert replace(b, on_gpu=False, cores=2).step_seconds == pytest.approx(computing + 512 * 1e-3 / 2)
    slow = replace(b, on_gpu=True, measured=replace(known, view_seconds=0.1))
    assert slow.step_seconds == pytest.approx(512 * 0.1 / 12)
    text = str(b)
    assert "7,900,000 pairs (the paper's number); 2,912 an epoch fill no batch" in text
    assert "10 A100-days, 14% of their peak; at that pace this training takes 10 days of one A100" in text


def test_memory_and_what_to_do_about_it(known):
    b = replace(dry_run("paper", "cc3m", "clip", devices=1), device_memory=24e9)
    assert b.share == b.chunk == 4096 and b.activation_memory == 4096e6
    assert b.fixed_memory > 16 * b.parameters + 4096 * 3 * 224**2
    assert "fits" in str(b) and "in one forward pass" in str(b)
    small = replace(b, device_memory=6e9)
    assert 0 < small.largest_chunk <= 2048 and small.largest_chunk & (small.largest_chunk - 1) == 0
    assert f"does not fit; set chunk_size to {small.largest_chunk} or less" in str(small)
    assert replace(small, chunk=small.largest_chunk).memory <= 0.9 * 6e9
    assert "by cached gradients" in str(replace(small, chunk=small.largest_chunk))
    assert "does not fit at any chunk_size" in str(replace(b, device_memory=1e9))


def test_what_is_asked_for(known):
    recipe = replace(get_scale("smoke").recipe, max_steps=3)
    b = dry_run("smoke", "cc3m", "clip", recipe=recipe, pairs=1000)
    assert b.steps == 3 and "stopped early by max_steps" in str(b) and "1,000 pairs (as asked)" in str(b)
    assert b.hours == pytest.approx(3 * b.step_seconds / 3600)
    with pytest.raises(ValueError, match="cannot be shared equally by 7 devices"):
        dry_run("smoke", "cc3m", "clip", devices=7)
    with pytest.raises(ValueError, match="does not fill one batch"):
        dry_run("smoke", "cc3m", "clip", pairs=3)
    for wrong in (("smok", "cc3m", "clip"), ("smoke", "cc3n", "clip"), ("smoke", "cc3m", "clap")):
        with pytest.raises(ValueError, match="nknown|has no corpus"):
            dry_run(*wrong)


@pytest.mark.parametrize("recipe", [{}, {"chunk_size": 16}, {"gradient_checkpointing": True}], ids=str)
def test_measured_here(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    b = dry_run("smoke", "cc3m", "diffclip", recipe=replace(get_scale("smoke").recipe, **recipe))
    m = b.measured
    assert m.seconds_per_sample > 0 and m.seconds_per_update > 0 and m.view_seconds > 0 and b.hours > 0
    assert 500 < m.pair_bytes < 20_000
    assert m.probe == recipe.get("chunk_size", 64)
    assert list(tmp_path.iterdir()) == []


def test_activations_grow_with_the_sample_not_with_the_weights():
    model = create_model("clip", "smoke", seed=0)
    few = budget.activations_per_sample(model, model.config, torch.device("cpu"))
    v, t = model.config.vision, model.config.text
    block_inputs = 4 * (v.depth * v.tokens * v.width + t.depth * t.context_length * t.width)
    assert 10 * block_inputs < few < 40 * block_inputs  # a block keeps its normed, projected, activated ... tokens
    assert few < 4 * model.text.token_embedding.weight.numel()
