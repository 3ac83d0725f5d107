"""Figures of notebook 01, the attention theory: each function takes numbers that theory.py made and returns a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import ConvexHull
from torch import Tensor

from diffclip import style, theory
from diffclip.attention import constant_lambda_init, dynamic_lambda_init
from diffclip.drawings import SIGNED, WEIGHTS

# Dark to light, for an ordered family of curves; each also has a marker of its own.
_FAMILY = ("#3B1C5A", "#8C3A7B", "#D9668A", "#F0A868")
_MARKERS = ("o", "s", "^", "D")
_PINK = "#B83A78"


@style.use()
def one_draw(models: Mapping[str, theory.NoiseModel], lam: float, seed: int = 0, shown: int = 40) -> Figure:
    """For each named model one draw: the weights of A1, A2 and A1 - lam A2 on the first `shown` tokens."""
    fig = style.figure(10, 2.0 * len(models))
    axes = fig.subplots(len(models), 3, sharex=True, sharey=True)
    for row, (name, model) in zip(np.atleast_2d(axes), models.items(), strict=True):
        a1, a2 = model.draw(1, torch.Generator().manual_seed(seed))
        difference = a1 - lam * a2
        titles = ("A1", "A2", f"A1 − {lam} A2")
        for ax, weights, title in zip(row, (a1, a2, difference), titles, strict=True):
            ratio = float(theory.snr(weights)[0])
            weights = 100 * weights[0, :shown].numpy()
            bars = ax.bar(range(len(weights)), weights, width=0.8, color="#A8B2BD", linewidth=0)
            for bar, w in zip(bars, weights, strict=True):
                if w < 0:
                    bar.set_color("#2F6FA8")
            bars[0].set_color(_PINK)
            ax.set_title(f"{title}:  signal to noise {ratio:.2f}")
            ax.grid(axis="x", visible=False)
            ax.axhline(0, color=style.INK, linewidth=0.6)
        row[0].set_ylabel(f"{name}\nweight (%)")
    for ax in np.atleast_2d(axes)[-1]:
        ax.set_xlabel("token")
    fig.suptitle(
        "Token 0 carries the signal: what both maps share cancels, what they do not adds up", x=0.01, ha="left"
    )
    return fig


@style.use()
def gain_over_lambda(groups: Mapping[str, Sequence[theory.NoiseModel]], draws: int, seed: int = 0) -> Figure:
    """Signal-to-noise gain against lambda, a panel a group, a curve a model: theory dashed, mean of the draws as markers,
    the middle 90 % of the draws shaded."""
    lambdas = torch.linspace(0, 1.4, 29)
    fig = style.figure(10, 3.9)
    axes = fig.subplots(1, len(groups), sharey=True)
    for ax, (title, models) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        for model, colour, marker in zip(models, _FAMILY, _MARKERS, strict=False):
            low, mean, high = theory.band(theory.measured_gains(model, lambdas, draws, generator))
            ax.fill_between(lambdas, low, high, color=colour, alpha=0.16, linewidth=0)
            ax.plot(lambdas, mean, marker, color=colour, markersize=3.5, label=f"{model.correlation:g}")
            ax.plot(lambdas, [model.gain(x) for x in lambdas.tolist()], "--", color=colour, linewidth=1.2)
        ax.axhline(1, color=style.INK, linewidth=0.9)
        ax.axvline(0.8, color=style.FAINT, linewidth=0.9, linestyle=":")
        ax.set(title=title, xlabel="λ", ylim=(0, 3.6))
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("signal to noise, relative to A1 alone")
    last = np.atleast_1d(axes)[-1]
    last.text(0.02, 1.3, "above the line\nsubtraction helps", fontsize=8.5, color=style.FAINT, va="bottom")
    last.text(0.02, 0.8, "below it\nsubtraction hurts", fontsize=8.5, color=style.FAINT, va="top")
    last.text(0.815, 3.45, "λ_init = 0.8", fontsize=8.5, color=style.FAINT, va="top")
    first.legend(title="correlation of the\ntwo maps' scores", loc="upper left", title_fontsize=8.5)
    fig.suptitle(
        "Subtraction pays for noise that both maps share, and costs for noise that they do not", x=0.01, ha="left"
    )
    return fig


@style.use()
def best_lambda(leaks: Mapping[str, float], draws: int, seed: int = 0) -> Figure:
    """The best lambda, and the gain there, against the correlation of the scores: theory as lines, draws as points with
    the middle 90 %; a curve for each named leak (score of the signal token in map 2)."""
    grid = torch.linspace(-1.5, 2.0, 351)
    correlations = np.linspace(0, 0.98, 60)
    fig = style.figure(10, 3.7)
    left, right = fig.subplots(1, 2)
    for (name, leak), colour, marker in zip(leaks.items(), _FAMILY[:3], _MARKERS, strict=False):
        line = [theory.NoiseModel(leak=leak, correlation=c) for c in correlations]
        left.plot(correlations, [m.best_lambda for m in line], color=colour, linewidth=1.4)
        right.plot(correlations, [m.gain(m.best_lambda) for m in line], color=colour, linewidth=1.4)
        generator = torch.Generator().manual_seed(seed)
        for c in (0.0, 0.3, 0.6, 0.8, 0.9, 0.95):
            gains = theory.measured_gains(theory.NoiseModel(leak=leak, correlation=c), grid, draws, generator)
            for ax, found in ((left, grid[gains.argmax(dim=1)]), (right, gains.max(dim=1).values)):
                low, mean, high = theory.band(found)
                ax.errorbar(
                    c, mean, [[mean - low], [high - mean]], fmt=marker, color=colour, markersize=4.5, capsize=2,
                    elinewidth=1, label=name if c == 0 and ax is left else None,
                )  # fmt: skip
    left.axhline(0, color=style.INK, linewidth=0.9)
    left.axhline(0.8, color=style.FAINT, linewidth=0.9, linestyle=":")
    left.text(0.01, 0.82, "λ = 0.8", fontsize=8, color=style.FAINT, va="bottom")
    left.set(title="Which λ is best", xlabel="correlation of the two maps' scores", ylabel="best λ")
    left.legend(title="the signal's score in map 2", loc="lower right", title_fontsize=8.5)
    right.axhline(1, color=style.INK, linewidth=0.9)
    right.set(
        title="What the best λ brings", xlabel="correlation of the two maps' scores",
        ylabel="signal to noise, relative to A1", ylim=(0.8, None),
    )  # fmt: skip
    fig.suptitle("The more of the signal leaks into map 2, the more noise it must share to be worth subtracting", x=0.01, ha="left")  # fmt: skip
    return fig


@style.use()
def lambda_panels(lambdas: Sequence[float], correlation: float = 0.9, seed: int = 0) -> Figure:
    """A1 and A2 over an image's patches, and their difference for each lambda, as small multiples in two rows."""
    a1, a2, mask = theory.scene_maps(seed, correlation=correlation)
    limit = float(a1.max())
    columns = (len(lambdas) + 3) // 2
    fig = style.figure(10, 5.2)
    axes = fig.subplots(2, columns)
    _image(axes[0, 0], a1, mask, "A1", WEIGHTS, limit)
    _image(axes[1, 0], a2, mask, "A2", WEIGHTS, limit)
    for ax, lam in zip(axes[:, 1:].flat, lambdas, strict=True):
        _difference(ax, a1, a2, mask, lam, limit)
    best = max(lambdas, key=lambda lam: theory.share_on(mask, a1 - lam * a2))
    fig.suptitle(
        f"Of these, λ = {best} puts the largest share of the weights on the object (outlined)", x=0.01, ha="left"
    )
    return fig


@style.use()
def lambda_view(lam: float, correlation: float = 0.9, seed: int = 0) -> Figure:
    """A1, A2 and A1 - lam A2 over an image's patches, side by side."""
    a1, a2, mask = theory.scene_maps(seed, correlation=correlation)
    limit = float(a1.max())
    fig = style.figure(9, 3.3)
    axes = fig.subplots(1, 3)
    _image(axes[0], a1, mask, "A1", WEIGHTS, limit)
    _image(axes[1], a2, mask, "A2", WEIGHTS, limit)
    _difference(axes[2], a1, a2, mask, lam, limit)
    return fig


def _image(ax: Axes, weights: Tensor, mask: Tensor, title: str, cmap, limit: float) -> None:
    ax.imshow(weights.numpy(), cmap=cmap, vmin=-limit if cmap is SIGNED else 0, vmax=limit)
    ax.contour(mask.numpy(), levels=[0.5], colors=style.INK, linewidths=1.1)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(f"{title}\n{theory.share_on(mask, weights):.0%} on the object", fontsize=8.5)


def _difference(ax: Axes, a1: Tensor, a2: Tensor, mask: Tensor, lam: float, limit: float) -> None:
    _image(ax, a1 - lam * a2, mask, f"A1 − {lam:.1f} A2", SIGNED, limit)


def lambda_explorer() -> None:
    """Show a slider over lambda (and the noise's correlation) where somebody can move it, else small multiples."""
    from IPython.display import display

    if not somebody_is_there():
        display(lambda_panels((0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)))
        return
    import ipywidgets

    def draw(lam: float, correlation: float) -> None:
        display(lambda_view(lam, correlation))

    def slider(value: float, top: float, text: str) -> ipywidgets.FloatSlider:
        return ipywidgets.FloatSlider(value, min=0, max=top, step=0.05, description=text, continuous_update=False)

    sliders = {"lam": slider(0.8, 1.5, "λ"), "correlation": slider(0.9, 1.0, "correlation")}
    display(ipywidgets.VBox([*sliders.values(), ipywidgets.interactive_output(draw, sliders)]))


def somebody_is_there() -> bool:
    """Whether this cell was sent by a front end with a person before it, and not by papermill, nbval or nbconvert.

    The message that carries a cell says whether the kernel may ask for input (`allow_stdin`): JupyterLab, Notebook and
    VS Code say yes, those that run notebooks in batch say no. DIFFCLIP_WIDGETS=0 or 1 overrules.
    """
    if (asked := os.environ.get("DIFFCLIP_WIDGETS")) is not None:
        return asked == "1"
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


@style.use()
def lambda_at_init(samples: Mapping[int, Tensor]) -> Figure:
    """Histograms of lambda in fresh layers, head width -> lambdas, each with the predicted normal curve."""
    fig = style.figure(7, 3.0)
    ax = fig.subplots()
    edges = np.linspace(0.4, 1.2, 65)
    for (width, lambdas), colour in zip(samples.items(), (_PINK, "#3F7FBF"), strict=False):
        spread = theory.lambda_spread(width)
        ax.hist(lambdas.numpy(), edges, density=True, color=colour, alpha=0.3, linewidth=0, label=f"heads {width} wide")
        x = np.linspace(0.4, 1.2, 300)
        ax.plot(
            x, np.exp(-0.5 * ((x - 0.8) / spread) ** 2) / (spread * np.sqrt(2 * np.pi)), color=colour, linewidth=1.4
        )
    ax.set(xlabel="λ of a fresh layer (λ_init = 0.8)", ylabel="density", title="A fresh λ is scattered around λ_init as predicted (lines)")  # fmt: skip
    ax.legend()
    return fig


@style.use()
def learning(paths: Mapping[float, Mapping[str, Tensor]]) -> Figure:
    """lambda against the optimiser's steps: a panel a target, a colour a parameterisation, a line a copy."""
    looks = ((style.INK, "-"), (_PINK, "-"), ("#3F7FBF", ":"))
    fig = style.figure(10, 3.3)
    axes = fig.subplots(1, len(paths), sharey=True)
    for ax, (target, curves) in zip(np.atleast_1d(axes), paths.items(), strict=True):
        ax.axhline(target, color=style.FAINT, linewidth=0.9, linestyle="--")
        ax.text(
            1, target, f"wanted: {target}", fontsize=8.5, ha="right", transform=ax.get_yaxis_transform(), va="bottom"
        )
        for (name, path), (colour, dash) in zip(curves.items(), looks, strict=False):
            lines = ax.plot(path, color=colour, linestyle=dash, linewidth=1.8 if path.shape[1] == 1 else 0.9)
            lines[0].set_label(name)
        ax.set(xlabel="step of Adam at the paper's rate, 5e-4", ylim=(0, 1.9))
    axes[0].set_ylabel("λ")
    axes[0].legend(loc="upper right")
    fig.suptitle(
        "The vectors act as a larger step: λ arrives while a plain number is still on its way", x=0.01, ha="left"
    )
    return fig


@style.use()
def schedules(depth: int = 12) -> Figure:
    """lambda_init by layer for both schedules, and the factor 1 - lambda_init that goes with it."""
    layers = range(depth)
    fig = style.figure(10, 3.1)
    left, right = fig.subplots(1, 2, sharex=True)
    for name, schedule in (("diffclip", constant_lambda_init), ("diffclip_dynamic", dynamic_lambda_init)):
        values = np.array([schedule(i) for i in layers])
        look = {"marker": style.MARKERS[name], "markersize": 5, "color": style.colour(name), "label": style.label(name)}
        left.plot(layers, values, **look)
        right.plot(layers, 1 - values, **look)
    left.set(title="Where λ starts", xlabel="layer", ylabel="λ_init", ylim=(0, 1), xticks=list(layers))
    right.set(title="What the head's output is multiplied by", xlabel="layer", ylabel="1 − λ_init", ylim=(0, 1))
    left.legend(loc="lower right")
    return fig


@style.use()
def reach(values: np.ndarray, lam: float, samples: int = 1500, seed: int = 0) -> Figure:
    """Three values in the plane: where A V can be (inside the triangle) and where (A1 - lam A2) V can be (the hexagon)."""
    rng = np.random.default_rng(seed)
    corners = (values[:, None] - lam * values[None]).reshape(-1, 2)  # every pair of one-hot maps
    hexagon = corners[ConvexHull(corners).vertices]
    a1, a2 = rng.dirichlet([0.6] * 3, size=(2, samples))
    fig = style.figure(6, 4.8)
    ax = fig.subplots()
    outputs = (a1 - lam * a2) @ values
    ax.fill(*hexagon.T, facecolor="#FBE3EE", edgecolor=_PINK, linewidth=1.2)
    ax.plot(*outputs.T, ".", color=_PINK, markersize=2, alpha=0.45)
    ax.fill(*values.T, facecolor="#DCE9F5", edgecolor=style.colour("clip"), linewidth=1.2, alpha=0.9)
    ax.plot(*values.T, "o", color=style.INK, markersize=6)
    for i, point in enumerate(values):
        ax.annotate(f"$V_{i}$", point, textcoords="offset points", xytext=(7, 6), fontsize=11)
    ax.plot(0, 0, "+", color=style.INK, markersize=11)
    ax.annotate("origin", (0, 0), textcoords="offset points", xytext=(6, -12), fontsize=8.5)
    ax.text(*values.mean(axis=0), "softmax\nattention", ha="center", va="center", fontsize=9, color="#1F5A91")
    inside = 0.6 * (values[1] - lam * (values[0] + values[2]) / 2)
    box = {"facecolor": "#FBE3EE", "edgecolor": "none", "pad": 2}
    ax.text(*inside, "differential\nattention", ha="center", va="center", fontsize=9, color=_PINK, bbox=box)
    ax.set(title=f"λ = {lam}: a difference reaches where no average can", aspect="equal")
    return fig
