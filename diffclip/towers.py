"""The two towers: timm's VisionTransformer with its attention layer replaced, and CLIP's text transformer.

Both are stacks of timm's pre-norm Block; an attention class is an argument. Two settings that are easy to overlook are
explicit here, because they differ between the released DiffCLIP and its own baseline: LayerNorm's eps and the
initialisation of the vision tower's linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffclip.attention import Attention, DifferentialAttention, check_heads

VISION_INITS = ("timm", "torch")
TEXT_LAYER_NORM_EPS = 1e-5  # in the baseline and in DiffCLIP alike


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower. `layer_norm_eps` and `init` default to what the released models of the variant have:
    1e-6 and "timm" (truncated normal, 0.02) with ordinary attention, 1e-5 and "torch" (nn.Linear's own) with
    differential attention."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    layer_norm_eps: float | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, ("image_size", "patch_size", "width", "depth", "heads"))
        if self.image_size % self.patch_size:
            raise ValueError(
                f"Patches of {self.patch_size} pixels do not tile an image of {self.image_size} pixels. Choose an image "
                f"size that is a multiple of the patch size."
            )
        if self.init is not None and self.init not in VISION_INITS:
            raise ValueError(f"Unknown initialisation {self.init!r}; choose one of {', '.join(VISION_INITS)}.")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid**2 + 1


@dataclass(frozen=True)
class TextConfig:
    """A text tower."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        _check_positive(self, ("width", "depth", "heads", "context_length", "vocab_size"))


def _check_positive(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name} must be a whole number of at least 1; got {value!r}.")


class VisionTower(nn.Module):
    """timm's VisionTransformer and a projection: images [B, 3, H, W] -> [B, embed_dim], from the class token."""

    def __init__(self, config: VisionConfig, embed_dim: int, lambda_init: Callable[[int], float] | None) -> None:
        """lambda_init: layer -> lambda_init for differential attention, None for ordinary attention."""
        super().__init__()
        differential = lambda_init is not None
        check_heads(config.width, config.heads, differential=differential)
        eps = config.layer_norm_eps or (1e-5 if differential else 1e-6)
        init = config.init or ("torch" if differential else "timm")
        self.config = config
        self.trunk = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=eps),
            attn_layer=DifferentialAttention if differential else Attention,
        )
        if differential:
            _set_lambda_init(self.trunk.blocks, lambda_init)
        if init == "torch":
            for module in self.trunk.blocks.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        self.projection = nn.Parameter(torch.empty(config.width, embed_dim).normal_(0, config.width**-0.5))

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"This model takes images of shape [batch, 3, {size}, {size}]; got {list(images.shape)}. Resize them with "
                f"diffclip.images.eval_view(image, {size}), or create the model for another image size."
            )
        if not images.is_floating_point():
            raise ValueError(
                f"This model takes normalised pixels, floating point numbers; got {images.dtype}. Use "
                f"diffclip.images.normalise(pixels) for bytes, or diffclip.images.eval_view(image, {size}) for a picture."
            )
        return self.trunk(images) @ self.projection


class TextTower(nn.Module):
    """CLIP's text transformer and a projection: tokens [B, context_length] -> [B, embed_dim].

    Causal; pooled at the end-of-text token, which has the largest id of a row. Initialised as CLIP is (Radford et al. 2021).
    """

    def __init__(self, config: TextConfig, embed_dim: int, lambda_init: Callable[[int], float] | None) -> None:
        super().__init__()
        differential = lambda_init is not None
        check_heads(config.width, config.heads, differential=differential)
        self.config = config
        self.checkpointing = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                qkv_bias=True,
                act_layer=QuickGELU,
                norm_layer=partial(nn.LayerNorm, eps=TEXT_LAYER_NORM_EPS),
                attn_layer=DifferentialAttention if differential else Attention,
            )
            for _ in range(config.depth)
        )
        if differential:
            _set_lambda_init(self.blocks, lambda_init)
        self.norm = nn.LayerNorm(config.width, eps=TEXT_LAYER_NORM_EPS)
        self.projection = nn.Parameter(torch.empty(config.width, embed_dim).normal_(0, config.width**-0.5))
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        width, depth = self.config.width, self.config.depth
        self.token_embedding.weight.normal_(0, 0.02)
        self.positional_embedding.normal_(0, 0.01)
        for block in self.blocks:
            attn = block.attn
            inputs = (attn.q_proj, attn.k_proj, attn.v_proj) if attn.differential else (attn.qkv,)
            output = attn.out_proj if attn.differential else attn.proj
            for linear in inputs:
                linear.weight.normal_(0, width**-0.5)
                linear.bias.zero_()
            output.weight.normal_(0, width**-0.5 * (2 * depth) ** -0.5)
            output.bias.zero_()
            block.mlp.fc1.weight.normal_(0, (2 * width) ** -0.5)
            block.mlp.fc2.weight.normal_(0, width**-0.5 * (2 * depth) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        length, vocabulary = self.config.context_length, self.config.vocab_size
        if tokens.ndim != 2 or tokens.shape[1] != length:
            raise ValueError(
                f"This model takes tokens of shape [batch, {length}]; got {list(tokens.shape)}. Make them with "
                f"diffclip.tokenize(texts, context_length={length})."
            )
        if tokens.is_floating_point():
            raise ValueError(f"Tokens are whole numbers (int64 ids below {vocabulary}); got {tokens.dtype}.")
        # Not on a GPU, where looking would wait for it, nor in a compiled graph, which it would break.
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = (int(x) for x in tokens.aminmax())
            if low < 0 or high >= vocabulary:
                raise ValueError(
                    f"Token ids lie between 0 and {vocabulary - 1} for this model; got {low if low < 0 else high}. Tokens "
                    f"must come from the tokenizer that the model was trained with."
                )
        x = self.token_embedding(tokens) + self.positional_embedding  # [B, L, width]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, is_causal=True, use_reentrant=False)
            else:
                x = block(x, is_causal=True)
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]  # the end-of-text token: [B, width]
        return self.norm(x) @ self.projection  # the norm acts on each token alone, so pooling may come first


def _set_lambda_init(blocks: nn.ModuleList | nn.Sequential, lambda_init: Callable[[int], float]) -> None:
    for layer, block in enumerate(blocks):
        block.attn.lambda_init = lambda_init(layer)
