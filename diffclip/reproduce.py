"""`diffclip reproduce`: every notebook in order, at one scale, from where the last attempt ended.

A notebook counts as finished if it ended well and nothing it is made of has changed since: its own cells, the parameters
it was given, the package's source, the paper's numbers. That is one hash, written with the time it took into
data/runs/<scale>/notebooks/state.json the moment the notebook ends; the executed copies lie beside it.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffclip.environment import ROOT


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died. The message says which cell, the error, and where the executed copy is."""


@dataclass(frozen=True)
class Notebook:
    """One notebook and the parameters it will be given: those of ours that its `parameters` cell declares."""

    path: Path
    parameters: dict[str, str | int]
    key: str  # hash of everything its outputs depend on
    seconds_committed: float | None  # what it took at this scale, says the committed notebook

    @property
    def name(self) -> str:
        return self.path.stem


def find_notebooks(folder: Path | None = None) -> list[Path]:
    """The notebooks NN_name.ipynb of a folder (default: the checkout's notebooks/), in order."""
    folder = folder or ROOT / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"There are no notebooks NN_name.ipynb in {folder}. They come with a checkout of the repository: clone it and "
            "run this command in the clone, or give their folder with --notebooks."
        )
    return found


def select(notebooks: list[Path], only: list[str] | None = None, start: str | None = None) -> list[Path]:
    """Those chosen by number ("03", "3") or by name ("03_captions"), in the order of the notebooks."""

    def find(wanted: str) -> Path:
        for path in notebooks:
            number = path.stem.split("_")[0]
            if wanted in (path.stem, path.name, number) or wanted.isdigit() and int(wanted) == int(number):
                return path
        raise ValueError(f"There is no notebook {wanted!r}. Choose from: {', '.join(p.stem for p in notebooks)}.")

    if only and start:
        raise ValueError("--only names the notebooks to run and --from the one to begin with: give one of the two.")
    if only:
        chosen = {find(wanted) for wanted in only}
        return [path for path in notebooks if path in chosen]
    return notebooks[notebooks.index(find(start)) :] if start else notebooks


def load(path: Path, scale: str, seed: int, package: str) -> Notebook:
    """Read a notebook and what of `scale` and `seed` it takes; `package` is package_hash()."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    declared = declared_parameters(notebook)
    if "scale" not in declared:
        raise ValueError(
            f"{path.name} has no parameter `scale`: a code cell tagged `parameters` must hold a line such as "
            'scale = "mini", so that the notebook can be run at any scale.'
        )
    parameters = {name: value for name, value in {"scale": scale, "seed": seed}.items() if name in declared}
    cells = [
        (cell.cell_type, cell.source, cell.metadata.get("tags", []))
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    kit = notebook.metadata.get("diffclip", {})
    return Notebook(
        path,
        parameters,
        _hash(json.dumps([cells, parameters, package], sort_keys=True)),
        kit.get("seconds") if kit.get("scale") == scale else None,
    )


def declared_parameters(notebook) -> dict[str, object]:
    """The names and default values assigned in the cells tagged `parameters` (constants only)."""
    values = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                    values |= {target.id: line.value.value for target in line.targets if isinstance(target, ast.Name)}
    return values


def package_hash() -> str:
    """Of the package's source files and of the paper's numbers: what notebooks are computed with besides their own cells."""
    here = Path(__file__).resolve().parent
    files = sorted(here.rglob("*.py")) + sorted((ROOT / "data" / "paper").glob("*.csv"))
    return _hash("".join(f"{path.name} {_hash(path.read_bytes())}\n" for path in files))


def _hash(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def reproduce(
    scale: str,
    *,
    seed: int = 0,
    only: list[str] | None = None,
    start: str | None = None,
    force: bool = False,
    folder: Path | None = None,
    write_back: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Run the notebooks at a scale and return the folder of their executed copies.

    Finished and unchanged ones are skipped unless `force`. `write_back` also puts the outputs into the notebooks
    themselves, for committing. Raises ValueError or FileNotFoundError on a wrong choice before anything runs, and
    NotebookFailed at the first notebook that fails. Can be interrupted at any moment and called again.
    """
    from diffclip.files import write_text
    from diffclip.scales import get_scale

    copies = get_scale(scale).runs_root.resolve() / "notebooks"
    package = package_hash()
    notebooks = [load(path, scale, seed, package) for path in select(find_notebooks(folder), only, start)]
    with _alone(copies), _terminable():
        state_file = copies / "state.json"
        state = _read_state(state_file)

        def finished(notebook: Notebook) -> bool:
            same = state.get(notebook.name, {}).get("key") == notebook.key
            return same and (copies / notebook.path.name).is_file() and not force

        def expected(notebook: Notebook) -> float | None:
            return state.get(notebook.name, {}).get("longest", notebook.seconds_committed)

        todo = [n for n in notebooks if not finished(n)]
        say(_opening(scale, notebooks, todo, expected))
        width = max(len(n.name) for n in notebooks)
        for position, notebook in enumerate(notebooks, start=1):
            line = f"[{position:2}/{len(notebooks)}] {notebook.name:<{width}}"
            copy = copies / notebook.path.name
            if notebook not in todo:
                say(f"{line}  skipped: finished before ({duration(state[notebook.name]['seconds'])}), unchanged")
            else:
                say(f"{line}  running{_about(expected(notebook), ', about ')}")
                begin = time.monotonic()
                try:
                    execute(notebook, copy)
                except NotebookFailed:
                    say(f"{line}  failed after {duration(time.monotonic() - begin)}")
                    raise
                seconds = time.monotonic() - begin
                state[notebook.name] = {
                    "key": notebook.key,
                    "parameters": notebook.parameters,
                    "seconds": round(seconds, 1),
                    # What it takes where nothing is trained yet: a model that is found makes a notebook quick.
                    "longest": round(max(seconds, state.get(notebook.name, {}).get("longest", 0.0)), 1),
                    "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                }
                write_text(state_file, json.dumps(state, indent=1) + "\n")
                todo.remove(notebook)
                say(f"{line}  done in {duration(seconds)}{_rest(todo, expected)}")
            if write_back:
                put_outputs(copy, notebook.path, scale, max(expected(notebook) or 0, notebook.seconds_committed or 0))
    return copies


def execute(notebook: Notebook, copy: Path) -> None:
    """Run one notebook in a kernel of this very interpreter, keeping the copy up to date cell by cell."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    log = copy.with_suffix(".log")
    bar = {"desc": "  cells", "leave": False} if sys.stderr.isatty() else False
    try:
        with _environment(kernel_environment(notebook.path.parent)):
            papermill.execute_notebook(
                str(notebook.path),
                str(copy),
                parameters=notebook.parameters,
                kernel_name="python3",
                language="python",
                cwd=str(notebook.path.parent),
                progress_bar=bar,
                kernel_manager_class=_own_kernel_manager(log),
            )
    except PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue.strip() or '(no message)'}"
        raise NotebookFailed(
            f"{notebook.path.name} failed at cell [{error.exec_count}] with {what}\n"
            f"The executed copy shows the cell and its traceback: {copy}\n"
            f"Mend the cause and run the same command again: it goes on with this notebook."
        ) from error
    except Exception as error:  # a dead kernel, a full disk: whatever stopped the engine, say where to look
        raise NotebookFailed(
            f"{notebook.path.name} could not be run to its end: {type(error).__name__}: {str(error).strip()}\n"
            f"What was done until then is in {copy}, the kernel's own words in {log}. If the kernel died, the usual "
            "cause is memory: `diffclip doctor` says how much each scale needs."
        ) from error


def kernel_environment(folder: Path) -> dict[str, str]:
    """What a kernel working in `folder` must be told to see this package and this process's data.

    The data folder is named relative to `folder` where both are in one checkout, so that outputs show no path of this
    machine.
    """
    from diffclip.paths import data_root

    data, here = data_root().resolve(), folder.resolve()
    python_path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {
        "DIFFCLIP_DATA": os.path.relpath(data, here) if here.parent in data.parents else str(data),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(entry for entry in python_path if entry != str(ROOT))]),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # into the notebook, whatever this process was told
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # or the debugger's warning lands in the outputs
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _own_kernel_manager(log: Path) -> type:
    """A kernel manager class that starts this interpreter, whatever kernels are registered under the name python3.

    What the kernel process itself says (not the cells: their output goes into the notebook) is written to `log`.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnSpecs(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())

    class OwnKernelManager(AsyncKernelManager):
        def __init__(self, **kwargs):
            super().__init__(**{**kwargs, "kernel_spec_manager": OwnSpecs()})

        async def _async_start_kernel(self, **kwargs):
            with open(log, "wb") as file:  # noqa: ASYNC230  a file of a few lines
                await super()._async_start_kernel(**{**kwargs, "stderr": file})

        start_kernel = _async_start_kernel

    return OwnKernelManager


def put_outputs(copy: Path, target: Path, scale: str, seconds: float) -> None:
    """Put an executed copy's outputs into the notebook itself, with nothing of the machinery that ran it."""
    import nbformat

    from diffclip.files import write_text

    executed = nbformat.read(copy, as_version=4)
    notebook = nbformat.read(target, as_version=4)
    ran = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell, done in zip(notebook.cells, ran, strict=True):
        if cell.cell_type == "code":
            count += 1
            cell.outputs, cell.execution_count = done.outputs, count if cell.source.strip() else None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    notebook.metadata = {
        "diffclip": {"scale": scale, "seconds": round(seconds)},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if executed.metadata.get("widgets"):
        notebook.metadata["widgets"] = executed.metadata["widgets"]
    write_text(target, nbformat.writes(notebook) + "\n")


def _read_state(path: Path) -> dict[str, dict]:
    """The state of earlier attempts; an unreadable file only means that nothing counts as finished."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes writing the same copies and runs would spoil both."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another `diffclip reproduce` is at work in {folder}. Wait until it ends or stop it, then start again; "
                "a different scale, or a different DIFFCLIP_DATA, can run beside it."
            ) from None
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a polite kill (SIGTERM) end us like Ctrl-C does: the kernel is shut down with us."""

    def stop(signum, frame):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def duration(seconds: float) -> str:
    """For people: 8 s, 1 min 40 s, 2 h 5 min, 3 days 4 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} days {seconds % 86400 // 3600} h"


def _about(seconds: float | None, before: str) -> str:
    return "" if seconds is None else before + duration(seconds)


def _rest(todo: list[Notebook], expected: Callable[[Notebook], float | None]) -> str:
    """What is left, from earlier timings; a lower bound where a notebook has never been timed."""
    known = [expected(n) for n in todo if expected(n) is not None]
    if not todo or not known:
        return f", {len(todo)} to go" if todo else ""
    bound = "about" if len(known) == len(todo) else "at least"
    return f", {len(todo)} to go: {bound} {duration(sum(known))}"


def _opening(scale: str, notebooks: list[Notebook], todo: list[Notebook], expected) -> str:
    done = len(notebooks) - len(todo)
    finished = f" ({done} finished before)" if done else ""
    plural = "notebook" if len(notebooks) == 1 else "notebooks"
    return f"{len(notebooks)} {plural} at scale {scale}{finished}{_rest(todo, expected)}"
