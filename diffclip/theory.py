"""Differential attention in numbers: when subtracting a second map helps, and how its weight lambda is learned.

The controlled experiment behind notebook 01. One query looks at N tokens, of which the first is the one it should find.
Both maps are softmax maps; map 1 scores that token `signal`, map 2 scores it `leak`, and every other token gets a
normally distributed score in each, with a known correlation between the two. What is measured is the signal-to-noise
ratio of what the head passes on,

    SNR = weight on the signal token / root of the summed squares of the weights on all others,

which is that of the head's output if the other tokens' values point in unrelated directions. The RMSNorm after the
subtraction rescales the output as a whole, so the ratio is all that matters. exp of a normal score is log-normal, and
so the ratio has a closed form for many tokens (`NoiseModel.gain`), to be held against the measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffclip.attention import DifferentialAttention, softmax_maps


@dataclass(frozen=True)
class NoiseModel:
    """Two softmax maps over `tokens` tokens, one of which carries the signal (see the module's docstring).

    signal, leak: score of the signal token in map 1 and map 2; a leak of 0 means that map 2 sees nothing special in it.
    sigma: standard deviation of the other tokens' scores. correlation: of a token's two scores, in [-1, 1].
    """

    tokens: int = 197
    signal: float = 4.0
    leak: float = 0.0
    sigma: float = 1.0
    correlation: float = 0.9

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"There must be a signal token and at least one other; got {self.tokens} tokens.")
        if not -1 <= self.correlation <= 1:
            raise ValueError(f"A correlation lies in [-1, 1]; got {self.correlation}.")
        if self.sigma < 0:
            raise ValueError(f"A standard deviation is not negative; got sigma={self.sigma}.")

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(A1, A2), each [draws, tokens]: softmax maps of independent draws; token 0 is the signal."""
        first = torch.randn(draws, self.tokens, generator=generator)
        own = torch.randn(draws, self.tokens, generator=generator)
        second = self.correlation * first + math.sqrt(1 - self.correlation**2) * own
        maps = []
        for scores, token_0 in ((first, self.signal), (second, self.leak)):
            scores = self.sigma * scores
            scores[:, 0] = token_0
            # A query of 1 and a head one wide: the keys are the scores.
            maps.append(softmax_maps(torch.ones(draws, 1, 1), scores[..., None])[:, 0])
        return maps[0], maps[1]

    @property
    def overlap(self) -> float:
        """Cosine similarity of the two maps' weights on the noise tokens, for many tokens: exp(-sigma^2 (1 - rho))."""
        return math.exp(-(self.sigma**2) * (1 - self.correlation))

    @property
    def leak_ratio(self) -> float:
        """SNR of map 2 over SNR of map 1."""
        return math.exp(self.leak - self.signal)

    @property
    def scale(self) -> float:
        """Size of map 2's noise weights over map 1's: the less of its unit of attention goes to the signal, the larger."""
        noise = (self.tokens - 1) * math.exp(self.sigma**2 / 2)
        return (math.exp(self.signal) + noise) / (math.exp(self.leak) + noise)

    def gain(self, lam: float) -> float:
        """SNR of A1 - lambda A2 over the SNR of A1 alone, for many tokens. Negative where the signal's sign is turned."""
        return gain(lam * self.scale, self.overlap, self.leak_ratio)

    @property
    def best_lambda(self) -> float:
        """The lambda of the largest gain; negative (add the maps!) where the maps share more signal than noise."""
        return best_lambda(self.overlap, self.leak_ratio) / self.scale


def gain(lam: float, overlap: float, leak_ratio: float = 0.0) -> float:
    """SNR(A1 - lambda A2) / SNR(A1) for two maps with noise of equal size.

    overlap: cosine similarity c of the noise weights. leak_ratio: r, SNR of map 2 over SNR of map 1.
    The signal is 1 - lambda r of what it was, the squared noise 1 - 2 lambda c + lambda^2.
    """
    noise = 1 - 2 * lam * overlap + lam**2
    return math.inf if noise <= 0 else (1 - lam * leak_ratio) / math.sqrt(noise)


def best_lambda(overlap: float, leak_ratio: float = 0.0) -> float:
    """The lambda of the largest `gain`: (c - r) / (1 - c r). It is positive exactly if c > r."""
    return (overlap - leak_ratio) / (1 - overlap * leak_ratio)


def best_gain(overlap: float, leak_ratio: float = 0.0) -> float:
    """The gain at `best_lambda`: sqrt((1 - 2 c r + r^2) / (1 - c^2)); never below 1, and 1 only if c = r."""
    return math.sqrt((1 - 2 * overlap * leak_ratio + leak_ratio**2) / (1 - overlap**2))


def snr(weights: Tensor) -> Tensor:
    """[..., tokens] -> [...]: the weight on token 0 over the root of the summed squares of all other weights."""
    return weights[..., 0] / weights[..., 1:].norm(dim=-1)


def overlap(a1: Tensor, a2: Tensor) -> Tensor:
    """Cosine similarity of two maps on the noise tokens: [..., tokens] twice -> [...]."""
    return torch.cosine_similarity(a1[..., 1:], a2[..., 1:], dim=-1)


def measured_gains(model: NoiseModel, lambdas: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """[draws, len(lambdas)]: SNR(A1 - lambda A2) / SNR(A1), each draw against itself."""
    a1, a2 = model.draw(draws, generator)
    differences = a1[:, None] - lambdas[None, :, None] * a2[:, None]  # [draws, lambdas, tokens]
    return snr(differences) / snr(a1)[:, None]


def band(samples: Tensor, share: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """(low, mean, high) over the first dimension: the middle `share` of the draws, and their mean."""
    tail = (1 - share) / 2
    return samples.quantile(tail, dim=0), samples.mean(dim=0), samples.quantile(1 - tail, dim=0)


def scene_maps(seed: int = 0, grid: int = 14, correlation: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """A1, A2 (each [grid, grid], each with sum 1) and the signal's mask (bool): a small object in smooth background noise.

    As `NoiseModel`, but with an object of several patches, and noise that varies slowly over the image as a real
    background does. For pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    blur = torch.exp(-(torch.linspace(-1.6, 1.6, 5) ** 2))
    noise = torch.randn(2, 1, grid + 4, grid + 4, generator=generator)
    noise = nn.functional.conv2d(noise, (blur[:, None] * blur)[None, None])[:, 0]  # [2, grid, grid]
    noise = noise / noise.std(dim=(1, 2), keepdim=True)
    second = correlation * noise[0] + math.sqrt(1 - correlation**2) * noise[1]
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    mask = (rows - 0.6 * grid) ** 2 + (columns - 0.36 * grid) ** 2 < (0.16 * grid) ** 2
    first = torch.where(mask, 1.8, 0.9 * noise[0])
    second = torch.where(mask, 0.0, 0.9 * second)
    return first.flatten().softmax(0).view(grid, grid), second.flatten().softmax(0).view(grid, grid), mask


def share_on(mask: Tensor, weights: Tensor) -> float:
    """Share of the summed absolute weights that falls inside the mask, both [grid, grid]."""
    return float(weights[mask].abs().sum() / weights.abs().sum())


# lambda


def lambda_spread(head_dim: int) -> float:
    """Standard deviation of lambda over fresh layers: each dot product has sqrt(d) * 0.1^2, and there are two.

    Holds while the dot products are small against 1, where exp(x) is about 1 + x.
    """
    return math.sqrt(2 * head_dim) * 0.1**2


class PlainLambda(nn.Module):
    """lambda as one learned number: what the reparameterisation is to be compared with. forward() -> [1]."""

    def __init__(self, lambda_init: float) -> None:
        super().__init__()
        self.lam = nn.Parameter(torch.tensor([float(lambda_init)]))

    def forward(self) -> Tensor:
        return self.lam


class VectorLambda(nn.Module):
    """lambda as the paper has it: exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init, four vectors drawn from N(0, std).

    `copies` independent ones at once, so that their scatter can be seen. forward() -> [copies].
    """

    def __init__(
        self, lambda_init: float, head_dim: int = 64, *, std: float = 0.1, copies: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vectors = nn.Parameter(std * torch.randn(4, copies, head_dim, generator=generator))
        self.lambda_init = lambda_init

    def forward(self) -> Tensor:
        q1, k1, q2, k2 = self.vectors
        return (q1 * k1).sum(-1).exp() - (q2 * k2).sum(-1).exp() + self.lambda_init


def learn_lambda(module: nn.Module, target: float, *, steps: int = 300, lr: float = 5e-4) -> Tensor:
    """Learn lambda alone, with Adam, and return its path [steps + 1, copies].

    The task is a regression with a known answer: two fixed random maps and values, and (A1 - target A2) V to be matched
    in mean squared error by (A1 - lambda A2) V. lr defaults to the paper's.
    """
    generator = torch.Generator().manual_seed(0)
    a1, a2 = torch.randn(2, 16, 16, generator=generator).softmax(-1)
    v = torch.randn(16, 8, generator=generator)
    first, second = a1 @ v, a2 @ v
    wanted = first - target * second
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.98))
    path = [module().detach().clone()]  # cloned: a plain lambda is the parameter itself, changed in place
    for _ in range(steps):
        error = first - module()[:, None, None] * second - wanted  # [copies, 16, 8]
        loss = error.square().mean(dim=(1, 2)).sum()  # a sum: each copy gets the gradient that it would get alone
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(module().detach().clone())
    return torch.stack(path)


@torch.no_grad()
def output_scales(layer: DifferentialAttention, x: Tensor) -> dict[str, float]:
    """Root mean square of what flows through a differential layer, station by station, for x [batch, tokens, dim]."""
    seen: dict[str, Tensor] = {"input": x}
    hooks = [
        layer.v_proj.register_forward_hook(lambda m, i, o: seen.update({"V": o})),
        layer.diff_norm.register_forward_hook(lambda m, i, o: seen.update({"(A1 - λ A2) V": i[0], "RMSNorm": o})),
        layer.out_proj.register_forward_hook(lambda m, i, o: seen.update({"times (1 - λ_init)": i[0], "output": o})),
    ]
    try:
        layer(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {station: float(t.square().mean().sqrt()) for station, t in seen.items()}
