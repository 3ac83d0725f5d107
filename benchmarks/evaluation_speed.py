"""How much faster our evaluation is than a plain reading of the original procedures, side by side in one process.

    python benchmarks/evaluation_speed.py            # prints the ratios, writes benchmarks/results/evaluation_speed.{csv,md}

The yardsticks do what the procedures say, step by step: a Python loop over 5 000 episodes; recall through one-hot vectors of
the k best, as the LAION CLIP Benchmark computes it, in batches of 64 queries; one L-BFGS fit (strong Wolfe, 1 000 iterations, from
zero) for each C that the sweep asks for. Both sides see the same random features and must give the same numbers. Rounds
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
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.evaluation import few_shot, linear_probe, retrieval
from diffclip.files import write_text

RESULTS = Path(__file__).parent / "results"


# ------------------------------------------------------------------------------------------------------------ few-shot
def plain_few_shot(train: Tensor, test: Tensor, episodes: few_shot.Episodes) -> float:
    scores = []
    for support_rows, query_rows in zip(episodes.support, episodes.query, strict=True):
        support, query = train[support_rows.flatten()], test[query_rows.flatten()]
        mean = support.mean(dim=0)
        support, query = F.normalize(support - mean, dim=1), F.normalize(query - mean, dim=1)
        prototypes = support.unflatten(0, support_rows.shape).mean(dim=1)
        answer = torch.cdist(query, prototypes).argmin(dim=1)
        right = torch.arange(query_rows.shape[0]).repeat_interleave(query_rows.shape[1])
        scores.append((answer == right).double().mean())
    return float(torch.stack(scores).mean())


def time_few_shot(rounds: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 20
    centres = torch.randn(20, 512, generator=generator)
    train, test = (centres[labels] + 4 * torch.randn(2000, 512, generator=generator) for _ in range(2))
    episodes = few_shot.sample_episodes(labels, labels, episodes=5000, seed=0)
    return compare(
        "few-shot, 5 000 episodes, 512 wide",
        lambda: plain_few_shot(train, test, episodes),
        lambda: few_shot.score(train, test, episodes).mean,
        rounds,
        tolerance=1e-4,  # a tie in float32 may fall either way
    )


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
    peaks = [
        int(
            subprocess.run([sys.executable, __file__, "--peak", who], check=True, capture_output=True, text=True).stdout
        )
        for who in ("plain", "ours", "features")
    ]
    row["peak memory, GB (plain)"], row["peak memory, GB (ours)"] = (peaks[0] / 1e6, peaks[1] / 1e6)
    row["note"] = f"of which interpreter, libraries and features {peaks[2] / 1e6:.2f} GB"
    return row


# --------------------------------------------------------------------------------------------------------------- probe
def plain_fit(features: Tensor, labels: Tensor, c: float, classes: int) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=features.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=1000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = linear_probe.objective(weight, bias, features, labels, c)
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def plain_sweep(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], classes: int) -> float:
    def score(values: list[float]) -> list[float]:
        out = []
        for c in values:
            weight, bias = plain_fit(*train, c, classes)
            out.append(float(((held[0] @ weight.T + bias).argmax(1) == held[1]).double().mean()))
        return out

    return linear_probe.choose_c(score)[0]


def our_sweep(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], classes: int) -> float:
    solver = linear_probe._Solver(*train, classes)

    def score(values: list[float]) -> list[float]:
        solver.solve(values)
        return [float((solver.probe(c).logits(held[0]).argmax(1) == held[1]).double().mean()) for c in values]

    return linear_probe.choose_c(score)[0]


def time_probe(rounds: int) -> dict:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(2000) % 20
    centres = torch.randn(20, 256, generator=generator)
    features = (centres[labels] + 3 * torch.randn(2000, 256, generator=generator)).double()
    train, held = (features[:1600], labels[:1600]), (features[1600:], labels[1600:])
    row = compare(
        "probe sweep, 1 600 x 256, 20 classes",
        lambda: plain_sweep(train, held, 20),
        lambda: our_sweep(train, held, 20),
        rounds,
        tolerance=float("inf"),  # the C found is compared below, on a plateau neighbours are equals
    )
    gaps = []
    for probe in linear_probe.fit(*train, [1.0, 10.0, 100.0], n_classes=20):
        plain = linear_probe.objective(*plain_fit(*train, probe.c, 20), *train, probe.c)
        gaps.append((probe.objective - float(plain)) / float(plain))
    row["note"] = f"our objective is above the plain one's by at most {max(gaps):.1e} relative at C = 1, 10, 100"
    return row


# ------------------------------------------------------------------------------------------------------------- timing
def compare(what: str, plain: Callable, ours: Callable, rounds: int, tolerance: float) -> dict:
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    answers = {}
    ours()  # kernels and threads are warm for both
    for _ in range(rounds):
        for name, run in (("plain", plain), ("ours", ours)):
            start = time.perf_counter()
            answers[name] = run()
            times[name].append(time.perf_counter() - start)
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
    rows = [time_few_shot(3), time_retrieval(2), time_probe(2)]
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    about = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}. Medians of 2 or 3 alternating rounds."
    )
    lines = ["# Evaluation beside a plain reading of the original procedures", ""]
    lines += ["| what | plain, s | ours, s | times as fast (lowest to highest) | peak memory plain / ours, GB | note |"]
    lines += ["|---|---:|---:|---:|---:|---|"]
    for row in rows:
        peak = [row.get(f"peak memory, GB ({who})") for who in ("plain", "ours")]
        memory = " / ".join(f"{p:.2f}" for p in peak) if peak[0] else ""
        lines.append(
            f"| {row['what']} | {row['plain, s']:.2f} | {row['ours, s']:.3f} | {row['times as fast']:.1f} "
            f"({row['lowest']:.1f} to {row['highest']:.1f}) | {memory} | {row.get('note', '')} |"
        )
    write_text(RESULTS / "evaluation_speed.md", "\n".join([*lines, "", about, ""]))
    write_text(RESULTS / "evaluation_speed.csv", table.to_csv(index=False))


if __name__ == "__main__":
    main()
