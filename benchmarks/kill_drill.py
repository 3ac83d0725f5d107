"""The drill by hand: many images in shards, prepared, trained, killed again and again, and the end must not differ.

    python benchmarks/kill_drill.py        # about ten minutes on two cores; writes benchmarks/results/kill_drill.md

50 000 scenes are written as webdataset shards, some of them damaged as downloads are; `prepare` makes an index of them
and is killed twice on the way; then a model of size `mini` is trained for some hundred steps with two loading workers,
once undisturbed and once killed (SIGKILL) five times at random steps. Both must end with the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from diffclip.corpora import CorpusSpec, open_corpus
from diffclip.prepare import prepare
from diffclip.scales import get_scale
from diffclip.shards import read_shard, write_shard
from diffclip.training import RunConfig, train

RESULTS = Path(__file__).parent / "results"
SOURCE_PIXELS, PIXELS = 64, 48


# ----------------------------------------------------------------------------------------- what the killed processes do


def do_prepare(shards: Path, folder: Path) -> None:
    prepare("drill", shards, folder, image_size=PIXELS, workers=2, progress=True)


def do_train(corpus_folder: Path, run: Path, steps: int) -> None:
    corpus = open_corpus(CorpusSpec("drill", "prepared", image_size=PIXELS, path=str(corpus_folder)))
    scale = get_scale("mini")
    recipe = replace(scale.recipe, max_steps=steps, workers=2, save_every=25, log_every=1)
    config = RunConfig("mini", "drill", "diffclip", 0, scale.model, recipe, corpus.fingerprint)
    train(config, run, corpus, trackers=())


def start(task: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--task", task, *map(str, arguments)])


def kill_when(process: subprocess.Popen, due: Callable[[], bool]) -> bool:
    """Wait until `due`, then kill; whether the process was still alive to be killed."""
    while not due():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------------------ the drill


def damage(shards: list[Path], draw: random.Random) -> dict[str, int]:
    """Break a few samples and one shard, as a download from the web does; what was broken."""
    victim, cut = draw.sample(shards, 2)
    samples = [(s.key, s.files) for s in read_shard(victim)]
    for _, files in draw.sample(samples, 60):
        what = draw.choice(("image", "cut image", "caption"))
        if what == "caption":
            files |= {"txt": b" ", "json": b"{}"}
        else:
            files["jpg"] = b"<html>gone</html>" if what == "image" else files["jpg"][: len(files["jpg"]) // 2]
    write_shard(victim, samples)
    os.truncate(cut, cut.stat().st_size // 2)
    return {"samples": 60, "shards": 1}


def drill(folder: Path, images: int, steps: int, kills: int, seed: int) -> dict:
    draw, figures = random.Random(seed), {"images": images, "steps": steps}
    clock = time.perf_counter()
    world = open_corpus(CorpusSpec("drill-source", "world", images, SOURCE_PIXELS), root=folder, progress=True)
    figures["generated_s"] = round(time.perf_counter() - clock)
    shards = folder / "shards"
    shutil.copytree(world.folder / "shards", shards)
    figures["damaged"] = damage(sorted(shards.glob("*.tar")), draw)

    print("\nPreparing, killed twice on the way")
    index = folder / "index"
    total, clock = len(list(shards.glob("*.tar"))), time.perf_counter()
    for share in (0.3, 0.7):
        goal = int(share * total)
        killed = kill_when(start("prepare", shards, index), lambda n=goal: len(list(index.glob("part-*.json"))) >= n)
        assert killed, "it ended before it could be killed"
    assert start("prepare", shards, index).wait() == 0
    figures["prepared_s"] = round(time.perf_counter() - clock)
    manifest = json.loads((index / "manifest.json").read_text())
    once = prepare("drill", shards, folder / "once", image_size=PIXELS, progress=True)
    figures |= {"pairs": manifest["pairs"], "skipped": manifest["skipped"], "index_equal": manifest == once}

    print(f"\nTraining {steps} steps undisturbed")
    clock = time.perf_counter()
    assert start("train", index, folder / "undisturbed", steps).wait() == 0
    figures["undisturbed_s"] = round(time.perf_counter() - clock)

    killed, at = folder / "killed", sorted(draw.sample(range(1, steps), kills))
    figures["killed_at"], figures["steps_done"] = [], 0
    clock = time.perf_counter()
    for step in at:
        print(f"\nTraining until it is killed at about step {step}")
        pause = draw.uniform(0, 1)  # anywhere within a step, or within a save

        def due(step=step, pause=pause) -> bool:
            if last_step(killed) < step:
                return False
            time.sleep(pause)
            return True

        assert kill_when(start("train", index, killed, steps), due), "it ended before it could be killed"
        figures["killed_at"].append(last_step(killed))
    assert start("train", index, killed, steps).wait() == 0
    figures["killed_s"] = round(time.perf_counter() - clock)
    figures["weights_equal"] = same_weights(folder / "undisturbed", killed)
    figures["metrics_equal"] = metrics(folder / "undisturbed").equals(metrics(killed))
    config = json.loads((killed / "config.json").read_text())
    figures["resumed_from"] = [session["from_step"] for session in config["sessions"][1:]]
    figures["batch"] = config["recipe"]["batch_size"]
    loss = metrics(killed)["loss"]
    figures["loss"] = (round(loss.iloc[0], 3), round(loss.iloc[-1], 3))
    return figures


def last_step(run: Path) -> int:
    try:
        rows = (run / "metrics.csv").read_text().splitlines()
        return int(rows[-1].split(",")[0])
    except (OSError, ValueError, IndexError):  # not there yet, or only the header
        return 0


def metrics(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").drop(columns="samples_per_second")


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def report(figures: dict) -> str:
    skipped = ", ".join(f"{reason}: {count}" for reason, count in figures["skipped"].items())
    rows = {
        "images in shards": f"{figures['images']:,} at {SOURCE_PIXELS} px, generated in {figures['generated_s']} s",
        "prepared": f"{figures['pairs']:,} pairs at {PIXELS} px in {figures['prepared_s']} s, killed twice on the way",
        "skipped": skipped,
        "index equal to an undisturbed one": "yes" if figures["index_equal"] else "NO",
        "training": f"{figures['steps']} steps of {figures['batch']} pairs, size mini, 2 loading workers",
        "undisturbed": f"{figures['undisturbed_s']} s, loss {figures['loss'][0]} to {figures['loss'][1]}",
        "killed after steps": ", ".join(map(str, figures["killed_at"])),
        "went on from steps": ", ".join(map(str, figures["resumed_from"])),
        "with the kills": f"{figures['killed_s']} s",
        "weights equal, bit for bit": "yes" if figures["weights_equal"] else "NO",
        "metrics of every step equal": "yes" if figures["metrics_equal"] else "NO",
    }
    lines = ["# Killed again and again", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return "\n".join([*lines, f"{date.today()}, {machine}, PyTorch {torch.__version__}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        name, *arguments = args.task
        if name == "prepare":
            do_prepare(*map(Path, arguments))
        else:
            do_train(Path(arguments[0]), Path(arguments[1]), int(arguments[2]))
        return
    with tempfile.TemporaryDirectory(prefix="kill_drill-") as folder:
        figures = drill(Path(folder), args.images, args.steps, args.kills, args.seed)
    text = report(figures)
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kill_drill.md").write_text(text)
    sys.exit(not all(figures[key] for key in ("index_equal", "weights_equal", "metrics_equal")))


if __name__ == "__main__":
    main()
