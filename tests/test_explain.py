"""Relevance maps and attention noise: by hand, on a model whose answer is known, and as good citizens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffclip import explain
from diffclip.attention import AttentionMaps, record
from diffclip.model import VARIANTS, ModelConfig, create_model
from diffclip.towers import TextConfig, VisionConfig

RED, GREEN, BLUE = 0, 1, 2


def smoke_inputs(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    tokens = torch.zeros(batch, 24, dtype=torch.long)
    tokens[:, 0] = 49406
    for i in range(batch):  # texts of different lengths
        tokens[i, 1 : 4 + i] = torch.randint(1, 49000, (3 + i,), generator=generator)
        tokens[i, 4 + i] = 49407
    return images, tokens


def colour_model(variant, lam=None, aim=None):
    """A one-layer model that sees colours only: three kinds of patches, one text for each, attention without aim.

    Tokens are (r, g, b, -r, -g, -b, 0, 0), the class token is zero, values and projections pass colours through, and the
    embedding is the mean colour. lam sets lambda; aim makes the first map attend to that colour.
    """
    text = TextConfig(width=8, depth=1, heads=2, context_length=3, vocab_size=4)
    model = create_model(variant, ModelConfig("colours", 3, VisionConfig(24, 8, 8, 1, 2), text), seed=0)
    tower, block = model.vision, model.vision.trunk.blocks[0]
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
        for c in range(3):
            tower.trunk.patch_embed.proj.weight[c, c] = 1 / 64
            tower.trunk.patch_embed.proj.weight[c + 3, c] = -1 / 64
            tower.projection[c, c] = 1
        for norm in (block.norm1, block.norm2, tower.trunk.norm):
            norm.weight.fill_(1)
        if block.attn.differential:
            block.attn.diff_norm.weight.fill_(1)
            value, query, key, output = (getattr(block.attn, f"{n}_proj") for n in ("v", "q", "k", "out"))
            value_weight, query_bias, key_weight = value.weight, query.bias, key.weight
            if lam is not None:  # exp(q1 k1) - exp(0) + 0.8 = lam
                block.attn.lambda_q1[0], block.attn.lambda_k1[0] = 1, torch.tensor(lam + 0.2).log()
        else:
            output = block.attn.proj
            value_weight, key_weight = block.attn.qkv.weight[16:], block.attn.qkv.weight[8:16]
            query_bias = block.attn.qkv.bias[:8]
        value_weight.copy_(torch.eye(8))
        output.weight.copy_(torch.eye(8))
        if aim is not None:
            query_bias[0], key_weight[0, aim] = 1, 40
    colours = torch.eye(3)
    model.encode_text = lambda tokens: colours[tokens[:, 0]]
    return model.eval()


def picture(patches):
    """A 3 x 3 board of patches, each a colour or None, as pixels [1, 3, 24, 24]."""
    image = torch.zeros(1, 3, 24, 24)
    for i, colour in enumerate(patches):
        if colour is not None:
            y, x = 8 * (i // 3), 8 * (i % 3)
            image[0, colour, y : y + 8, x : x + 8] = 1
    return image


BOARD = [RED, None, None, None, GREEN, None, None, None, None]


def text(*colours):
    return torch.tensor([[c, 0, 0] for c in colours])


def on(relevance):
    """The patches of a [1, 3, 3] map that are relevant."""
    flat = relevance.flatten()
    return set((flat > 1e-4 * max(flat.max().item(), 1e-3)).nonzero().flatten().tolist())


# --------------------------------------------------------------------------------------------------------- the definition


def test_accumulation_by_hand():
    first = torch.tensor([[[0.0, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    second = torch.tensor([[[0.0, 2.0, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    # After layer 1: token 0 = (1, .5, 0), token 1 = (0, 1, 1), token 2 = (0, 0, 1).
    # Layer 2 adds to token 0 twice token 1 and a tenth of token 2: (1, .5 + 2, 2 + .1).
    found = explain.accumulate([first, second], torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.5, 2.1]]))


@given(layers=st.integers(1, 4), tokens=st.integers(1, 6), batch=st.integers(1, 3), seed=st.integers(0, 50))
def test_accumulation_equals_the_rule_in_matrices(layers, tokens, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    averaged = torch.rand(layers, batch, tokens, tokens, generator=generator, dtype=torch.float64)
    query = torch.randint(tokens, (batch,), generator=generator)
    r = torch.eye(tokens, dtype=torch.float64).expand(batch, -1, -1)
    for a in averaged:
        r = r + a @ r
    torch.testing.assert_close(explain.accumulate(list(averaged), query), r[torch.arange(batch), query])


def test_treatments_by_hand():
    a1, a2, lam = torch.tensor([0.5, 0.2, 0.2, 0.1]), torch.tensor([0.2, 0.2, 0.3, 0.3]), torch.tensor(1.0)
    maps = AttentionMaps(a1=a1, a2=a2, lam=lam, difference=a1 - a2)  # [.3, 0, -.1, -.2]
    gradient = torch.tensor([2.0, 1.0, 3.0, -4.0])
    expected = {
        "clamp": [0.6, 0, 0, 0],
        "signed": [0.6, 0, 0, 0.8],
        "abs": [0.6, 0, 0.3, 0],
        "split": [1.0, 0.2, 0.6, 1.2],
    }
    assert expected.keys() == explain.NEGATIVE.keys()
    for name, values in expected.items():
        torch.testing.assert_close(explain._TREAT[name](maps, gradient), torch.tensor(values, dtype=torch.float32))


def test_treatments_agree_in_ordinary_attention():
    model = create_model("clip", "smoke", seed=0)
    images, tokens = smoke_inputs()
    first, *others = (explain.relevance(model, images, tokens, negative=name) for name in explain.NEGATIVE)
    assert first.max() > 0
    for other in others:
        torch.testing.assert_close(first, other)


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_relevance_equals_a_plain_reading_of_the_method(variant):
    """Gradients by finite differences on the maps would cost too much; here: autograd on one sample, then loops."""
    model = create_model(variant, "smoke", seed=1).eval()
    images, tokens = smoke_inputs(1)
    with record(model) as maps:
        out = model(images, tokens)
        image, words = (out[k] / out[k].norm(dim=-1, keepdim=True) for k in ("image_embed", "text_embed"))
        (out["logit_scale"].detach() * (image * words).sum()).backward()
    n = model.config.vision.tokens
    r = torch.eye(n)
    for layer in range(model.config.vision.depth):
        d, g = maps[layer].difference[0].detach(), maps[layer].difference.grad[0]
        a_bar = torch.zeros(n, n)
        for head in range(len(d)):
            a_bar += (g[head] * d[head].clamp(min=0)).clamp(min=0) / len(d)
        r = r + a_bar @ r
    found = explain.relevance(model, images, tokens)
    torch.testing.assert_close(found[0].flatten(), r[0, 1:], rtol=1e-4, atol=1e-7)


# -------------------------------------------------------------------------------------------- a model with a known answer


@pytest.mark.parametrize("negative", explain.NEGATIVE)
def test_ordinary_attention_finds_the_colour_asked_for(negative):
    model = colour_model("clip")
    board = picture(BOARD)
    assert on(explain.relevance(model, board, text(RED), negative=negative)) == {0}
    assert on(explain.relevance(model, board, text(GREEN), negative=negative)) == {4}


@pytest.mark.parametrize("variant", ["diffclip", "diffclip_vision"])
@pytest.mark.parametrize("negative", ["clamp", "signed", "abs"])
def test_differential_attention_finds_it_too(variant, negative):
    model = colour_model(variant)  # both maps are the same, lambda 0.8: a positive difference everywhere
    assert on(explain.relevance(model, picture(BOARD), text(RED), negative=negative)) == {0}
    assert on(explain.relevance(model, picture(BOARD), text(GREEN), negative=negative)) == {4}
    assert on(explain.relevance(model, picture(BOARD), text(BLUE), negative=negative)) == set()


def test_what_the_treatments_say_where_everything_is_subtracted():
    """lambda 1.8, so the difference is negative everywhere and the model sees the negative of the picture: asked for red,
    the red patch speaks against it once subtracted, and the green one for it."""
    model = colour_model("diffclip", lam=1.8)
    with record(model) as maps:
        assert torch.nn.functional.cosine_similarity(model.encode_image(picture(BOARD)), torch.eye(3)[:1]).item() < -0.5
    assert maps[0].lam.item() == pytest.approx(1.8) and maps[0].difference.max() < 0
    found = {n: explain.relevance(model, picture(BOARD), text(RED), negative=n) for n in explain.NEGATIVE}
    assert on(found["clamp"]) == set()
    assert on(found["signed"]) == {4}
    assert on(found["abs"]) == {0}
    assert on(found["split"]) == {0, 4}
    assert (found["split"][0, 1, 1] / found["split"][0, 0, 0]).item() == pytest.approx(1.8, rel=1e-3)


def test_two_red_patches_share_the_relevance():
    found = explain.relevance(colour_model("clip"), picture([RED, None, RED, GREEN] + [None] * 5), text(RED))[0]
    assert found[0, 0].item() == pytest.approx(found[0, 2].item(), rel=1e-5) and on(found) == {0, 2}


# -------------------------------------------------------------------------------------------------------- good citizens


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_batches_and_queries(variant):
    model = create_model(variant, "smoke", seed=0)
    images, tokens = smoke_inputs()
    maps = explain.relevance(model, images, tokens)
    assert maps.shape == (4, 4, 4) and maps.dtype == torch.float32 and not maps.requires_grad
    assert (maps >= 0).all() and (maps.amax((1, 2)) > 0).all()
    alone = torch.cat([explain.relevance(model, images[i : i + 1], tokens[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(maps, alone, rtol=1e-4, atol=1e-6)
    everywhere = explain.relevance(model, images, tokens[:1])
    torch.testing.assert_close(everywhere[0], maps[0], rtol=1e-4, atol=1e-6)
    one_image = explain.relevance(model, images[:1], tokens)
    torch.testing.assert_close(one_image[0], maps[0], rtol=1e-4, atol=1e-6)
    assert one_image.shape == (4, 4, 4) and not torch.allclose(one_image[1], maps[1])
    words = explain.text_relevance(model, images, tokens)
    alone = torch.cat([explain.text_relevance(model, images[i : i + 1], tokens[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(words, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_the_model_stays_as_it_was(variant):
    model = create_model(variant, "smoke", seed=0)
    images, tokens = smoke_inputs()
    model(images, tokens)["image_embed"].sum().backward()  # gradients somebody is accumulating
    before = {
        name: (p.detach().clone(), None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
    }
    for _ in range(2):
        explain.relevance(model, images, tokens)
        explain.text_relevance(model, images, tokens)
        explain.attention_noise(model, images, torch.ones(4, 32, 32, dtype=torch.bool))
    for name, p in model.named_parameters():
        value, gradient = before[name]
        assert torch.equal(p, value) and (gradient is None if p.grad is None else torch.equal(p.grad, gradient)), name
    assert model.training and images.grad is None and not images.requires_grad
    assert all(layer.map_sink is None for t in ("vision", "text") for layer in model.attention_layers(t))
    assert not model.text.token_embedding._forward_hooks


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
def test_frozen_models_and_modes(variant):
    """Frozen weights, no_grad, inference mode and gradient checkpointing change no map."""
    model = create_model(variant, "smoke", seed=0)
    images, tokens = smoke_inputs()

    def both(images=images, tokens=tokens):
        return explain.relevance(model, images, tokens), explain.text_relevance(model, images, tokens)

    expected = both()

    def check(found):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    with torch.no_grad():
        check(both())
    with torch.inference_mode():
        check(both(images.clone(), tokens.clone()))
    model.requires_grad_(False)
    check(both())
    model.requires_grad_(True)
    model.gradient_checkpointing(True)
    check(both())


def test_gradients_reach_both_maps():
    model = create_model("diffclip", "smoke", seed=0)
    images, _ = smoke_inputs(2)
    with record(model) as maps:
        out = model.encode_image(images).square().sum()
        found = torch.autograd.grad(out, [t for i in maps for t in (maps[i].a1, maps[i].a2, maps[i].difference)])
    for i in maps:
        first, second, difference = found[3 * i : 3 * i + 3]
        assert first.abs().max() > 0
        torch.testing.assert_close(first, difference)  # d/dA1 = d/dD, d/dA2 = -lambda d/dD
        torch.testing.assert_close(second, -maps[i].lam * difference)


def test_chosen_layers_and_logit_scale():
    model = create_model("diffclip", "smoke", seed=0)
    images, tokens = smoke_inputs(2)
    whole = explain.relevance(model, images, tokens)
    last = explain.relevance(model, images, tokens, layers=[1])
    assert not torch.allclose(whole, last)
    with pytest.raises(ValueError, match="there is no layer 2"):
        explain.relevance(model, images, tokens, layers=[2])
    model.logit_scale.data.add_(torch.tensor(2.0).log())  # one layer: the map is linear in the logit
    torch.testing.assert_close(explain.relevance(model, images, tokens, layers=[1]), 2 * last, rtol=1e-4, atol=1e-7)


def test_text_relevance_is_about_the_words():
    model = create_model("diffclip", "smoke", seed=0)
    images, tokens = smoke_inputs(3)
    found = explain.text_relevance(model, images, tokens)
    assert found.shape == (3, 24)
    for row, ids in zip(found, tokens, strict=True):
        end = int(ids.argmax())
        assert row[0] == 0 and (row[end:] == 0).all() and (row >= 0).all()
    assert found.max() > 0
    later = tokens.clone()
    later[:, 20] = 5  # after the end: no word of it
    torch.testing.assert_close(explain.text_relevance(model, images, later), found, rtol=1e-4, atol=1e-6)


def test_misuse():
    model = create_model("diffclip", "smoke", seed=0)
    images, tokens = smoke_inputs()
    with pytest.raises(ValueError, match="Unknown treatment of negative entries 'drop'; choose one of clamp, signed"):
        explain.relevance(model, images, tokens, negative="drop")
    with pytest.raises(ValueError, match="4 images and 3 texts do not pair up"):
        explain.relevance(model, images, tokens[:3])
    with pytest.raises(ValueError, match="Unknown part of a map 'third'"):
        explain.attention_noise(model, images, torch.ones(4, 8, 8, dtype=torch.bool), part="third")
    with pytest.raises(ValueError, match="One mask .* 4 in all"):
        explain.attention_noise(model, images, torch.ones(3, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="no second one"):
        explain.attention_noise(
            create_model("clip", "smoke"), images, torch.ones(4, 8, 8, dtype=torch.bool), part="second"
        )


def test_upsample_interpolates_between_centres():
    found = explain.upsample(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), 4)
    torch.testing.assert_close(found[0], torch.tensor([0, 0.25, 0.75, 1]).expand(4, 4))
    assert explain.upsample(torch.full((2, 3, 3), 0.7), (5, 8)).shape == (2, 5, 8)


# ----------------------------------------------------------------------------------------------------------------- noise


def object_mask(*patches, size=24):
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    for i in patches:
        mask[0, i // 3, i % 3] = True
    return mask.repeat_interleave(size // 3, 1).repeat_interleave(size // 3, 2)


@pytest.mark.parametrize("variant", ["clip", "diffclip"])
@pytest.mark.parametrize("part", ["positive", "absolute", "first"])
def test_attention_without_aim_is_noise_by_area(variant, part):
    model = colour_model(variant)
    found = explain.attention_noise(model, picture(BOARD), object_mask(0, 4), part=part)
    torch.testing.assert_close(found, torch.tensor([[7 / 9]]))
    half = object_mask(0)
    half[:, :4] = False  # half of one patch
    torch.testing.assert_close(
        explain.attention_noise(model, picture(BOARD), half, part=part), torch.tensor([[17 / 18]])
    )


def test_attention_with_aim_falls_on_the_object():
    """The first head (ordinary), or the first map of the pair (differential), attends to red alone."""
    board = picture(BOARD)
    clip, diffclip = colour_model("clip", aim=RED), colour_model("diffclip", aim=RED)

    def noise(model, part, *objects):
        return explain.attention_noise(model, board, object_mask(*objects), part=part).item()

    assert noise(clip, "positive", 0) == pytest.approx((0 + 8 / 9) / 2, abs=1e-4)  # its other head has no aim
    assert noise(diffclip, "first", 0) == pytest.approx(0, abs=1e-4)
    assert noise(diffclip, "first", 4) == pytest.approx(1, abs=1e-4)
    assert noise(diffclip, "second", 0) == pytest.approx(8 / 9, abs=1e-4)
    # A1 - 0.8 A2 with A2 a tenth everywhere: 0.92 on the red patch, -0.08 on the others.
    assert noise(diffclip, "positive", 0) == pytest.approx(0, abs=1e-4)
    assert noise(diffclip, "absolute", 0) == pytest.approx(8 * 0.08 / (0.92 + 8 * 0.08), abs=1e-3)


def test_a_head_without_weight_is_left_out():
    model = colour_model("diffclip", lam=1.8)  # negative everywhere
    found = explain.attention_noise(model, picture(BOARD), object_mask(0))
    assert found.isnan().all()
    assert explain.attention_noise(model, picture(BOARD), object_mask(0), part="absolute").item() == pytest.approx(
        8 / 9
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_noise_has_a_number_a_layer(variant):
    model = create_model(variant, "smoke", seed=0)
    images, _ = smoke_inputs()
    objects = torch.zeros(4, 32, 32, dtype=torch.bool)
    objects[:, 5:20, 9:30] = True
    for part in ("positive", "absolute", "first"):
        found = explain.attention_noise(model, images, objects, part=part)
        assert found.shape == (4, 2) and ((found > 0) & (found < 1)).all()
        background = explain.attention_noise(model, images, ~objects, part=part)
        torch.testing.assert_close(found + background, torch.ones(4, 2))
