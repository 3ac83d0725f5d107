"""The recipe's numbers: schedule, parameter groups, what makes two runs the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_helpers import config

from diffclip.model import VARIANTS, create_model
from diffclip.training import Recipe, RunConfig, Schedule, make_optimizer, parameter_groups, resolve_precision

GOLDEN = Path(__file__).parent / "golden"


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size) == (40, 1, 4096)
    assert (recipe.learning_rate, recipe.learning_rate_start, recipe.learning_rate_final) == (5e-4, 1e-6, 1e-5)
    assert (recipe.weight_decay, recipe.betas, recipe.eps, recipe.crop_scale) == (0.5, (0.9, 0.98), 1e-8, (0.5, 1.0))


def test_schedule_equals_the_golden_values():
    expected = load_file(GOLDEN / "protocols.safetensors")["lr_schedule.values"]
    g = json.loads((GOLDEN / "protocols.json").read_text())["lr_schedule"]
    recipe = Recipe(
        epochs=g["epochs"],
        warmup_epochs=g["warmup_epochs"],
        learning_rate=g["base"],
        learning_rate_start=g["start"],
        learning_rate_final=g["final"],
        batch_size=10,
    )
    schedule = recipe.schedule(pairs=10 * g["steps_per_epoch"] + 9)
    assert schedule.left_out == 9
    assert schedule.steps_per_epoch == g["steps_per_epoch"] and schedule.total_steps == len(expected)
    rates = torch.tensor([schedule.learning_rate(step) for step in range(len(expected))], dtype=torch.float64)
    torch.testing.assert_close(rates, expected.double(), rtol=1e-12, atol=0)


@given(
    pairs=st.integers(8, 500),
    batch=st.integers(1, 8),
    epochs=st.integers(1, 6),
    warmup=st.floats(0, 1),
    max_steps=st.none() | st.integers(1, 50),
)
def test_schedule_stays_between_its_ends(pairs, batch, epochs, warmup, max_steps):
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup * epochs, batch_size=batch, max_steps=max_steps)
    schedule = Schedule(recipe, pairs)
    rates = [schedule.learning_rate(step) for step in range(schedule.last_step)]
    assert len(rates) <= (max_steps or len(rates))
    assert all(recipe.learning_rate_start <= rate <= recipe.learning_rate for rate in rates)
    # Stopping early changes no rate before the stop.
    whole = Schedule(replace(recipe, max_steps=None), pairs)
    assert rates == [whole.learning_rate(step) for step in range(len(rates))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_decay_reaches_matrices_and_embeddings_alone(variant):
    model = create_model(variant, "smoke", seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = parameter_groups(model, 0.5)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    decayed, free = ({names[id(p)] for p in group["params"]} for group in (decayed, free))
    assert {
        "text.token_embedding.weight",
        "text.positional_embedding",
        "vision.projection",
        "vision.trunk.cls_token",
    } <= decayed
    assert "logit_scale" in free and "text.norm.weight" in free
    assert not any("norm" in name or "bias" in name or "lambda" in name for name in decayed)


def test_optimizer_takes_the_recipes_settings():
    optimizer = make_optimizer(create_model("clip", "smoke", seed=0), Recipe(betas=(0.8, 0.9), eps=1e-6))
    assert all(g["betas"] == (0.8, 0.9) and g["eps"] == 1e-6 for g in optimizer.param_groups)


def test_equality_is_about_the_result():
    recipe = Recipe()
    assert recipe == replace(recipe, workers=8, chunk_size=64, compile=True, gradient_checkpointing=True, save_every=7)
    for changed in ({"batch_size": 64}, {"seed": 3}, {"precision": "bf16"}, {"epochs": 2}, {"max_steps": 5}):
        if "seed" in changed:
            assert config() != replace(config(), **changed)
        else:
            assert config() != config(**changed)


def test_run_config_survives_json():
    one = config("diffclip_vision", seed=4, max_steps=3)
    read = RunConfig.from_dict(json.loads(json.dumps({**one.to_dict(), "sessions": []})))
    assert read == one and not one.differences(read)
    assert one.differences(config("clip", seed=4, max_steps=3)) == ["variant: 'diffclip_vision' instead of 'clip'"]
    assert config(batch_size=8, workers=3).differences(config()) == ["recipe.batch_size: 8 instead of 16"]
    assert "model.name: 'mini' instead of 'smoke'" in config(size="mini").differences(config())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"precision": "fp8"}, "choose one of auto, no, bf16, fp16"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"warmup_epochs": 41}, "warm-up within its 40 epochs"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**settings)


def test_names_that_are_not_known():
    with pytest.raises(ValueError, match="no setting batchsize. It has epochs"):
        Recipe.from_dict({"batchsize": 3})
    with pytest.raises(ValueError, match="Unknown variant"):
        config("difclip")
    with pytest.raises(ValueError, match="A seed is a whole number"):
        config(seed=-1)
    with pytest.raises(ValueError, match="does not fill one batch of 4,096"):
        Recipe().schedule(pairs=4095)


def test_precision_follows_the_device():
    assert resolve_precision("auto", torch.device("cpu")) == "no"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(ValueError, match="'fp16' needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))
