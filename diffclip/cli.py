"""The command line: `diffclip COMMAND`, or `python -m diffclip COMMAND`.

A command here is its arguments and one call into the package. Nothing heavy is imported before the command is known, so
that `diffclip --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
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
    from diffclip.environment import ROOT

    places = [
        ("Every number, with its uncertainty:", copies.parent / "results"),
        ("Tables and figures:", ROOT / "figures" / scale),
        ("All of it beside the paper's numbers, on one page:", ROOT / "figures" / scale / "index.html"),
    ]
    return [(what, path) for what, path in places if path.exists()]


def _short(path: Path) -> Path:
    """Relative to the current folder where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


if __name__ == "__main__":
    sys.exit(main())
