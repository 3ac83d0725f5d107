"""Where a model looks for a text: relevance of image patches to a query, for ordinary and for differential attention.

The method is the self-attention rule of Chefer, Gur and Wolf 2021 (Generic Attention-model Explainability), with the
logit of an image-text pair as its target. For each layer, first to last, with attention map A and gradient G of the
logit with respect to it,

    A_bar = mean over heads of (G * A)^+        R <- R + A_bar R        starting from R = I

and the class token's row of R, over the patches, is the relevance map.

In differential attention the map that multiplies the values is D = A1 - lambda A2, so D takes the place of A, with its
own gradient. Unlike a softmax map it has negative entries: tokens that are subtracted. What to do with those is a choice,
the argument `negative` (see NEGATIVE). In ordinary attention all choices are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.attention import AttentionMaps, record
from diffclip.model import CLIP

NEGATIVE = {
    "clamp": "only what is added counts: (G * D^+)^+. A patch that the head subtracts is not where the model looks, even "
    "if subtracting it helps the query.",
    "signed": "the rule read literally: (G * D)^+. A patch also counts if it is subtracted and its value speaks against "
    "the query: a true contribution to the logit, but often of what is not asked for.",
    "abs": "attention by its size: (G * |D|)^+. A subtracted patch counts if its value speaks for the query, although the "
    "head weakens it.",
    "split": "both softmax maps on their own: (G * A1)^+ + (-lambda G * A2)^+, the gradients of A1 and A2. What both maps "
    "share does not cancel, so this shows attention before the subtraction.",
}
"""The treatments of negative entries, and what each means."""

PARTS = {
    "positive": "the positive part of the map that multiplies the values",
    "absolute": "its absolute value: what is subtracted is attended to as well",
    "first": "A1 alone",
    "second": "A2 alone",
}
"""What `attention_noise` takes for attention; the first three are the same in ordinary attention, which has no A2."""


def relevance(
    model: CLIP, images: Tensor, tokens: Tensor, *, negative: str = "clamp", layers: Iterable[int] | None = None
) -> Tensor:
    """Relevance of every patch to a text, for a batch of images with a text each.

    images: normalised pixels [B, 3, H, W]. tokens: [B, L]. Either may be one for all. negative: a key of NEGATIVE. layers: those to accumulate over, default all. Returns float32 [B, grid, grid], not negative, in units of
    the logit (so only comparable within a map). Samples do not influence each other; the model's weights and their
    gradients stay as they are. Raises ValueError for an unknown treatment or layer, or sizes that do not fit.
    """
    _check_choice("treatment of negative entries", negative, NEGATIVE)
    images, tokens = _paired(images, tokens)
    with torch.inference_mode(False), torch.enable_grad(), record(model, "vision", layers) as maps:
        images = images.detach().clone().requires_grad_()  # so that the maps have gradients in a frozen model too
        with torch.no_grad():
            text = model.encode_text(tokens.clone())
        averaged = _averaged(model, model.encode_image(images), text, maps, negative)
    row = accumulate(averaged, torch.zeros(len(images), dtype=torch.long, device=images.device))  # the class token's
    grid = model.config.vision.grid
    return row[:, 1:].reshape(-1, grid, grid).float()


def text_relevance(
    model: CLIP, images: Tensor, tokens: Tensor, *, negative: str = "clamp", layers: Iterable[int] | None = None
) -> Tensor:
    """Relevance of every token of a text to an image: as `relevance`, in the text tower, from the end-of-text token.

    images: [B, 3, H, W]. tokens: [B, L]. Either may be one for all. Returns float32 [B, L], zero at the start and end of the text
    and after it.
    """
    _check_choice("treatment of negative entries", negative, NEGATIVE)
    images, tokens = _paired(images, tokens)
    end = tokens.argmax(dim=1)  # where the text is pooled
    with torch.inference_mode(False), torch.enable_grad(), record(model, "text", layers) as maps:
        tokens = tokens.clone()
        hook = model.text.token_embedding.register_forward_hook(_with_gradient)
        try:
            with torch.no_grad():
                image = model.encode_image(images.clone())
            averaged = _averaged(model, image, model.encode_text(tokens), maps, negative)
        finally:
            hook.remove()
    row = accumulate(averaged, end)
    position = torch.arange(tokens.shape[1], device=tokens.device)
    return row.masked_fill((position == 0) | (position >= end[:, None]), 0).float()


def accumulate(averaged: Sequence[Tensor], query: Tensor) -> Tensor:
    """One row of R for each sample: averaged[l] is A_bar of layer l [B, T, T], query [B] the row's token -> [B, T].

    R = (I + A_bar_last) ... (I + A_bar_first), so a row of it needs one vector-matrix product a layer, last layer first.
    """
    row = F.one_hot(query, averaged[0].shape[-1]).to(averaged[0])
    for a in reversed(averaged):
        row = row + torch.einsum("bt,bts->bs", row, a)
    return row


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Maps [N, grid, grid] -> [N, size, size], bilinear between the patches' centres."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def attention_noise(model: CLIP, images: Tensor, objects: Tensor, *, part: str = "positive") -> Tensor:
    """Share of the class token's attention to patches that falls on background, in each layer.

    images: [B, 3, H, W]; objects: bool [B, h, w], True where anything but background is (a patch counts by the share of
    its area). A head's weights over the patches are made to sum to one, and the heads averaged: each head's output is
    normalised, so each has its say however small its weights. Which weights, is `part`, a key of PARTS; a differential
    map can be negative, so its positive part and its absolute value are the two readings, and "first" and "second"
    show what the subtraction starts from. Returns float32 [B, layers]; compare with the share of background in the
    area, which is what attention without aim has. NaN where no head has any weight on a patch.
    """
    _check_choice("part of a map", part, PARTS)
    if objects.ndim != 3 or len(objects) != len(images):
        raise ValueError(f"One mask [h, w] an image, {len(images)} in all, was expected; got {list(objects.shape)}.")
    with record(model, "vision") as maps:
        model.encode_image(images)
    background = 1 - F.adaptive_avg_pool2d(objects[:, None].float(), model.config.vision.grid).flatten(1)  # [B, P]
    shares = []
    for layer in sorted(maps):
        weights = _part(maps[layer], part)[:, :, 0, 1:].float()  # class token to patches: [B, heads, P]
        share = (weights * background[:, None]).sum(-1) / weights.sum(-1)  # 0 / 0 is NaN: a head without weight
        shares.append(share.nanmean(dim=1))
    return torch.stack(shares, dim=1)


# --------------------------------------------------------------------------------------------------------------- inside


def _averaged(model: CLIP, image: Tensor, text: Tensor, maps: dict[int, AttentionMaps], negative: str) -> list[Tensor]:
    """A_bar of each recorded layer, first to last, for pairs of embeddings [B, D]."""
    logits = model.logit_scale.detach().exp() * F.cosine_similarity(image, text)
    found = [maps[layer] for layer in sorted(maps)]
    gradients = torch.autograd.grad(logits.sum(), [m.difference for m in found])
    return [_TREAT[negative](m, g).mean(dim=1).detach() for m, g in zip(found, gradients, strict=True)]


def _clamp(maps: AttentionMaps, gradient: Tensor) -> Tensor:
    return (gradient * maps.difference.clamp(min=0)).clamp(min=0)


def _signed(maps: AttentionMaps, gradient: Tensor) -> Tensor:
    return (gradient * maps.difference).clamp(min=0)


def _abs(maps: AttentionMaps, gradient: Tensor) -> Tensor:
    return (gradient * maps.difference.abs()).clamp(min=0)


def _split(maps: AttentionMaps, gradient: Tensor) -> Tensor:
    first = (gradient * maps.a1).clamp(min=0)
    return first if maps.a2 is None else first + (-maps.lam * gradient * maps.a2).clamp(min=0)


_TREAT: dict[str, Callable[[AttentionMaps, Tensor], Tensor]] = {
    "clamp": _clamp,
    "signed": _signed,
    "abs": _abs,
    "split": _split,
}


def _part(maps: AttentionMaps, part: str) -> Tensor:
    if part == "second":
        if maps.a2 is None:
            raise ValueError("Ordinary attention has one map: there is no second one to look at in this tower.")
        return maps.a2
    return {"positive": maps.difference.clamp(min=0), "absolute": maps.difference.abs(), "first": maps.a1}[part]


def _with_gradient(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: make an embedding of whole numbers the start of a graph, in a frozen model too."""
    return output if output.requires_grad else output.requires_grad_()


def _check_choice(what: str, value: str, known: dict[str, str]) -> None:
    if value not in known:
        raise ValueError(f"Unknown {what} {value!r}; choose one of {', '.join(known)}.")


def _paired(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As many images as texts, a single one of either repeated."""
    pairs = max(len(images), len(tokens))
    if len({len(images), len(tokens)} - {1, pairs}) > 0:
        raise ValueError(
            f"{len(images)} images and {len(tokens)} texts do not pair up. Give as many of one as of the other, or one of "
            f"either."
        )
    return images.expand(pairs, *images.shape[1:]), tokens.expand(pairs, *tokens.shape[1:])
