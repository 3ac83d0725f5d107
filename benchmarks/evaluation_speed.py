"""How much faster our evaluation is than a plain reading of the original procedures, side by side in one process.

    python benchmarks/evaluation_speed.py            # prints the ratios, writes benchmarks/results/evaluation_speed.{csv,md}

The yardsticks do what the procedures say, step by step: a Python loop over 5 000 episodes; recall through one-hot vectors of
the k best, as the LAION CLIP Benchmark computes it, in batches of 64 queries; one L-BFGS fit (strong Wolfe, from zero) for each C
that the sweep asks for, both to the same optimum and with the 1 000 iterations and default tolerances that end it earlier. Both
sides see the same features and must give the same numbers. Rounds
alternate, and the medians are compared, so that a machine that slows down slows both.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from diffclip.evaluation import few_shot, linear_probe, retrieval
from diffclip.files import write_text

RESULTS = Path(__file__).parent / "results"


# ------------------------------------------------------------------------------------------------------------ few-shot
def plain_score(support: Tensor, query: Tensor, support_labels: Tensor, query_labels: Tensor) -> Tensor:
    """Accuracy of one episode of 5 ways and 5 shots."""
    mean = support.mean(dim=0, keepdim=True)
    support, query = F.normalize(support - mean, dim=-1), F.normalize(query - mean, dim=-1)
    prototypes, names = support.view(5, 5, -1).mean(dim=1), support_labels.view(5, 5)
    if not (names == names[:, :1]).all():
        raise SystemExit("few-shot: a prototype of several classes")
    distance = (query[:, None] - prototypes[None]).norm(dim=-1)
    return (names[distance.argmin(dim=1), 0] == query_labels).float().mean()


def plain_few_shot(train: Tensor, test: Tensor, labels: Tensor) -> float:
    """Draw an episode class by class, score it, draw the next; train and test have the same labels here."""
    rows = [np.flatnonzero(labels.numpy() == c) for c in labels.unique().numpy()]
    scores = []
    for _ in range(5000):
        support, query = [], []
        for c in torch.randperm(len(rows))[:5]:
            found = rows[int(c)]
            support.append(found[torch.multinomial(torch.ones(len(found)), 5)])
            query.append(found[torch.multinomial(torch.ones(len(found)), 6)])
        support, query = np.concatenate(support), np.concatenate(query)
        scores.append(plain_score(train[support], test[query], labels[support], labels[query]))
    return float(torch.stack(scores).mean())


def time_few_shot(rounds: int) -> Iterator[dict]:
    for width in (64, 512):  # of the models of scale mini, and of a ViT-B/16
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(2000) % 20
        centres = torch.randn(20, width, generator=generator)
        train, test = (
            centres[labels] + width**0.5 / 6 * torch.randn(2000, width, generator=generator) for _ in range(2)
        )
        episodes = few_shot.sample_episodes(labels, labels, episodes=200, seed=0)
        one_by_one = [
            plain_score(train[s], test[q], labels[s], labels[q])
            for s, q in zip(episodes.support.flatten(1), episodes.query.flatten(1), strict=True)
        ]
        if (few_shot.score(train, test, episodes).accuracy - torch.stack(one_by_one)).abs().mean() > 1e-4:
            raise SystemExit("few-shot: the two sides disagree about the same episodes")
        row = compare(
            f"few-shot, 5 000 episodes, {width} wide",
            lambda train=train, test=test, labels=labels: plain_few_shot(train, test, labels),
            lambda train=train, test=test, labels=labels: (
                few_shot.few_shot(train, labels, test, labels, episodes=5000).mean
            ),
            rounds,
            tolerance=0.01,  # each draws its own episodes
        )
        row["note"] = "drawing included; the same answers on the same episodes"
        yield row


# ----------------------------------------------------------------------------------------------------------- retrieval
def retrieval_features() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = F.normalize(torch.randn(5000, 512, generator=generator), dim=1)
    owner = torch.arange(25_000) // 5
    text = F.normalize(image[owner] + 1.2 * torch.randn(25_000, 512, generator=generator) / 512**0.5 * 22, dim=1)
    return image, text, owner


def plain_recalls(image: Tensor, text: Tensor, owner: Tensor) -> list[float]:
    scores = text @ image.T
    positive = torch.zeros(len(text), len(image), dtype=torch.bool)
    positive[torch.arange(len(text)), owner] = True
    out = []
    for k in (1, 5, 10):
        for s, p in ((scores, positive), (scores.T, positive.T)):
            hits = []
            for start in range(0, len(s), 64):
                best = s[start : start + 64].topk(k, dim=1).indices
                chosen = F.one_hot(best, num_classes=s.shape[1]).sum(dim=1).bool()  # [64, k, gallery] on the way
                hits.append((chosen & p[start : start + 64]).any(dim=1))
            out.append(float(torch.cat(hits).double().mean()))
    return out


def our_recalls(image: Tensor, text: Tensor, owner: Tensor) -> list[float]:
    result = retrieval.score(image, text, owner)
    return [float(result.hits(d, k).double().mean()) for k in (1, 5, 10) for d in retrieval.DIRECTIONS]


def time_retrieval(rounds: int) -> dict:
    features = retrieval_features()
    row = compare(
        "retrieval, 25 000 captions x 5 000 images",
        lambda: plain_recalls(*features),
        lambda: our_recalls(*features),
        rounds,
        tolerance=1e-4,
    )
    for who in ("plain", "ours"):  # each in a process of its own
        ran = subprocess.run([sys.executable, __file__, "--peak", who], check=True, capture_output=True, text=True)
        row[f"added memory, GB ({who})"] = float(ran.stdout)
    row["note"] = "memory: the peak above interpreter, libraries and features"
    return row


# --------------------------------------------------------------------------------------------------------------- probe
AS_PUBLISHED = {"max_iter": 1000}  # PyTorch's own tolerances stop it, at large C well above the optimum
TO_THE_OPTIMUM = {"max_iter": 10_000, "max_eval": 20_000, "tolerance_grad": 1e-9, "tolerance_change": 1e-12}


def plain_fit(features: Tensor, labels: Tensor, c: float, classes: int, stop: dict) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=features.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **stop)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = linear_probe.objective(weight, bias, features, labels, c)
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def accuracy(weight: Tensor, bias: Tensor, held: tuple[Tensor, Tensor]) -> float:
    return float(((held[0] @ weight.T + bias).argmax(1) == held[1]).double().mean())


def plain_sweep(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], classes: int, stop: dict) -> float:
    return linear_probe.choose_c(lambda cs: [accuracy(*plain_fit(*train, c, classes, stop), held) for c in cs])[0]


def our_sweep(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], classes: int) -> float:
    solver = linear_probe._Solver(*train, classes)

    def score(cs: list[float]) -> list[float]:
        solver.solve(cs)
        return [accuracy(solver.probe(c).weight, solver.probe(c).bias, held) for c in cs]

    return linear_probe.choose_c(score)[0]


def probe_problems() -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Handwritten digits, as real features; clusters of equal spread in all directions, which suit L-BFGS best; and
    normalised features with a spectrum that falls over two decades, as an encoder's do."""
    digits = load_digits()
    yield "real digits", torch.tensor(digits.data / 16), torch.tensor(digits.target), 1000
    generator = torch.Generator().manual_seed(2)
    for what, n, width, classes in (("round clusters", 2000, 256, 20), ("falling spectrum", 3000, 512, 40)):
        labels = torch.arange(n) % classes
        features = torch.randn(classes, width, generator=generator)[labels]
        features = features + 3 * torch.randn(n, width, generator=generator)
        if what == "falling spectrum":
            features = F.normalize(features * torch.logspace(0, -2, width), dim=1)
        yield what, features.double(), labels, n * 4 // 5


def time_probe(rounds: int) -> Iterator[dict]:
    for what, features, labels, count in probe_problems():
        train, held = (features[:count], labels[:count]), (features[count:], labels[count:])
        classes = int(labels.max()) + 1
        ours = dict(zip(linear_probe.COARSE, linear_probe.fit(*train, linear_probe.COARSE), strict=True))
        for how, stop in (("to the same optimum", TO_THE_OPTIMUM), ("stopped as published", AS_PUBLISHED)):
            row = compare(
                f"probe sweep, {what}, {count:,} x {features.shape[1]}, {classes} classes; L-BFGS {how}",
                lambda train=train, held=held, classes=classes, stop=stop: plain_sweep(train, held, classes, stop),
                lambda train=train, held=held, classes=classes: our_sweep(train, held, classes),
                rounds,
                tolerance=float("inf"),  # on a plateau of the accuracy neighbouring values of C are equals
            )
            gaps = {}
            for c, probe in ours.items():
                plain = float(linear_probe.objective(*plain_fit(*train, c, classes, stop), *train, c))
                gaps[c] = plain / probe.objective - 1
            worst = max(gaps, key=lambda c: abs(gaps[c]))
            row["note"] = (
                f"L-BFGS ends {gaps[worst]:+.0e} relative from our objective at C = {worst:g}, closer elsewhere"
            )
            yield row


# ------------------------------------------------------------------------------------------------------------- timing
AT_LEAST = 0.5  # seconds a measurement lasts: what is faster is called repeatedly, and its mean taken


def compare(what: str, plain: Callable, ours: Callable, rounds: int, tolerance: float) -> dict:
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    answers = {}
    ours()  # kernels and threads are warm for both
    for _ in range(rounds):
        for name, run in (("plain", plain), ("ours", ours)):
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < AT_LEAST:
                answers[name] = run()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls)
    gap = (torch.tensor(answers["plain"]) - torch.tensor(answers["ours"])).abs().max()
    if gap > tolerance:
        raise SystemExit(f"{what}: the two sides disagree, {answers}")
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    return {
        "what": what,
        "plain, s": statistics.median(times["plain"]),
        "ours, s": statistics.median(times["ours"]),
        "times as fast": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def added_memory(run: Callable, arguments: tuple) -> float:
    """GB by which the resident memory peaks above what it was before the call (Linux: the peak can be reset)."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(field)))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run(*arguments)
    return (resident("VmHWM") - before) / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(added_memory({"plain": plain_recalls, "ours": our_recalls}[sys.argv[2]], retrieval_features()))
        return
    rows = [*time_few_shot(5), time_retrieval(3), *time_probe(3)]
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    about = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}. Medians of 3 or 5 alternating rounds."
    )
    lines = ["# Evaluation beside a plain reading of the original procedures", ""]
    lines += [
        "| what | plain, s | ours, s | times as fast (lowest to highest) | memory added, plain / ours, GB | note |"
    ]
    lines += ["|---|---:|---:|---:|---:|---|"]
    for row in rows:
        added = [row.get(f"added memory, GB ({who})") for who in ("plain", "ours")]
        memory = " / ".join(f"{gb:.2f}" for gb in added) if added[0] else ""
        lines.append(
            f"| {row['what']} | {row['plain, s']:.2f} | {row['ours, s']:.3f} | {row['times as fast']:.1f} "
            f"({row['lowest']:.1f} to {row['highest']:.1f}) | {memory} | {row.get('note', '')} |"
        )
    write_text(RESULTS / "evaluation_speed.md", "\n".join([*lines, "", about, ""]))
    write_text(RESULTS / "evaluation_speed.csv", table.to_csv(index=False))


if __name__ == "__main__":
    main()
