"""Every notebook at scale smoke under nbval, compared with its committed outputs where these do not depend on the scale.

The committed notebooks were executed at mini. This script (`make test` runs it after pytest) writes a copy of each with
the parameter cell overridden by scale = "smoke", keeps the stored outputs, and lets nbval execute the copies in order over one
empty data folder. Every cell must run without an error; a cell tagged `nbval-check-output` must also print what is
stored. So that tag belongs on what is true at any scale and on any machine: theory, shapes, counts, the paper's numbers.

Before that, each committed notebook is checked as a reader would meet it: see `problems`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from diffclip.reproduce import declared_parameters, find_notebooks, kernel_environment

SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")
NBVAL_TAGS = {"nbval-check-output", "nbval-ignore-output", "nbval-skip", "nbval-raises-exception"}
MACHINE_PATH = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|/private/var/|[A-Z]:\\Users\\)[\w.-]*")


def problems(path: Path) -> list[str]:
    """What is wrong with a committed notebook, a sentence each: nothing for one that is executed whole and well."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    tags = [set(cell.metadata.get("tags", [])) for cell in code]
    found = []
    if sum("parameters" in t for t in tags) != 1:
        found.append("must have exactly one cell tagged `parameters`")
    elif declared_parameters(notebook).get("scale") != "mini":
        found.append('its `parameters` cell must say scale = "mini"')
    if any("injected-parameters" in t for t in tags):
        found.append("holds a cell that papermill injected: commit with `diffclip reproduce --write-back`")
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(
            "was not executed whole and in order in a fresh kernel: commit with `diffclip reproduce --write-back`"
        )
    checked = [cell for cell, t in zip(code, tags, strict=True) if "nbval-check-output" in t]
    if not any(cell.outputs for cell in checked):
        found.append("no cell with an output is tagged `nbval-check-output`: its test would compare nothing")
    for cell, t in zip(code, tags, strict=True):
        where = f"cell [{cell.execution_count}]"
        for tag in sorted(t):
            if tag.lower().replace("_", "-").startswith("nbval") and tag not in NBVAL_TAGS:
                found.append(f"{where} has the tag {tag!r}, which nbval does not know")
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in t:
                found.append(f"{where} shows an error: {output.ename}: {output.evalue}")
            text = output.get("text", "") + "".join(
                value for kind, value in output.get("data", {}).items() if kind.startswith("text/")
            )
            if output.get("name") == "stderr" and re.search(r"Warning|Traceback", text):
                found.append(f"{where} shows a warning to the reader: {text.strip().splitlines()[0][:100]}")
            if match := MACHINE_PATH.search(text):
                found.append(f"{where} shows a path of one machine: {match[0]}")
    return found


def smoke_copy(path: Path, folder: Path, scale: str = "smoke") -> Path:
    """Write the notebook to `folder` with its scale overridden and its stored outputs kept."""
    notebook = parameterize_notebook(
        load_notebook_node(str(path)), {"scale": scale}, kernel_name="python3", language="python"
    )
    copy = folder / path.name
    nbformat.write(notebook, copy)
    return copy


def main(argv: list[str] | None = None) -> int:
    """Check, copy, run nbval; 0 if every cell of every notebook is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NN", help="just these, by number (but a notebook may need earlier ones)"
    )
    parser.add_argument("--notebooks", type=Path, help="their folder (default: the checkout's notebooks/)")
    args = parser.parse_args(argv)

    notebooks = [
        path
        for path in find_notebooks(args.notebooks and args.notebooks.resolve())
        if not args.names or path.stem[:2] in args.names
    ]
    wrong = [f"{path.name}: {problem}" for path in notebooks for problem in problems(path)]
    with tempfile.TemporaryDirectory(prefix="diffclip-nbval-") as name:
        work = Path(name, "notebooks")
        work.mkdir()
        os.environ["DIFFCLIP_DATA"] = str(Path(name, "data"))
        checked = 0
        for path in notebooks:
            copy = nbformat.read(smoke_copy(path, work), as_version=4)
            checked += sum("nbval-check-output" in cell.metadata.get("tags", []) for cell in copy.cells)
        print(f"nbval: {len(notebooks)} notebooks at scale smoke, outputs of {checked} cells compared", flush=True)
        # A pytest of its own: no configuration, plugins' caches or conftest of this repository's tests.
        (work / "pytest.ini").write_text("[pytest]\n")
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-q", "--durations=5", "-p", "no:cacheprovider", "."]
            + ["--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={SANITIZE}", "--nbval-cell-timeout=900"],
            cwd=work,
            check=False,
            env=os.environ | kernel_environment(work) | {"HF_HUB_OFFLINE": "1"},
        ).returncode
    if wrong:
        print("Committed notebooks that are not as a reader should meet them:", *wrong, sep="\n- ")
    return status or bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
