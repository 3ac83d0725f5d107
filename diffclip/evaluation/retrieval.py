"""Cross-modal retrieval: recall at k in both directions, with several captions an image.

Protocol: the LAION CLIP Benchmark. Image retrieval: every caption is a query, a hit if its image is among the k
nearest images. Text retrieval: every image is a query, a hit if any of its captions is among the k nearest captions
of all images. The score is the cosine.

Instead of sorting, the place of the right item is found by counting the wrong ones that score at least as high. One
pass over the score matrix, a block at a time, serves every k and both directions, and the matrix is never held whole.

Ties count against the model: a wrong item as near as the right one is placed before it. The answer then does not
depend on the order of the gallery, and a model that embeds everything alike finds nothing. Scores closer than TIE are
a tie, because float32 cannot tell them apart (the same product computed in another block differs by about 1e-7). Two
images with literally the same caption tie, too: neither can claim it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import EvaluationError, check_features, check_labels, check_top_k

TIE = 1e-6
DIRECTIONS = ("image_retrieval", "text_retrieval")
_BLOCK = 8_000_000  # scores held at a time: 32 MB


@dataclass(frozen=True)
class RetrievalResult:
    """Where each query found its match: 0 is first. Recalls are shares in [0, 1]."""

    image_rank: Tensor  # [n_captions] int64: wrong images placed before the caption's image
    text_rank: Tensor  # [n_images] int64: wrong captions placed before the image's best caption
    owner: Tensor  # [n_captions] int64: the image each caption belongs to

    def hits(self, direction: str, k: int) -> Tensor:
        """bool, one a query: [n_captions] for image_retrieval, [n_images] for text_retrieval."""
        if direction not in DIRECTIONS:
            raise EvaluationError(f"Unknown direction {direction!r}; choose one of {', '.join(DIRECTIONS)}.")
        if direction == "image_retrieval":
            check_top_k([k], len(self.text_rank), direction)
            return self.image_rank < k
        check_top_k([k], len(self.image_rank), direction)
        return self.text_rank < k

    def recall(self, direction: str, k: int) -> float:
        """Recall at k: the share of queries that hit."""
        return self.hits(direction, k).double().mean().item()


def score(image_embed: Tensor, text_embed: Tensor, owner: Tensor | Sequence[int]) -> RetrievalResult:
    """Rank captions against images and images against captions.

    image_embed [n_images, D], text_embed [n_captions, D] (any norm), owner [n_captions] the row of each caption's
    image. Raises EvaluationError for features that are not finite, an owner that does not exist, an image without a
    caption.
    """
    image_embed = check_features(image_embed, "the image embeddings")
    text_embed = check_features(text_embed, "the caption embeddings", width=image_embed.shape[1])
    n_images, n_captions = len(image_embed), len(text_embed)
    owner = check_labels(owner, "the captions' owners", n_captions, n_images).to(image_embed.device)
    silent = torch.bincount(owner, minlength=n_images) == 0
    if silent.any():
        raise EvaluationError(
            f"{int(silent.sum())} of {n_images} images have no caption (the first is image {int(silent.nonzero()[0])}), so text "
            "retrieval has no right answer for them. Drop them from the set, or check how captions were assigned."
        )
    images, texts = F.normalize(image_embed, dim=1), F.normalize(text_embed, dim=1)

    block = max(1, _BLOCK // n_images)
    own = torch.cat([(texts[i : i + block] * images[owner[i : i + block]]).sum(1) for i in range(0, n_captions, block)])
    best = own.new_full((n_images,), -torch.inf).scatter_reduce(0, owner, own, "amax")

    image_rank = torch.empty_like(owner)
    text_rank = torch.zeros(n_images, dtype=torch.long, device=owner.device)
    scores = own.new_empty(min(block, n_captions), n_images)
    for start in range(0, n_captions, block):
        stop = min(start + block, n_captions)
        part = torch.mm(texts[start:stop], images.T, out=scores[: stop - start])
        part.scatter_(1, owner[start:stop, None], -torch.inf)  # what remains is wrong
        image_rank[start:stop] = _count(part >= own[start:stop, None] - TIE, 1)
        text_rank += _count(part >= best - TIE, 0)
    return RetrievalResult(image_rank, text_rank, owner)


def _count(mask: Tensor, dim: int) -> Tensor:
    """mask.sum(dim). On a CPU NumPy counts booleans several times faster than torch adds them."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=dim))
    return mask.sum(dim)
