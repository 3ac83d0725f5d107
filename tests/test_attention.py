"""Attention against its equations, its implementations against each other, and the maps on request."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffclip.attention import (
    Attention,
    AttentionMaps,
    DifferentialAttention,
    attend,
    constant_lambda_init,
    differential_attend,
    dynamic_lambda_init,
    record,
    softmax_maps,
)
from diffclip.model import VARIANTS, create_model

# ------------------------------------------------------------------------------- the equations, one number after another


def softmax_row(query, keys, last):
    """The weights of one query over the keys 0..last, and zeros after them."""
    scores = torch.stack([query @ key / math.sqrt(len(query)) for key in keys[: last + 1]]).exp()
    return torch.cat([scores / scores.sum(), scores.new_zeros(len(keys) - last - 1)])


def reference(layer, x, causal):
    """(output, difference maps) of one layer on x [tokens, dim], head by head and token by token."""
    tokens, dim = x.shape
    width = dim // layer.num_heads
    if layer.differential:
        q, k, v = (x @ p.weight.T + p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        lam = (
            math.e ** (layer.lambda_q1 * layer.lambda_k1).sum()
            - math.e ** (layer.lambda_q2 * layer.lambda_k2).sum()
            + layer.lambda_init
        )
    else:
        q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, dim=1)
    heads, maps = [], []
    for h in range(layer.num_heads // 2 if layer.differential else layer.num_heads):
        rows = []
        for t in range(tokens):
            last = t if causal else tokens - 1

            def weights(column, t=t, last=last):
                return softmax_row(q[t, column : column + width], k[:, column : column + width], last)

            if layer.differential:  # query heads 2h and 2h+1 are a pair; the values are twice as wide
                rows.append(weights(2 * h * width) - lam * weights((2 * h + 1) * width))
            else:
                rows.append(weights(h * width))
        a = torch.stack(rows)
        value_width = 2 * width if layer.differential else width
        out = a @ v[:, h * value_width : (h + 1) * value_width]
        if layer.differential:
            scale = (out.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
            out = (1 - layer.lambda_init) * layer.diff_norm.weight * out / scale
        heads.append(out)
        maps.append(a)
    last = layer.out_proj if layer.differential else layer.proj
    return torch.cat(heads, dim=1) @ last.weight.T + last.bias, torch.stack(maps)


def random_layer(cls, dim=24, heads=4, seed=0):
    torch.manual_seed(seed)
    layer = cls(dim, heads, **({"lambda_init": 0.35} if cls.differential else {})).double()
    for parameter in layer.parameters():  # nothing may be zero, one, or the same for all
        parameter.data.uniform_(-0.8, 0.8)
    return layer


def value_and_gradients(layer, x, forward):
    x = x.clone().requires_grad_()
    out = forward(x)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).sin()
    gradients = torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])
    return [out.detach(), *gradients]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "fused", "maps"])
@pytest.mark.parametrize("cls", [Attention, DifferentialAttention])
def test_equals_the_equations_in_value_and_gradient(cls, implementation, causal):
    layer = random_layer(cls)
    layer.implementation = implementation
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    expected = value_and_gradients(layer, x, lambda x: torch.stack([reference(layer, one, causal)[0] for one in x]))
    found = value_and_gradients(layer, x, lambda x: layer(x, is_causal=causal))
    names = ["output", "x", *(name for name, _ in layer.named_parameters())]
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cls", [Attention, DifferentialAttention])
def test_maps_equal_the_equations(cls, causal):
    layer = random_layer(cls, seed=1)
    found = []
    layer.map_sink = found.append
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    layer(x, is_causal=causal)
    expected = torch.stack([reference(layer, one, causal)[1] for one in x])
    torch.testing.assert_close(found[0].difference, expected, rtol=1e-9, atol=1e-9)


def test_a_single_precision_layer_is_close_to_the_equations():
    layer = random_layer(DifferentialAttention, seed=2)
    x = torch.randn(1, 7, 24, dtype=torch.float64)
    expected = reference(layer, x[0], False)[0]
    layer.float()
    for implementation in ("fused", "maps"):
        layer.implementation = implementation
        torch.testing.assert_close(layer(x.float())[0].double(), expected, rtol=1e-4, atol=1e-5)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 4),
    width=st.integers(1, 6),
    causal=st.booleans(),
)
def test_implementations_agree_on_any_shape(batch, tokens, heads, width, causal):
    q, k = torch.randn(2, batch, 2 * heads, tokens, width, dtype=torch.float64)
    v = torch.randn(batch, heads, tokens, 2 * width, dtype=torch.float64)
    lam = torch.tensor(0.7, dtype=torch.float64)
    a, maps = differential_attend(q, k, v, lam, is_causal=causal, implementation="maps")
    b, none = differential_attend(q, k, v, lam, is_causal=causal, implementation="fused")
    assert a.shape == b.shape == v.shape and none is None
    assert maps.a1.shape == maps.a2.shape == maps.difference.shape == (batch, heads, tokens, tokens)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    a, maps = attend(q, k, q, is_causal=causal, implementation="maps")
    b, _ = attend(q, k, q, is_causal=causal, implementation="fused")
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps.a1.sum(-1), torch.ones(batch, 2 * heads, tokens, dtype=torch.float64))
    if causal:
        assert maps.a1.triu(1).eq(0).all()


def test_softmax_maps_by_hand():
    q = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    k = torch.tensor([[math.sqrt(2) * math.log(3), 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(softmax_maps(q, k)[0, 0], torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    torch.testing.assert_close(softmax_maps(q, k, True)[0, 0], torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


# ----------------------------------------------------------------------------------------------------------- lambda


def test_lambda_schedules():
    assert [constant_lambda_init(i) for i in (0, 5, 11)] == [0.8, 0.8, 0.8]
    assert dynamic_lambda_init(0) == pytest.approx(0.2)
    assert dynamic_lambda_init(1) == pytest.approx(0.35550907, abs=1e-7)  # 0.8 - 0.6 exp(-0.3)
    assert dynamic_lambda_init(11) == pytest.approx(0.77787010, abs=1e-7)
    with pytest.raises(ValueError, match="counts from 0"):
        dynamic_lambda_init(-1)


def test_lambda_reparameterisation():
    layer = DifferentialAttention(8, 4, lambda_init=0.2)
    for name, values in {"q1": (1, 2), "k1": (0.5, 0.1), "q2": (1, -1), "k2": (0.2, 0.3)}.items():
        getattr(layer, f"lambda_{name}").data.copy_(torch.tensor(values))
    assert layer.effective_lambda().item() == pytest.approx(math.exp(0.7) - math.exp(-0.1) + 0.2, rel=1e-6)
    assert layer.bfloat16().effective_lambda().dtype == torch.float32
    assert layer.double().effective_lambda().dtype == torch.float64


@pytest.mark.parametrize("variant, first, second", [("diffclip", 0.8, 0.8), ("diffclip_dynamic", 0.2, 0.35550907)])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_towers_set_lambda_init_layer_by_layer(variant, first, second, tower):
    layers = create_model(variant, "smoke").attention_layers(tower)
    assert [layer.lambda_init for layer in layers] == pytest.approx([first, second])


def test_lambda_vectors_start_near_zero():
    torch.manual_seed(0)
    layer = DifferentialAttention(2048, 2)
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        values = getattr(layer, name)
        assert values.shape == (1024,)
        assert values.std().item() == pytest.approx(0.1, rel=0.1) and abs(values.mean().item()) < 0.01


# -------------------------------------------------------------------------------------------------------- on request


@pytest.fixture(scope="module", params=list(VARIANTS))
def model(request):
    return create_model(request.param, "smoke", seed=0).eval()


@pytest.fixture(scope="module")
def batch(model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    return images, torch.randint(1, 400, (3, 24), generator=generator)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_recorded_maps_are_distributions_and_their_difference(model, batch, tower):
    with record(model, tower) as maps:
        model(*batch)
    config = model.config.vision if tower == "vision" else model.config.text
    tokens = config.tokens if tower == "vision" else config.context_length
    assert sorted(maps) == list(range(config.depth))
    for i, layer in enumerate(model.attention_layers(tower)):
        found = maps[i]
        heads = config.heads // 2 if layer.differential else config.heads
        assert found.a1.shape == found.difference.shape == (3, heads, tokens, tokens)
        torch.testing.assert_close(found.a1.sum(-1), torch.ones(3, heads, tokens))
        if layer.differential:
            torch.testing.assert_close(found.a2.sum(-1), torch.ones(3, heads, tokens))
            assert not torch.equal(found.a1, found.a2)
            assert found.lam.item() == pytest.approx(model.lambdas()[f"{tower}.{i}"])
            torch.testing.assert_close(found.difference, found.a1 - found.lam * found.a2)
        else:
            assert found.a2 is None and found.lam is None and found.difference is found.a1
        if tower == "text":
            assert found.difference.triu(1).eq(0).all()


def test_recording_changes_no_output_and_ends_with_the_block(model, batch):
    before = model(*batch)
    with record(model) as maps, record(model, "text") as text_maps:
        during = model(*batch)
    after = model(*batch)
    for key in before:
        torch.testing.assert_close(during[key], before[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    seen = [(found.a1.data_ptr(), i) for kind in (maps, text_maps) for i, found in kind.items()]
    model(-batch[0], batch[1])  # outside the block: the maps stay as they were
    assert seen == [(found.a1.data_ptr(), i) for kind in (maps, text_maps) for i, found in kind.items()]
    assert all(layer.map_sink is None for tower in ("vision", "text") for layer in model.attention_layers(tower))


def test_recording_ends_after_an_error(model):
    with pytest.raises(RuntimeError, match="from the block"), record(model):
        raise RuntimeError("from the block")
    assert all(layer.map_sink is None for layer in model.attention_layers("vision"))


def test_recording_of_chosen_layers(model, batch):
    with record(model, layers=[1]) as maps:
        model.encode_image(batch[0])
    assert list(maps) == [1]
    with pytest.raises(ValueError, match="layers 0 to 1; there is no layer 2"), record(model, layers=[0, 2]):
        pass
    with pytest.raises(ValueError, match="'vision' and 'text'; got 'audio'"), record(model, "audio"):
        pass


def test_gradients_flow_to_recorded_maps(model, batch):
    with record(model) as maps:
        model.encode_image(batch[0].clone().requires_grad_()).sum().backward()
    model.zero_grad()
    for found in maps.values():
        assert isinstance(found, AttentionMaps)
        assert found.difference.grad.shape == found.difference.shape and found.difference.grad.abs().sum() > 0


def test_nothing_is_kept_when_not_asked_for(model, batch):
    """Outside `record` no layer holds on to its maps, even where its implementation writes them out."""
    layer = model.attention_layers("vision")[0]
    before, layer.implementation = layer.implementation, "maps"
    try:
        model.encode_image(batch[0])
        assert not any(isinstance(v, AttentionMaps) for v in vars(layer).values())
    finally:
        layer.implementation = before


# ------------------------------------------------------------------------------------------------------------- misuse


def test_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="width of 30 cannot be split into 4 attention heads"):
        Attention(30, 4)
    with pytest.raises(ValueError, match="even number of them; got 3"):
        DifferentialAttention(24, 3)
    with pytest.raises(ValueError, match="0 attention heads"):
        Attention(24, 0)
    with pytest.raises(ValueError, match="got 3 query heads and 1 value heads"):
        differential_attend(*torch.randn(2, 1, 3, 4, 2), torch.randn(1, 1, 4, 4), torch.tensor(0.8))


def test_unknown_implementation_and_masks():
    layer = Attention(8, 2)
    layer.implementation = "quantum"
    with pytest.raises(ValueError, match="'quantum'; choose one of auto, fused, maps"):
        layer(torch.randn(1, 3, 8))
    with pytest.raises(ValueError, match="no padding mask"):
        Attention(8, 2)(torch.randn(1, 3, 8), attn_mask=torch.ones(3, 3))
