"""Linear probe: multinomial logistic regression on frozen image features.

Protocol: El Banani et al. 2023 (Learning Visual Representations via Language-Guided Sampling), which sweeps as CLIP
did. The objective is

    mean cross-entropy + (1 / C) * 0.5 * ||W||      (Frobenius norm, not squared; the bias is free)

C is swept over 1e-6, 1e-4, ..., 1e6, then by bisection over 29 log-spaced values within two decades of the best,
scored on the validation split (a stratified fifth of train where a set has none), and the final fit uses train +
validation.

The original fits one C at a time by L-BFGS from zero. The same optima are found here by Newton's method, which is
faster because it uses what the problem offers:

- The bias is free, so centring the features changes nothing but the bias; the norm is rotation invariant, so neither do
  principal axes. In them the Hessian is close to (feature variances) x (class covariance), which preconditions the
  conjugate gradients that solve for a Newton step.
- The norm has a kink at W = 0. Zero is the optimum exactly when the gradient of the cross-entropy there, at the best
  bias, is no longer than 0.5 / C; this is checked first, and away from zero the objective is smooth.
- Optima vary smoothly with log C, so a new C starts from its solved neighbours, and several C share each matrix
  product.
- Only the direction of a step comes from the Hessian, so its products run in float32; gradients and objective in
  float64.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checks import EvaluationError, accuracy, check_features, check_labels

log = logging.getLogger("diffclip")

COARSE = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
FINE = 29  # values in the second sweep
DECADES = 2  # it reaches this far to either side of the coarse best

_FORCING = 0.25  # a Newton step is solved to this share of the gradient
_DIRECT = 256  # unknowns up to which the Hessian is formed and solved outright,
_DIRECT_AT_MOST = 1024  # and up to which it is where conjugate gradients turn out to need longer than that
_MAX_NEWTON = 100
_MAX_CONJUGATE = 1000
_BATCH = 16_000_000  # elements of a [N, fits, K] array: bounds the memory of a batch of fits


@dataclass(frozen=True)
class Probe:
    """A fitted classifier. A class that the training labels lack has bias -inf and is never predicted."""

    weight: Tensor  # [K, D] float64
    bias: Tensor  # [K] float64
    c: float
    objective: float

    def logits(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, K] float64."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy in [0, 1], and what stands behind it."""

    accuracy: float
    c: float
    validation: dict[float, float]  # every C that was tried in the second sweep -> validation accuracy
    prediction: Tensor  # [N] int64
    labels: Tensor  # [N] int64
    probe: Probe

    @property
    def correct(self) -> Tensor:
        """[N] bool."""
        return self.prediction == self.labels


def objective(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, c: float) -> Tensor:
    """What a probe minimises: weight [K, D], bias [K], features [N, D], labels [N] -> scalar."""
    return torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + 0.5 / c * weight.norm()


def fit(features: Tensor, labels: Tensor, c: float | Sequence[float], *, n_classes: int | None = None) -> list[Probe]:
    """Fit a probe for each C: features [N, D], labels [N] -> one Probe a value, in the order given."""
    solver = _Solver(features, labels, n_classes)
    cs = [c] if isinstance(c, (int, float)) else list(c)
    solver.solve(cs)
    return [solver.probe(value) for value in cs]


def choose_c(score: Callable[[list[float]], Sequence[float]]) -> tuple[float, dict[float, float]]:
    """The two-stage search. `score` maps a list of C to validation accuracies; it is called with new values only.

    Of equals the smaller C wins, except that the coarse best yields only to a strictly better one. Returns the best C
    and the accuracies seen around it.
    """
    coarse = dict(zip(COARSE, score(list(COARSE)), strict=True))
    best = max(coarse, key=coarse.get)
    offsets = np.linspace(-DECADES, DECADES, FINE)
    grid = [best if offset == 0 else float(10 ** (np.log10(best) + offset)) for offset in offsets]
    grid = [c for c in grid if COARSE[0] * (1 - 1e-9) <= c <= COARSE[-1] * (1 + 1e-9)]
    seen = {best: coarse[best]}
    while len(grid) > 1:
        quarter, half = len(grid) // 4, len(grid) // 2
        low, middle, high = grid[quarter], grid[half], grid[-len(grid) // 4]
        new = [c for c in dict.fromkeys((low, middle, high)) if c not in seen]
        if new:
            seen.update(zip(new, score(new), strict=True))
        top = max(seen[low], seen[middle], seen[high])
        # Keep the half of the interval whose middle is the best of the three.
        if seen[low] == top:
            grid = grid[:half]
        elif seen[high] == top:
            grid = grid[half:]
        else:
            grid = grid[quarter : -len(grid) // 4]
    return max(seen, key=seen.get), seen


def stratified_split(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hold out a fifth of every class (rounded down): labels [N] -> sorted indices (train, validation)."""
    rng = np.random.default_rng(seed)
    labels = check_labels(labels, "the labels").cpu().numpy()
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(first, count)
    held = place < np.repeat(count // 5, count)
    if not held.any():
        raise EvaluationError(
            f"No class has the five training images of which one could be held out for validation (the largest has "
            f"{count.max()}). Give a validation split, or fit with a fixed C."
        )
    return torch.from_numpy(np.sort(order[~held])), torch.from_numpy(np.sort(order[held]))


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    mean_per_class: bool = False,
    n_classes: int | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Sweep, fit and test: features [N, D] with labels [N] for each split.

    `validation` is (features, labels); without it a fifth of train is held out, chosen by `seed`. `mean_per_class` is
    the metric of Aircraft, Pets, Caltech-101 and Flowers, used for choosing C as well as for the test.
    """
    train_features = check_features(train_features, "the training features")
    device, width = train_features.device, train_features.shape[1]
    train_labels = check_labels(train_labels, "the training labels", len(train_features), n_classes).to(device)
    test_features = check_features(test_features, "the test features", width=width)
    test_labels = check_labels(test_labels, "the test labels", len(test_features), n_classes).to(device)
    if n_classes is None:
        n_classes = int(max(train_labels.max(), test_labels.max())) + 1
    if validation is None:
        kept, held = stratified_split(train_labels, seed)
        validation = train_features[held], train_labels[held]
        train_features, train_labels = train_features[kept], train_labels[kept]
    valid_features = check_features(validation[0], "the validation features", width=width)
    valid_labels = check_labels(validation[1], "the validation labels", len(valid_features), n_classes).to(device)

    solver = _Solver(train_features, train_labels, n_classes)

    def score(cs: list[float]) -> list[float]:
        solver.solve(cs)
        predictions = [solver.probe(c).logits(valid_features).argmax(1) for c in cs]
        return [accuracy(p == valid_labels, valid_labels, mean_per_class) for p in predictions]

    c, seen = choose_c(score)
    both = _Solver(torch.cat([train_features, valid_features]), torch.cat([train_labels, valid_labels]), n_classes)
    both.solve([c], guess=solver.probe(c))
    probe = both.probe(c)
    prediction = probe.logits(test_features).argmax(1)
    return ProbeResult(
        accuracy=accuracy(prediction == test_labels, test_labels, mean_per_class),
        c=c,
        validation=seen,
        prediction=prediction,
        labels=test_labels,
        probe=probe,
    )


class _Solver:
    """All fits on one set of features. The unknowns, theta [d + 1, fits, K]: weights in principal axes, the bias."""

    def __init__(self, features: Tensor, labels: Tensor, n_classes: int | None = None):
        features = check_features(features, "the training features").double()
        labels = check_labels(labels, "the training labels", len(features), n_classes).to(features.device)
        self.n, self.width = features.shape
        self.n_classes = n_classes if n_classes is not None else int(labels.max()) + 1
        self.classes, self.labels = labels.unique(return_inverse=True)
        if len(self.classes) < 2:
            raise EvaluationError("The training labels hold one class only, so there is nothing to tell apart.")
        self.rows = torch.arange(self.n, device=features.device)

        self.mean = features.mean(0)
        centred = features - self.mean
        if self.n > self.width:
            variance, axes = torch.linalg.eigh(centred.T @ centred / self.n)
        else:  # fewer images than dimensions: the images span all that matters
            gram, mixing = torch.linalg.eigh(centred @ centred.T / self.n)
            variance, axes = gram, centred.T @ mixing / (gram.clamp_min(gram[-1] * 1e-15) * self.n).sqrt()
        kept = variance > variance[-1] * 1e-12  # rounding noise otherwise, and no data to fit
        self.axes = axes[:, kept]
        ones = features.new_ones(self.n, 1)
        self.design = torch.cat([centred @ self.axes, ones], 1)  # [N, d + 1]
        self.design_t = self.design.T.contiguous() / self.n
        self.design32, self.design_t32 = self.design.float(), self.design_t.float()
        self.variance = torch.cat([variance[kept], ones[0]]).float()

        # At W = 0 the best bias is the log frequency of each class.
        frequency = torch.bincount(self.labels).double() / self.n
        zero = features.new_zeros(self.design.shape[1], 1, len(self.classes))
        zero[-1, 0] = frequency.log()
        gradient = self._pull(self._residual(frequency.expand(self.n, 1, -1)))[:-1]
        self.gradient = gradient  # [d, 1, K] at zero
        # Zero stays the optimum up to this C.
        self.critical = 0.5 / max(gradient.norm().item(), 1e-300)
        self.solved: dict[float, Tensor] = {self.critical: zero}  # C -> theta [d + 1, 1, K]
        self.objective: dict[float, float] = {}

    # Products with the data: scores of parameters, and gradients of scores.
    def _push(self, theta: Tensor) -> Tensor:
        """[d + 1, m, K] -> logits [N, m, K]"""
        design = self.design if theta.dtype == torch.float64 else self.design32
        return (design @ theta.flatten(1)).view(self.n, *theta.shape[1:])

    def _pull(self, residual: Tensor) -> Tensor:
        """[N, m, K] -> mean over images of design x residual, [d + 1, m, K]"""
        design_t = self.design_t if residual.dtype == torch.float64 else self.design_t32
        return (design_t @ residual.flatten(1)).view(-1, *residual.shape[1:])

    def _residual(self, probability: Tensor) -> Tensor:
        """Probabilities [N, m, K] minus the one-hot labels."""
        residual = probability.clone()
        residual[self.rows, :, self.labels] -= 1
        return residual

    def _at_label(self, logits: Tensor) -> Tensor:
        """[N, m, K] -> [N, m, 1], the entry of the right class."""
        return logits.gather(2, self.labels[:, None, None].expand(-1, logits.shape[1], 1))

    def _loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy [m] of logits [N, m, K]."""
        return (logits.logsumexp(2) - self._at_label(logits)[..., 0]).mean(0)

    def solve(self, cs: Sequence[float], guess: Probe | None = None) -> None:
        """Find the optimum for each C, and keep it."""
        for c in cs:
            if not (np.isfinite(c) and c > 0):
                raise EvaluationError(f"C should be a positive number, but is {c}.")
        new = sorted({float(c) for c in cs} - set(self.objective))
        zero = self.solved[self.critical]
        for c in [c for c in new if c <= self.critical]:
            self._keep([c], zero, self._loss(self._push(zero)))
        new = [c for c in new if c > self.critical]
        # Between solved neighbours: together, each from the mix of the two. Beyond them: one after the other, upwards.
        between = [c for c in new if c < max(self.solved)] if guess is None else []
        size = max(1, _BATCH // (self.n * len(self.classes)))
        for i in range(0, len(between), size):
            part = between[i : i + size]
            self._newton(part, torch.cat([self._below_zero(self._mix(c), c) for c in part], 1))
        for c in [c for c in new if c not in between]:
            start = self._stretch(c) if guess is None else self._rotate(guess)
            self._newton([c], self._below_zero(start, c))

    def _keep(self, cs: Sequence[float], theta: Tensor, objective: Tensor) -> None:
        for i, c in enumerate(cs):
            self.solved[c], self.objective[c] = theta[:, i : i + 1], objective[i].item()

    def _mix(self, c: float) -> Tensor:
        """Interpolate in log C between the nearest solved values."""
        low = max(k for k in self.solved if k < c)
        high = min(k for k in self.solved if k > c)
        return torch.lerp(self.solved[low], self.solved[high], float(np.log(c / low) / np.log(high / low)))

    def _stretch(self, c: float) -> Tensor:
        """Start above all solved values: the last solution's weights, lengthened to lower the objective most."""
        theta = self.solved[max(k for k in self.solved if k < c)]
        return self._along(theta, theta[:-1], c, torch.logspace(0, 1, 16))[0]

    def _below_zero(self, theta: Tensor, c: float) -> Tensor:
        """`theta`, unless W = 0 is better: there the kink would hold a descent. Then a start that is better than both.

        From zero the gradient leads down, if only just where C is hardly above critical; for larger C the gradient scaled by
        the variance of each axis leads further.
        """
        zero = self.solved[self.critical]
        if theta[:-1].any() and self._value(theta, c) < self._value(zero, c):
            return theta
        gradient = self.gradient
        scaled = gradient / (self.variance[:-1, None, None] / len(self.classes) + gradient.norm() * 1e-3)
        moved = self._push(torch.cat([gradient, torch.zeros_like(gradient[:1])]))
        p = zero[-1].softmax(-1)
        bend = (p * (moved - (p * moved).sum(2, keepdim=True)).square()).sum(2).mean()
        size = gradient.norm()
        best = (size - 0.5 / c) * size / bend  # of a parabola along the gradient
        starts = [
            self._along(zero, -gradient, c, best * torch.logspace(-3, 1, 17)),
            self._along(zero, -scaled, c, torch.logspace(-6, 2, 33)),
        ]
        return min(starts, key=lambda start: start[1])[0]

    def _along(self, theta: Tensor, weights: Tensor, c: float, lengths: Tensor) -> tuple[Tensor, float]:
        """`theta` with its weights replaced by the multiple of `weights` that makes the objective least, and its value."""
        theta = theta.clone()
        theta[:-1] = weights
        bias, lengths = theta[-1], lengths.to(theta)
        logits, size = self._push(theta) - bias, weights.norm()
        values = torch.stack([self._loss(bias + t * logits)[0] + 0.5 / c * t * size for t in lengths])
        theta[:-1] *= lengths[values.argmin()]
        return theta, values.min().item()

    def _value(self, theta: Tensor, c: float) -> float:
        return (self._loss(self._push(theta)) + 0.5 / c * _length(theta)).item()

    def _rotate(self, probe: Probe) -> Tensor:
        """Another solver's probe in our axes: [d + 1, 1, K]."""
        weight, bias = probe.weight[self.classes].T, probe.bias[self.classes]
        bias = torch.where(bias.isfinite(), bias + self.mean @ weight, bias[bias.isfinite()].min())
        return torch.cat([self.axes.T @ weight, bias[None]])[:, None]

    def _newton(self, cs: Sequence[float], theta: Tensor, tolerance: float = 1e-6) -> None:
        """Minimise for several C > critical at once, from theta [d + 1, m, K] with weights that are not zero.

        A fit is finished when a step promises less than `tolerance` of the objective, which leaves a smaller error
        still.
        """
        strength = torch.tensor([0.5 / c for c in cs], dtype=theta.dtype, device=theta.device)
        theta, logits = theta.clone(), self._push(theta)
        value = self._loss(logits) + strength * _length(theta)
        running = torch.arange(len(cs), device=theta.device)
        outright = theta.shape[0] * theta.shape[2] <= _DIRECT
        for _ in range(_MAX_NEWTON):
            step, gradient, outright = self._direction(
                theta[:, running], logits[:, running], strength[running], outright
            )
            promise = -_dot(gradient, step)
            moved = self._push(step)
            t = torch.ones_like(promise)
            for _ in range(40):  # halve until the objective falls (Armijo); a full step is the rule
                candidate = theta[:, running] + t[:, None] * step
                candidate_logits = logits[:, running] + t[:, None] * moved
                after = self._loss(candidate_logits) + strength[running] * _length(candidate)
                fell = after <= value[running] - 1e-4 * t * promise
                if fell.all():
                    break
                t = torch.where(fell, t, t / 2)
            # A fit that cannot fall any further is as good as float64 makes it.
            kept = running[fell]
            theta[:, kept], logits[:, kept], value[kept] = candidate[:, fell], candidate_logits[:, fell], after[fell]
            running = running[fell & (promise > tolerance * after)]
            if len(running) == 0:
                break
        else:
            left = ", ".join(f"{cs[i]:g}" for i in running.tolist())
            # Next to no penalty on classes that can be separated has no optimum within reach; L-BFGS would stop as well.
            log.info("The linear probe has not converged after %d steps for C = %s.", _MAX_NEWTON, left)
        self._keep(cs, theta, value)

    def _direction(
        self, theta: Tensor, logits: Tensor, strength: Tensor, outright: bool
    ) -> tuple[Tensor, Tensor, bool]:
        """Newton direction and gradient, both [d + 1, m, K] float64, and whether the next one is best solved outright."""
        curve = strength / _length(theta)
        probability = logits.softmax(2)
        gradient = self._pull(self._residual(probability))
        gradient[:-1] += curve[:, None] * theta[:-1]
        if not outright:
            unknowns, limit = theta.shape[0] * theta.shape[2], _MAX_CONJUGATE
            if unknowns <= _DIRECT_AT_MOST:
                # The Hessian costs about as much as so many products with it, which run in float32 but on small matrices.
                limit = min(limit, max(20, theta.shape[1] * (unknowns // 8 + unknowns**2 // (48 * self.n))))
            step, done = self._conjugate_gradients(theta, probability, gradient, curve, limit)
            if done or unknowns > _DIRECT_AT_MOST:
                return step, gradient, False
        step = self._solve_directly(theta, probability, gradient, curve)
        if step is None:
            step = self._conjugate_gradients(theta, probability, gradient, curve, _MAX_CONJUGATE)[0]
        return step, gradient, True

    def _solve_directly(self, theta: Tensor, probability: Tensor, gradient: Tensor, curve: Tensor) -> Tensor | None:
        """Newton direction from the whole Hessian, where it is small; None if rounding made it indefinite."""
        d, m, k = theta.shape
        outer = (self.design[:, None, :, None] * probability[:, :, None]).view(self.n, m, d * k).transpose(0, 1)
        hessian = -(outer.transpose(1, 2) @ outer).view(m, d, k, d, k) / self.n
        same_class = self.design_t @ (probability.permute(1, 2, 0)[..., None] * self.design)  # [m, K, d + 1, d + 1]
        hessian.diagonal(dim1=2, dim2=4).add_(same_class.permute(0, 2, 3, 1))
        weights = hessian[:, :-1, :, :-1].flatten(3).flatten(1, 2)  # a copy: [m, d K, d K]
        w = (theta[:-1] / theta[:-1].square().sum((0, 2)).sqrt()[:, None]).transpose(0, 1).reshape(m, -1)
        identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
        weights += curve[:, None, None] * (identity - w[:, :, None] * w[:, None])
        hessian[:, :-1, :, :-1] = weights.view(m, d - 1, k, d - 1, k)
        # Adding a number to all biases changes nothing; any positive curvature there makes the Hessian regular.
        hessian[:, -1, :, -1] += hessian[:, -1, :, -1].diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        hessian = hessian.view(m, d * k, d * k)
        scale = hessian.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        factor, info = torch.linalg.cholesky_ex(scale[:, :, None] * hessian * scale[:, None])
        if info.any():
            return None
        right = (scale * gradient.transpose(0, 1).reshape(m, -1))[..., None]
        step = -scale * torch.cholesky_solve(right, factor)[..., 0]
        return step.view(m, d, k).transpose(0, 1)

    def _conjugate_gradients(
        self, theta: Tensor, probability: Tensor, gradient: Tensor, curvature: Tensor, limit: int
    ) -> tuple[Tensor, bool]:
        """Newton direction, to the share _FORCING of the gradient, and whether that was reached in `limit` products.

        `curvature` [m] is the norm's, in all directions but along the weights.
        """
        # Class covariance E[diag(p) - p p'] of each fit; times the feature variances it is nearly the Hessian.
        p = probability.transpose(0, 1)  # [m, N, K]
        covariance = torch.diag_embed(p.mean(1)) - p.transpose(1, 2) @ p / self.n
        spread, basis = torch.linalg.eigh(covariance)
        spread, basis = spread.clamp_min(0).float(), basis.float()
        curve = curvature.float()
        scale = self.variance[:, None, None] * spread + curve[:, None]
        scale[-1] = spread.clamp_min(spread.amax(1, keepdim=True) * 1e-5)

        def precondition(r: Tensor) -> Tensor:
            r = r.transpose(0, 1)  # [m, d + 1, K]
            return (((r @ basis) / scale.transpose(0, 1)) @ basis.transpose(1, 2)).transpose(0, 1)

        probability, along = probability.float(), (theta[:-1] / _length(theta)[:, None]).float()

        def hessian(v: Tensor) -> Tensor:
            moved = self._push(v)
            # Relative to the right class: for an image that is classified well this avoids cancellation.
            moved = moved - self._at_label(moved)
            out = self._pull(probability * (moved - (probability * moved).sum(2, keepdim=True)))
            w = v[:-1]
            out[:-1] += curve[:, None] * (w - along * _dot(along, w)[:, None])
            return out

        size = gradient.square().sum((0, 2)).sqrt()
        residual = (-gradient / size[:, None]).float()
        step = torch.zeros_like(residual)
        z = precondition(residual)
        search, rz = z, _dot(residual, z)
        target = _FORCING**2 * rz
        going = torch.ones_like(rz, dtype=torch.bool)
        for _ in range(limit):
            product = hessian(search)
            bend = _dot(search, product)
            going = going & (bend > 0)
            t = torch.where(going, rz / bend, 0.0)[:, None]
            step += t * search
            residual -= t * product
            z = precondition(residual)
            rz_new = _dot(residual, z)
            going = going & (rz_new > target)
            if not going.any():
                break
            search = z + torch.where(going, rz_new / rz, 0.0)[:, None] * search
            rz = rz_new
        return step.double() * size[:, None], not going.any()

    def probe(self, c: float) -> Probe:
        """The solution for C in the coordinates of the features."""
        theta = self.solved[float(c)][:, 0]
        weight = (self.axes @ theta[:-1]).T
        full_weight = weight.new_zeros(self.n_classes, self.width)
        full_bias = weight.new_full((self.n_classes,), -torch.inf)
        full_weight[self.classes] = weight
        full_bias[self.classes] = theta[-1] - weight @ self.mean
        return Probe(full_weight, full_bias, float(c), self.objective[float(c)])


def _length(theta: Tensor) -> Tensor:
    """Norm of the weights of each fit: [d + 1, m, K] -> [m]"""
    return theta[:-1].square().sum((0, 2)).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each fit: two [d, m, K] -> [m]"""
    return (a * b).sum((0, 2))
