"""The command line: `diffclip COMMAND`, or `python -m diffclip COMMAND`.

A command here is its arguments and one call into the package. Nothing heavy is imported before the command is known, so
that `diffclip --help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path


@dataclass(frozen=True)
class Command:
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


COMMANDS: dict[str, Command] = {}


def command(name: str, help: str, arguments: Callable[[argparse.ArgumentParser], None]):
    """Register the decorated function as a subcommand; its docstring is the long help."""

    def register(run):
        COMMANDS[name] = Command(help, arguments, run)
        return run

    return register


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 well, 1 the work failed, 2 wrong use or input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv).parse_args(argv)
    log = logging.getLogger("diffclip")
    handler, level = logging.StreamHandler(), log.level  # what the package has to say goes to stderr, plainly
    if not log.handlers:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        return COMMANDS[args.command].run(args) or 0
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from what is finished.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone: not our error
        sys.stderr.close()
        return 1
    except Exception as error:
        if args.traceback or not _for_people(error):
            raise
        print(f"diffclip {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _for_people(error: Exception) -> bool:
    """Errors whose message is the whole story: wrong input, and whatever the package itself defines."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.partition(".")[0] == "diffclip"


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """All commands by name; arguments only for the one that is used, since some are read off the package."""
    parser = argparse.ArgumentParser(
        prog="diffclip",
        description="DiffCLIP reproduced: train, evaluate, and compute every table and figure of the paper.",
        epilog="Start with: diffclip doctor, then diffclip reproduce. Data is kept under ./data of the checkout, or under "
        "the folder that DIFFCLIP_DATA names.",
    )
    parser.add_argument("--version", action="version", version=f"diffclip {_version()}")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of any error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    used = next((a for a in argv if a in COMMANDS), None)
    for name, entry in COMMANDS.items():
        description = textwrap.dedent(entry.run.__doc__ or entry.help)
        sub = commands.add_parser(name, help=entry.help, description=description)
        if name == used:
            entry.arguments(sub)
    return parser


def _version() -> str:
    from diffclip import __version__

    return __version__


def _scale(parser: argparse.ArgumentParser, default: str = "mini") -> None:
    parser.add_argument("--scale", default=default, help="smoke, mini, gpu, released or paper (default: %(default)s)")


# ---------------------------------------------------------------------------------------------------------- reproduce


def _reproduce_arguments(parser):
    _scale(parser)
    parser.add_argument("--seed", type=int, default=0, help="passed to every notebook that takes it (default: 0)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="run just these notebooks, by number or name")
    parser.add_argument("--from", dest="start", metavar="NN", help="begin with this notebook")
    parser.add_argument("--force", action="store_true", help="run also what is finished and unchanged")
    parser.add_argument(
        "--notebooks", type=Path, metavar="DIR", help="where they are (default: the checkout's notebooks/)"
    )
    parser.add_argument("--write-back", action="store_true", help="put the outputs into the notebooks, to commit them")


@command("reproduce", "run all notebooks at a scale: trains, evaluates, draws everything", _reproduce_arguments)
def reproduce(args) -> int:
    """Run the notebooks in order at a scale. What is finished and unchanged is skipped, so the command can be stopped at
    any moment and given again."""
    from diffclip.reproduce import NotebookFailed, reproduce

    def say(line):
        print(line, flush=True)

    try:
        copies = reproduce(
            args.scale,
            seed=args.seed,
            only=args.only,
            start=args.start,
            force=args.force,
            folder=args.notebooks and args.notebooks.resolve(),
            write_back=args.write_back,
            say=say,
        )
    except NotebookFailed as failure:
        if args.traceback:
            raise
        print(f"\n{failure}", file=sys.stderr)
        return 1
    print("\nThe executed notebooks are in", _short(copies))
    for what, path in _outputs(args.scale, copies):
        print(f"{what} {_short(path)}")
    return 0


def _outputs(scale: str, copies: Path) -> list[tuple[str, Path]]:
    """What else a reproduction leaves behind, as far as it is there."""
    from diffclip.paths import figures_root

    places = [
        ("Every number, with its uncertainty:", copies.parent / "results"),
        ("Tables and figures:", figures_root(scale)),
        ("All of it beside the paper's numbers, on one page:", figures_root(scale) / "report.html"),
    ]
    return [(what, path) for what, path in places if path.exists()]


def _short(path: Path) -> Path:
    """Relative to the current folder where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


# -------------------------------------------------------------------------------------------------------------- train


def _train_arguments(parser):
    from diffclip.training import Recipe

    _scale(parser)
    parser.add_argument("--corpus", default="cc3m", help="cc3m or cc12m; what plays it is the scale's (default: cc3m)")
    parser.add_argument(
        "--variant", default="diffclip", help="clip, diffclip, diffclip_dynamic or diffclip_vision (default: diffclip)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="default: data/runs/SCALE/CORPUS-VARIANT-seedSEED")
    parser.add_argument("--dry-run", action="store_true", help="train nothing: say what it would take on this machine")
    parser.add_argument("--wandb", action="store_true", help="track with Weights & Biases too, besides TensorBoard")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("recipe", "each setting of training.Recipe; the default is the scale's")
    for field in fields(Recipe):
        kind = str(field.type)
        option = "--" + field.name.replace("_", "-")
        if kind == "bool":
            group.add_argument(option, action=argparse.BooleanOptionalAction)
        elif kind.startswith("tuple"):
            group.add_argument(option, nargs=2, type=float, metavar=("A", "B"))
        else:
            convert = int if "int" in kind else float if "float" in kind else str
            group.add_argument(option, type=convert, metavar=kind.partition(" ")[0].upper())


@command("train", "train one model, or go on with one that was interrupted", _train_arguments)
def train(args) -> None:
    """Train one model at a scale. A run that is finished is found, one that was interrupted goes on where it was. On several
    GPUs: accelerate launch -m diffclip train ..."""
    from accelerate import PartialState

    from diffclip.scales import get_scale
    from diffclip.training import Recipe, ensure_run

    given = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name) is not None}
    recipe = replace(get_scale(args.scale).recipe, **given)
    if args.dry_run:
        from diffclip.budget import dry_run

        budget = dry_run(args.scale, args.corpus, args.variant, recipe=recipe)
        if PartialState().is_main_process:
            print(budget)
        return
    run = ensure_run(
        args.scale,
        args.corpus,
        args.variant,
        args.seed,
        recipe=recipe,
        run_dir=args.run_dir,
        progress=not args.quiet,
        trackers=("tensorboard", "wandb") if args.wandb else ("tensorboard",),
    )
    if PartialState().is_main_process:
        last = run.metrics.iloc[-1]
        print(
            f"{_short(run.path)}: step {last['step']:.0f}, loss {last['loss']:.3f}, accuracy in batch "
            f"{100 * last['accuracy']:.1f} %, logit scale {last['logit_scale']:.1f}"
        )


# ------------------------------------------------------------------------------------------------------------ prepare


def _prepare_arguments(parser):
    parser.add_argument("name", help="what to call it: cc3m, cc12m or a name of your own")
    parser.add_argument(
        "--source",
        help="folder of webdataset shards, .csv or .tsv of image paths and captions, or owner/name on the hub",
    )
    parser.add_argument("--out", type=Path, help="default: data/cache/corpora/NAME")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of the shorter edge (default: 224)")
    parser.add_argument("--revision", help="of the hub's repository: a commit, tag or branch")
    parser.add_argument("--pattern", help="which files are shards, as a glob")
    parser.add_argument("--parts", type=int, help="only the first so many shards; more can follow later")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--image-column", help="of a table")
    parser.add_argument("--caption-column", help="of a table")
    parser.add_argument("--keep-shards", action="store_true", help="leave what is downloaded in the hub's cache")
    parser.add_argument("--no-disk-check", dest="check_disk", action="store_false", help="start even if it may not fit")
    parser.add_argument(
        "--look", type=int, metavar="N", help="prepare nothing: show the first N samples of shards as they stream in"
    )


@command("prepare", "bring captioned images into the form that training reads", _prepare_arguments)
def prepare(args) -> None:
    """Bring captioned images into an indexed data set with the shorter edge at a given size. Stopped and started again it
    goes on; broken samples are skipped, counted and listed in rejects.csv."""
    if args.look:
        return _look(args)
    from diffclip.corpora import cache_root
    from diffclip.prepare import prepare

    options = {k: v for k, v in vars(args).items() if k not in ("command", "traceback", "look", "name")}
    manifest = prepare(args.name, say=print, **options)
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items()) or "none"
    print(
        f"{manifest['pairs']:,} pairs in {_short(args.out or cache_root() / 'corpora' / args.name)}; skipped: {skipped}."
    )


def _look(args) -> None:
    from itertools import islice

    from diffclip.streaming import Stream

    for sample in islice(Stream(args.source or args.name, revision=args.revision, pattern=args.pattern), args.look):
        width, height = sample["image"].size
        print(f"{sample['key']}  {width} x {height}  {' | '.join(sample['captions'])}")


# ----------------------------------------------------------------------------------------------------------- evaluate


def _evaluate_arguments(parser):
    _scale(parser)
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        help="runs' folders, checkpoint files, hub repositories, diffclip-cc3m or diffclip-cc12m (the authors'), or "
        "open_clip:ARCHITECTURE/TAG",
    )
    parser.add_argument("--tasks", nargs="+", help="zero_shot, linear_probe, few_shot, retrieval, ... (default: all)")
    parser.add_argument(
        "--benchmarks", nargs="+", help="names of sets, folders or hub repositories (default: all of the scale)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


@command("evaluate", "the paper's tasks on any checkpoint, as tidy results", _evaluate_arguments)
def evaluate(args) -> None:
    """Evaluate checkpoints on a scale's sets, or on sets of your own. What was evaluated before is not evaluated again; the
    numbers go to data/runs/SCALE/results with those of all other models."""
    from diffclip.evaluation import evaluate

    for checkpoint in args.checkpoint:
        rows = evaluate(checkpoint, args.scale, tasks=args.tasks, sets=args.benchmarks, progress=not args.quiet)
        shown = rows[["task", "dataset", "metric", "value", "stderr", "chance", "n"]]
        print(f"\n{checkpoint}\n{shown.to_string(index=False, float_format='{:.1f}'.format)}")


# ----------------------------------------------------------------------------------------------------------- classify


def _classify_arguments(parser):
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--labels", nargs="+", required=True, metavar="LABEL", help="what it may be; commas part them too"
    )
    parser.add_argument(
        "--checkpoint",
        default="diffclip-cc12m",
        help="a run's folder, a checkpoint file, a hub repository, diffclip-cc3m or diffclip-cc12m (the authors'; the default)",
    )
    parser.add_argument("--template", default="a photo of a {}", help="{} is the label's place (default: %(default)r)")
    parser.add_argument("--revision", help="of the hub's repository")


@command("classify", "which of some labels a picture shows, by any checkpoint", _classify_arguments)
def classify(args) -> None:
    """The likeliest five of the labels with their probabilities: zero-shot classification of one picture."""
    from diffclip.classify import classify

    labels = [label for labels in args.labels for label in labels.split(",") if label.strip()]
    for label, score in classify(args.image, labels, args.checkpoint, args.template, revision=args.revision):
        print(f"{100 * score:6.2f} %  {label}")


# ------------------------------------------------------------------------------------------------------------- report


def _report_arguments(parser):
    _scale(parser)
    parser.add_argument("--out", type=Path, help="default: figures/SCALE")


@command("report", "rebuild all tables, figures and the page from the results, without any model", _report_arguments)
def report(args) -> None:
    """Rebuild every table and figure of a scale, and the page that shows them beside the paper's numbers."""
    from diffclip.report import build_report

    paths = build_report(args.scale, args.out)
    print(f"{len(paths)} files in {_short(paths[-1].parent)}; the page that shows them all: {_short(paths[-1])}")


# ------------------------------------------------------------------------------------------------------------- export


def _export_arguments(parser):
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("folder", type=Path, help="where to: a new folder, in the hub's layout")
    parser.add_argument("--released-keys", action="store_true", help="add the weights under the authors' key names")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository on the hub")
    parser.add_argument("--private", action="store_true", help="if --push makes the repository, make it a private one")


@command("export", "a trained model for others, with a model card; --push to the hub", _export_arguments)
def export(args) -> None:
    """Write a trained model as safetensors with its configuration, its scores and a model card, and upload it if asked."""
    from diffclip.export import export, push

    folder = export(args.run, args.folder, released_keys=args.released_keys)
    print(f"{_short(folder)}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if args.push:
        print(f"Pushed: {push(folder, args.push, private=args.private)}")


# ------------------------------------------------------------------------------------------------------------- doctor


def _doctor_arguments(parser):
    pass


@command("doctor", "what this machine is and which scales it can run, with times", _doctor_arguments)
def doctor(args) -> None:
    """Look at the machine, the packages and the data folder, time a few training steps, and say which scales are feasible
    here and about how long each takes. Changes nothing."""
    from diffclip.doctor import report

    report()


if __name__ == "__main__":
    sys.exit(main())
