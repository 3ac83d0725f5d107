"""Attention and differential attention: one definition, two implementations, maps on request.

Softmax attention gives every query one distribution over the tokens. Differential attention (Ye et al., Differential
Transformer; DiffCLIP section 3) gives it two, and subtracts the second with a learned weight:

    A1 = softmax(Q1 K1' / sqrt(d))      A2 = softmax(Q2 K2' / sqrt(d))
    head = (1 - lambda_init) * RMSNorm((A1 - lambda A2) V)
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init

With h heads of width d asked for, there are h/2 differential heads; queries and keys keep h heads of width d, of which
2i and 2i+1 are the pair (A1, A2) of differential head i, and the values have h/2 heads of width 2d. So the projections
have the sizes of ordinary attention, and only four vectors of width d and one norm weight of width 2d are added a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAMBDA_INIT = 0.8  # DiffCLIP: the same in every layer (section 3.2)
RMS_NORM_EPS = 1e-5
IMPLEMENTATIONS = ("auto", "fused", "maps")


def constant_lambda_init(layer: int) -> float:
    """lambda_init of DiffCLIP: 0.8 in every layer (paper section 3.2)."""
    return LAMBDA_INIT


def dynamic_lambda_init(layer: int) -> float:
    """lambda_init of DiffCLIP*: 0.8 - 0.6 exp(-0.3 layer), layers counted from 0 (Differential Transformer, section 2.1)."""
    if layer < 0:
        raise ValueError(f"A layer index counts from 0; got {layer}.")
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


@dataclass
class AttentionMaps:
    """The maps of one layer for one batch, differentiable.

    `difference` is what multiplies the values: A1 - lambda A2, or the softmax map itself in ordinary attention, where
    `a2` and `lam` are None. Shapes [batch, heads, queries, keys]; heads is h/2 for differential attention.
    """

    a1: Tensor
    a2: Tensor | None
    lam: Tensor | None
    difference: Tensor


def softmax_maps(q: Tensor, k: Tensor, is_causal: bool = False) -> Tensor:
    """softmax(q k' / sqrt(d)) for q, k of shape [..., tokens, d]; with `is_causal` a token sees itself and those before."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, implementation: str = "auto"
) -> tuple[Tensor, AttentionMaps | None]:
    """Softmax attention: q, k, v [batch, heads, tokens, d] -> ([batch, heads, tokens, d], maps or None).

    `implementation`: "maps" writes the map out and returns it, "fused" leaves it to torch's kernels and returns None,
    "auto" is "fused". Both compute the same function; a test compares values and gradients.
    """
    if _needs_maps(implementation):
        a = softmax_maps(q, k, is_causal)
        return a @ v, AttentionMaps(a1=a, a2=None, lam=None, difference=a)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal), None


def differential_attend(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, *, is_causal: bool = False, implementation: str = "auto"
) -> tuple[Tensor, AttentionMaps | None]:
    """(A1 - lambda A2) V: q, k [batch, 2n, tokens, d], v [batch, n, tokens, e] -> ([batch, n, tokens, e], maps or None).

    Heads 2i and 2i+1 of q and k make A1 and A2 of differential head i; `lam` is a scalar tensor. For `implementation`
    see `attend`, except that "auto" writes the maps out on a CPU, where one product with V instead of two makes that the
    faster way. The fused form attends with both maps, V shared by the pair, and subtracts the results.
    """
    if implementation == "auto":
        implementation = "maps" if q.device.type == "cpu" else "fused"
    if q.shape[1] != 2 * v.shape[1]:
        raise ValueError(
            f"Differential attention needs two query heads for every value head; got {q.shape[1]} query heads and "
            f"{v.shape[1]} value heads."
        )
    lam = lam.to(v.dtype)
    if _needs_maps(implementation):
        a1, a2 = softmax_maps(q, k, is_causal).unflatten(1, (-1, 2)).unbind(2)  # each [B, n, T, T]
        difference = a1 - lam * a2
        return difference @ v, AttentionMaps(a1=a1, a2=a2, lam=lam, difference=difference)
    both = F.scaled_dot_product_attention(q, k, v.repeat_interleave(2, dim=1), is_causal=is_causal)  # [B, 2n, T, e]
    first, second = both.unflatten(1, (-1, 2)).unbind(2)
    return first - lam * second, None


def _needs_maps(implementation: str) -> bool:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"Unknown attention implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}."
        )
    return implementation == "maps"


def check_heads(dim: int, num_heads: int, *, differential: bool) -> None:
    """Raise ValueError unless `num_heads` divides `dim` (and is even, for differential attention)."""
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(
            f"A width of {dim} cannot be split into {num_heads} attention heads of equal width. Choose a number of heads "
            f"that divides the width."
        )
    if differential and num_heads % 2:
        raise ValueError(
            f"Differential attention pairs its heads, so it needs an even number of them; got {num_heads}. "
            f"Choose an even number, or attention without the difference (variant 'clip')."
        )


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of timm's, able to hand out its maps.

    forward: [batch, tokens, dim] -> [batch, tokens, dim]. The unused keyword arguments are what timm's Block passes to
    any attention layer.
    """

    differential = False

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, **_: object) -> None:
        super().__init__()
        check_heads(dim, num_heads, differential=False)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.implementation = "auto"
        self.map_sink: Callable[[AttentionMaps], None] | None = None  # set by `record`

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        _refuse_mask(attn_mask)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, h, T, d]
        x, maps = attend(q, k, v, is_causal=is_causal, implementation="maps" if self.map_sink else self.implementation)
        _hand_out(maps, self.map_sink)
        return self.proj(x.transpose(1, 2).flatten(2))


class DifferentialAttention(nn.Module):
    """Multi-head differential self-attention (DiffCLIP section 3): [batch, tokens, dim] -> [batch, tokens, dim].

    `lambda_init` is a plain number, not a parameter: it is not in a state dict, and the towers set it per layer.
    """

    differential = True

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, lambda_init: float = LAMBDA_INIT, **_: object
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, differential=True)
        self.num_heads = num_heads
        self.lambda_init = lambda_init
        head_dim = dim // num_heads
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.out_proj = nn.Linear(dim, dim)
        self.diff_norm = nn.RMSNorm(2 * head_dim, eps=RMS_NORM_EPS)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, nn.Parameter(torch.empty(head_dim).normal_(0, 0.1)))
        self.implementation = "auto"
        self.map_sink: Callable[[AttentionMaps], None] | None = None  # set by `record`

    def effective_lambda(self) -> Tensor:
        """lambda of this layer, a scalar of at least float32: the exponentials stay out of half precision."""
        vectors = (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        q1, k1, q2, k2 = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in vectors)
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_init

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        _refuse_mask(attn_mask)
        q = self.q_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, h, T, d]
        k = self.k_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, h, T, d]
        v = self.v_proj(x).unflatten(-1, (self.num_heads // 2, -1)).transpose(1, 2)  # [B, h/2, T, 2d]
        implementation = "maps" if self.map_sink else self.implementation
        x, maps = differential_attend(
            q, k, v, self.effective_lambda(), is_causal=is_causal, implementation=implementation
        )
        _hand_out(maps, self.map_sink)
        x = self.diff_norm(x) * (1 - self.lambda_init)  # [B, h/2, T, 2d]
        return self.out_proj(x.transpose(1, 2).flatten(2))


def _refuse_mask(attn_mask: Tensor | None) -> None:
    if attn_mask is not None:
        raise ValueError("These towers know no padding mask: images have none, and text is causal (is_causal=True).")


def _hand_out(maps: AttentionMaps | None, sink: Callable[[AttentionMaps], None] | None) -> None:
    if maps is not None and sink is not None:
        if maps.difference.requires_grad:
            maps.difference.retain_grad()  # relevance methods weight the map by its own gradient
        sink(maps)


@contextmanager
def record(
    model: nn.Module, tower: str = "vision", layers: Iterable[int] | None = None
) -> Iterator[dict[int, AttentionMaps]]:
    """Collect the attention maps of the forward passes made inside the block.

    model: anything with `attention_layers(tower)`, such as our CLIP. layers: indices from 0, default all. Yields a dict
    that each forward pass fills with layer -> AttentionMaps; a second pass overwrites the first. Outside the block the
    model runs fused, at no cost.
    """
    attentions = model.attention_layers(tower)
    chosen = range(len(attentions)) if layers is None else list(layers)
    unknown = [i for i in chosen if not 0 <= i < len(attentions)]
    if unknown:
        raise ValueError(f"The {tower} tower has layers 0 to {len(attentions) - 1}; there is no layer {unknown[0]}.")
    maps: dict[int, AttentionMaps] = {}
    try:
        for i in chosen:
            attentions[i].map_sink = lambda found, i=i: maps.__setitem__(i, found)
        yield maps
    finally:
        for i in chosen:
            attentions[i].map_sink = None
