"""The four variants: golden parity, sizes, options, loss, saving and loading, misuse."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import diffclip
from diffclip.model import CLIP, SIZES, VARIANTS, ModelConfig, contrastive_loss, create_model, load_model, save_model
from diffclip.released import load_released
from diffclip.towers import TextConfig, VisionConfig

GOLDEN = Path(__file__).parent / "golden"
EXPECTED_PARAMETERS = {  # FACTS, "Models"; the dagger has half of DiffCLIP's additions, those of the vision tower
    "clip": 149_619_969,
    "diffclip": 149_629_185,
    "diffclip_dynamic": 149_629_185,
    "diffclip_vision": 149_624_577,
}


def golden_config(name):
    """The golden model's configuration, from its file's metadata."""
    with safetensors.safe_open(GOLDEN / f"{name}_tiny.safetensors", framework="pt") as file:
        vision, model = (json.loads(file.metadata()[key]) for key in ("vision", "model"))
    return ModelConfig(
        "golden",
        model["embed_dim"],
        VisionConfig(
            vision["img_size"], vision["patch_size"], vision["embed_dim"], vision["depth"], vision["num_heads"]
        ),
        TextConfig(
            model["transformer_width"],
            model["transformer_layers"],
            model["transformer_heads"],
            model["context_length"],
            model["vocab_size"],
        ),
    )


def golden_model(name):
    return load_released(GOLDEN / f"{name}_tiny_released_style.pt", size=golden_config(name))


def inputs(config, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, config.vision.image_size, config.vision.image_size, generator=generator)
    tokens = torch.randint(0, config.text.vocab_size, (batch, config.text.context_length), generator=generator)
    return images, tokens


# ------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("implementation", ["auto", "fused", "maps"])
@pytest.mark.parametrize("name", ["clip", "diffclip"])
def test_golden_embeddings(name, implementation):
    golden = load_file(GOLDEN / f"{name}_tiny.safetensors")
    model = golden_model(name)
    model.set_attention_implementation(implementation)
    with torch.no_grad():
        out = model(golden["in.image"], golden["in.text"])
    assert model.variant == name
    for key in ("image_embed", "text_embed"):
        expected = golden[f"out.{key}"]
        error = (out[key] - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 1e-5
        torch.testing.assert_close(out[key], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(out["logit_scale"], golden["out.logit_scale"].squeeze(), rtol=1e-6, atol=0)


def test_golden_parity_notices_the_hidden_differences():
    """With the other model's LayerNorm eps, or DiffCLIP*'s lambda_init, the golden embeddings are missed."""

    def error(name, variant, **options):
        config = golden_config(name)
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **options))
        model = load_released(GOLDEN / f"{name}_tiny_released_style.pt", size=config, variant=variant)
        golden = load_file(GOLDEN / f"{name}_tiny.safetensors")
        with torch.no_grad():
            found = model.encode_image(golden["in.image"])
        return ((found - golden["out.image_embed"]).norm() / found.norm()).item()

    assert (
        error("diffclip", "diffclip", layer_norm_eps=1e-5) < 1e-5 < error("diffclip", "diffclip", layer_norm_eps=1e-6)
    )
    assert error("clip", "clip", layer_norm_eps=1e-6) < 1e-5 < error("clip", "clip", layer_norm_eps=1e-5)
    assert error("diffclip", "diffclip_dynamic") > 1e-2


# ---------------------------------------------------------------------------------------------------- sizes and options


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_at_vit_b_16(variant):
    with torch.device("meta"):
        model = create_model(variant, "vit_b_16")
    assert sum(p.numel() for p in model.parameters()) == EXPECTED_PARAMETERS[variant]
    lambdas = sum(p.numel() for name, p in model.named_parameters() if ".lambda_" in name)
    assert lambdas == {"clip": 0, "diffclip_vision": 12 * 4 * 64}.get(variant, 2 * 12 * 4 * 64)  # 6144 for both towers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_exists_in_every_variant(variant, size):
    with torch.device("meta"):
        model = create_model(variant, size)
        images, tokens = torch.empty(2, 3, *[SIZES[size].vision.image_size] * 2), torch.zeros(2, 1, dtype=torch.long)
        out = model(images, tokens.expand(2, SIZES[size].text.context_length))
    assert out["image_embed"].shape == out["text_embed"].shape == (2, SIZES[size].embed_dim)


@pytest.mark.parametrize("variant, differential", [("clip", ""), ("diffclip", "vt"), ("diffclip_vision", "v")])
def test_which_tower_is_differential(variant, differential):
    model = create_model(variant, "smoke")
    found = "".join(t[0] for t in ("vision", "text") if model.attention_layers(t)[0].differential)
    assert found == differential
    towers = {"v": "vision", "t": "text"}
    assert set(model.lambdas()) == {f"{towers[t]}.{i}" for t in differential for i in range(2)}


def layer_norm_eps(module):
    return {m.eps for m in module.modules() if isinstance(m, nn.LayerNorm)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_differences_follow_the_variant(variant):
    """The released vision tower of DiffCLIP: eps 1e-5 and nn.Linear's own initialisation; the baseline's: eps 1e-6 and
    a truncated normal of 0.02. The text towers agree (FACTS, "two hidden differences")."""
    config = dataclasses.replace(SIZES["mini"], name="wider", vision=VisionConfig(48, 8, 256, 1, 4))
    model = create_model(variant, config, seed=0)
    differential = variant != "clip"
    assert layer_norm_eps(model.vision) == {1e-5 if differential else 1e-6}
    assert layer_norm_eps(model.text) == {1e-5}
    fc1 = model.vision.trunk.blocks[0].mlp.fc1  # nn.Linear: uniform within 1 / sqrt(fan in)
    assert fc1.weight.std().item() == pytest.approx(256**-0.5 / 3**0.5 if differential else 0.02, rel=0.03)
    assert (fc1.bias.abs().max().item() > 0) == differential


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_hidden_differences_can_be_set(variant):
    vision = VisionConfig(48, 8, 256, 1, 4, layer_norm_eps=3e-4, init="timm" if variant == "diffclip" else "torch")
    model = create_model(variant, ModelConfig("x", 32, vision, SIZES["smoke"].text), seed=0)
    assert layer_norm_eps(model.vision) == {3e-4}
    block = model.vision.trunk.blocks[0]
    expected = 0.02 if variant == "diffclip" else 256**-0.5 / 3**0.5
    for linear in (m for m in block.modules() if isinstance(m, nn.Linear) and m.in_features == 256):
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_tower_is_initialised_as_clip_is(variant):
    text = TextConfig(128, 2, 4, 16, 3000)
    model = create_model(variant, ModelConfig("x", 96, SIZES["smoke"].vision, text), seed=0).text
    attn = model.blocks[1].attn
    inputs_ = (attn.q_proj, attn.k_proj, attn.v_proj) if attn.differential else (attn.qkv,)
    output = attn.out_proj if attn.differential else attn.proj
    expected = [(model.token_embedding.weight, 0.02), (model.positional_embedding, 0.01), (model.projection, 128**-0.5)]
    expected += [(linear.weight, 128**-0.5) for linear in inputs_]
    expected += [(output.weight, 128**-0.5 / 2), (model.blocks[1].mlp.fc1.weight, 256**-0.5)]
    expected += [(model.blocks[1].mlp.fc2.weight, 128**-0.5 / 2)]
    for weight, std in expected:
        assert weight.std().item() == pytest.approx(std, rel=0.06)


@st.composite
def small_configs(draw):
    vision_heads, text_heads = (2 * draw(st.integers(1, 3)) for _ in range(2))
    patch = draw(st.integers(2, 5))
    vision = VisionConfig(
        patch * draw(st.integers(1, 4)),
        patch,
        vision_heads * draw(st.integers(1, 5)),
        draw(st.integers(1, 3)),
        vision_heads,
    )
    text = TextConfig(
        text_heads * draw(st.integers(1, 5)), draw(st.integers(1, 3)), text_heads, draw(st.integers(1, 9)), 50
    )
    return ModelConfig("drawn", draw(st.integers(1, 9)), vision, text)


@given(config=small_configs(), variant=st.sampled_from(sorted(VARIANTS)), batch=st.integers(1, 4))
def test_shapes_of_any_model(config, variant, batch):
    model = create_model(variant, config, seed=0)
    out = model(*inputs(config, batch))
    assert out["image_embed"].shape == out["text_embed"].shape == (batch, config.embed_dim)
    assert out["logit_scale"].shape == ()
    assert all(torch.isfinite(value).all() for value in out.values())
    assert len(model.lambdas()) == {
        "clip": 0,
        "diffclip_vision": config.vision.depth,
    }.get(variant, config.vision.depth + config.text.depth)
    sum(value.sum() for value in out.values()).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unreached
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# -------------------------------------------------------------------------------------------------------- behaviour


def test_usage_example_of_the_published_code():
    model = diffclip.DiffCLIP_VITB16()
    image = torch.randn(1, 3, 224, 224)
    text = torch.randint(0, 49408, (1, 77))
    with torch.no_grad():
        outputs = model(image, text)
    assert outputs["image_embed"].shape == outputs["text_embed"].shape == (1, 512)
    assert outputs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert model.variant == "diffclip"


def test_seed_repeats_without_touching_the_global_generator():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = (create_model("diffclip", "smoke", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(a.vision.projection, c.vision.projection)
    assert not torch.equal(
        create_model("clip", "smoke").vision.projection, create_model("clip", "smoke").vision.projection
    )


def test_text_is_pooled_at_the_largest_id():
    """The end-of-text token has the largest id of a row: what follows it has no say, what precedes it has."""
    config = SIZES["smoke"]
    for variant in ("clip", "diffclip"):
        model = create_model(variant, config, seed=0).eval()
        tokens = torch.zeros(3, config.text.context_length, dtype=torch.long)
        tokens[:, :5] = torch.tensor([49406, 10, 11, 12, 49407])
        tokens[1, 7] = 99  # after the end
        tokens[2, 2] = 99  # before it
        with torch.no_grad():
            same, after, before = model.encode_text(tokens)
        torch.testing.assert_close(after, same, rtol=0, atol=1e-6)
        assert (before - same).norm() > 1e-3 * same.norm()


def test_a_batch_is_as_good_as_one_by_one():
    model = create_model("diffclip", "smoke", seed=0).eval()
    images, tokens = inputs(model.config, 4)
    with torch.no_grad():
        together = model(images, tokens)
        alone = [model(images[i : i + 1], tokens[i : i + 1]) for i in range(4)]
    for key in ("image_embed", "text_embed"):
        torch.testing.assert_close(together[key], torch.cat([out[key] for out in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start, end", [(-0.5, 0.0), (2.6, 2.6), (5.0, math.log(100))])
def test_logit_scale_is_clamped(start, end):
    model = create_model("clip", "smoke")
    model.logit_scale.data.fill_(start)
    model.clamp_logit_scale()
    assert model.logit_scale.item() == pytest.approx(end, abs=1e-6)
    assert model.logit_scale.requires_grad


def test_contrastive_loss_by_hand():
    image = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # lengths must not matter
    text = torch.tensor([[1.0, 0.0], [5.0, 0.0]])  # the second caption says what the first does
    loss, accuracy = contrastive_loss(image, text, torch.tensor(2.0))
    log = math.log
    rows = (log(2) + log(2)) / 2  # logits [[2, 2], [0, 0]]: two coins
    columns = (log(1 + math.exp(-2)) + log(1 + math.exp(2))) / 2
    assert loss.item() == pytest.approx((rows + columns) / 2, rel=1e-6)
    assert accuracy.item() == 0.5
    aligned, accuracy = contrastive_loss(torch.eye(3), torch.eye(3), torch.tensor(100.0))
    assert aligned.item() < 1e-6 and accuracy.item() == 1
    assert contrastive_loss(torch.ones(8, 4), torch.ones(8, 4), torch.tensor(5.0))[0].item() == pytest.approx(log(8))


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_gradient_checkpointing_changes_no_gradient(variant):
    model = create_model(variant, "smoke", seed=0)
    batch = inputs(model.config, 3)

    def gradients():
        model.zero_grad()
        out = model(*batch)
        contrastive_loss(*out.values())[0].backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.gradient_checkpointing(True)
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)
    model.gradient_checkpointing(False)
    assert not model.text.checkpointing and not model.vision.trunk.grad_checkpointing


# ------------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_models_are_equal(variant, tmp_path):
    model = create_model(variant, "smoke", seed=3).eval()
    path = save_model(model, tmp_path / "run", {"step": 12})
    assert path == tmp_path / "run" / "model.safetensors"
    torch.manual_seed(5)
    expected_random = torch.rand(1)
    torch.manual_seed(5)
    for again in (create_model(checkpoint=tmp_path / "run"), create_model(variant, checkpoint=path), load_model(path)):
        assert (again.variant, again.config, again.training) == (variant, model.config, False)
        assert again.lambdas() == model.lambdas()
        for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), name
        batch = inputs(model.config)
        for key, value in model(*batch).items():
            assert torch.equal(value, again(*batch)[key])
    assert torch.equal(torch.rand(1), expected_random), "loading must not draw random numbers"


def test_a_loaded_model_can_be_trained(tmp_path):
    save_model(create_model("diffclip", "smoke", seed=0), tmp_path)
    model = create_model(checkpoint=tmp_path)
    contrastive_loss(*model(*inputs(model.config)).values())[0].backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_saving_leaves_no_half_file(tmp_path, monkeypatch):
    path = save_model(create_model("clip", "smoke", seed=0), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(create_model("clip", "smoke", seed=1), tmp_path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_corrupt_checkpoints(tmp_path):
    path = save_model(create_model("clip", "smoke", seed=0), tmp_path)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere.*check the path"):
        create_model(checkpoint=tmp_path / "nowhere")
    for content in (whole[:-100], whole[:50], b"", b"not weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            create_model(checkpoint=path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not saved by this kit.*load_released"):
        create_model(checkpoint=path)


def test_a_checkpoint_that_does_not_fit_says_where(tmp_path):
    model = create_model("clip", "smoke", seed=0)
    path = save_model(model, tmp_path)
    with pytest.raises(ValueError, match="holds a 'clip', but 'diffclip' was asked for"):
        create_model("diffclip", checkpoint=path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = model.state_dict()
    state["text.extra"] = torch.ones(1)
    del state["text.norm.bias"]
    state["vision.projection"] = torch.ones(3, 3)
    save_file(state, path, metadata)
    with pytest.raises(ValueError) as error:
        load_model(path)
    for part in (
        "1 missing: text.norm.bias",
        "1 not known to this model: text.extra",
        "vision.projection [3, 3] instead",
    ):
        assert part in str(error.value)


# ------------------------------------------------------------------------------------------------------------- misuse


def test_unknown_words():
    with pytest.raises(ValueError, match="Unknown variant 'difclip'; choose one of clip, diffclip, diffclip_dynamic"):
        create_model("difclip", "smoke")
    with pytest.raises(ValueError, match="Unknown model size 'vit_l'; choose one of vit_b_16"):
        create_model("clip", "vit_l")
    with pytest.raises(ValueError, match="Say which variant"):
        create_model()
    with pytest.raises(ValueError, match="Unknown initialisation 'xavier'"):
        VisionConfig(init="xavier")


def test_sizes_that_cannot_be():
    def vision(**options):
        return dataclasses.replace(SIZES["smoke"], vision=dataclasses.replace(SIZES["smoke"].vision, **options))

    with pytest.raises(ValueError, match="even number of them; got 1"):
        create_model("diffclip", vision(heads=1))
    create_model("clip", vision(heads=1))
    with pytest.raises(ValueError, match="width of 32 cannot be split into 5"):
        create_model("clip", vision(heads=5))
    odd_text = dataclasses.replace(SIZES["smoke"], text=dataclasses.replace(SIZES["smoke"].text, heads=1))
    create_model("diffclip_vision", odd_text)  # its text tower is an ordinary one
    with pytest.raises(ValueError, match="even number"):
        create_model("diffclip", odd_text)
    with pytest.raises(ValueError, match="Patches of 7 pixels do not tile an image of 32"):
        vision(patch_size=7)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="depth must be a whole number of at least 1"):
            vision(depth=wrong)


def test_wrong_images_and_tokens():
    model = create_model("diffclip", "smoke", seed=0)
    images, tokens = inputs(model.config)
    for wrong in (
        torch.randn(2, 3, 224, 224),
        torch.randn(2, 1, 32, 32),
        torch.randn(3, 32, 32),
        torch.randn(2, 32, 32, 3),
    ):
        with pytest.raises(ValueError, match=r"images of shape \[batch, 3, 32, 32\]; got .*eval_view"):
            model.encode_image(wrong)
    with pytest.raises(ValueError, match="floating point numbers; got torch.uint8"):
        model.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    for wrong in (tokens[:, :-1], tokens[0], torch.zeros(2, 77, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"tokens of shape \[batch, 24\]; got .*context_length=24"):
            model.encode_text(wrong)
    with pytest.raises(ValueError, match="whole numbers .* got torch.float32"):
        model.encode_text(tokens.float())
    for wrong in (-1, 49408):
        tokens[1, 3] = wrong
        with pytest.raises(ValueError, match=f"between 0 and 49407 for this model; got {wrong}"):
            model(images, tokens)


def test_public_names():
    assert diffclip.create_model is create_model and diffclip.VARIANTS is VARIANTS
    assert {"create_model", "load_released", "tokenize", "DiffCLIP_VITB16"} <= set(dir(diffclip))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffclip.nothing  # noqa: B018
    assert isinstance(create_model("clip", "smoke"), CLIP)
