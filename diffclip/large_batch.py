"""The contrastive loss of one global batch, however many devices share it and however little of it fits on one.

Every image is compared with every caption of the global batch, so the loss does not fall into a sum over samples, and
ordinary gradient accumulation or a loss per device would be another objective. Two exact means are used together:

- Over processes: embeddings are gathered with gradient. Each process computes the rows of the logits that are its own,
  over all columns; the mean over processes of these losses is the loss of the joint batch, and DDP's mean of the
  gradients is its gradient.
- Within a process: cached gradients (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited
  setup"). All pieces are embedded without a graph, the loss is differentiated with respect to the embeddings, then each
  piece is embedded again and its part of that gradient sent back. One extra forward pass; memory of one piece.

Both need a sample's embedding not to depend on its batch: no dropout and no batch norm, as is so in these towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from diffclip.model import contrastive_loss

Piece = tuple[Tensor, Tensor]  # images, tokens


class _Gather(torch.autograd.Function):
    """Rows of all processes, in order of rank. Backward: what all of them have to say about the rows that are ours."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        everything = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        dist.all_gather(list(everything.chunk(dist.get_world_size())), x.contiguous())
        ctx.rows = slice(dist.get_rank() * len(x), (dist.get_rank() + 1) * len(x))
        return everything

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # a sum; gloo has no reduce_scatter, and these are only batch x width numbers
        return gradient[ctx.rows]


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_contrastive_loss(image_embed: Tensor, text_embed: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """This process's share of the loss and accuracy of the joint batch; their mean over processes is the whole.

    image_embed, text_embed: [b, D], this process's rows, as many on each; logit_scale: the factor. Differentiable: the
    gradient that arrives here is `processes()` times that of the joint loss, which is what DDP's averaging expects.
    """
    if processes() == 1:
        return contrastive_loss(image_embed, text_embed, logit_scale)
    images, texts = F.normalize(image_embed, dim=-1), F.normalize(text_embed, dim=-1)
    all_images, all_texts = _Gather.apply(torch.cat([images, texts], dim=1)).chunk(2, dim=1)  # each [B, D]
    labels = dist.get_rank() * len(images) + torch.arange(len(images), device=images.device)
    from_images = logit_scale * images @ all_texts.T  # [b, B]
    from_texts = logit_scale * texts @ all_images.T  # [b, B]
    loss = (F.cross_entropy(from_images, labels) + F.cross_entropy(from_texts, labels)) / 2
    accuracy = (from_images.detach().argmax(dim=1) == labels).float().mean()
    return loss, accuracy


def backward_through_batch(
    model: nn.Module,
    pieces: Sequence[Piece],
    *,
    accelerator: Accelerator,
    view: Callable[[Tensor], Tensor] = lambda images: images,
) -> dict[str, Tensor]:
    """Add to `.grad` the gradient of the joint batch's loss; -> detached scalars "loss", "accuracy", "logit_scale".

    model: as `accelerator.prepare` returned it. pieces: this process's samples, [(images, tokens), ...]; one piece goes
    through the ordinary way, several through cached gradients. view: applied to a piece's images just before the model,
    so that pieces may wait as bytes. loss and accuracy are means over all processes.
    """
    if len(pieces) == 1:
        images, tokens = pieces[0]
        out = model(view(images), tokens)
        loss, accuracy = global_contrastive_loss(out["image_embed"], out["text_embed"], out["logit_scale"])
        accelerator.backward(loss)
        return _mean_over_processes(loss, accuracy, out["logit_scale"])

    with torch.no_grad():
        parts = [model(view(images), tokens) for images, tokens in pieces]
    image_embed = torch.cat([part["image_embed"] for part in parts]).requires_grad_()
    text_embed = torch.cat([part["text_embed"] for part in parts]).requires_grad_()
    logit_scale = parts[0]["logit_scale"].detach().clone().requires_grad_()
    loss, accuracy = global_contrastive_loss(image_embed, text_embed, logit_scale)
    to_images, to_texts, to_scale = torch.autograd.grad(loss, (image_embed, text_embed, logit_scale))

    sizes = [len(tokens) for _, tokens in pieces]
    last = len(pieces) - 1
    for i, ((images, tokens), to_image, to_text) in enumerate(
        zip(pieces, to_images.split(sizes), to_texts.split(sizes), strict=True)
    ):
        # DDP exchanges gradients once, with the last piece; it must then have seen every parameter, the scale too.
        with nullcontext() if i == last else accelerator.no_sync(model):
            out = model(view(images), tokens)
            product = (out["image_embed"] * to_image).sum() + (out["text_embed"] * to_text).sum()
            if i == last:
                product = product + out["logit_scale"] * to_scale
            accelerator.backward(product)
    return _mean_over_processes(loss, accuracy, logit_scale)


def _mean_over_processes(loss: Tensor, accuracy: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    both = torch.stack([loss.detach(), accuracy.to(loss.dtype)])
    if processes() > 1:
        dist.all_reduce(both)
        both /= processes()
    return {"loss": both[0], "accuracy": both[1], "logit_scale": logit_scale.detach()}
