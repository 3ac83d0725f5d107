"""The committed notebooks as a reader meets them, and the machinery that runs them at smoke, tried on small ones."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbval_smoke import problems, smoke_copy

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebook_is_whole(path):
    assert problems(path) == []


@pytest.fixture
def executed(tmp_path, make_notebook):
    """executed(*cells): a notebook as if it had been run; a cell is (source, its output or None, tag, ...)."""

    def make(*cells, name="00_first", **options):
        path = make_notebook(tmp_path / f"{name}.ipynb", *((source, *tags) for source, _, *tags in cells), **options)
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].execution_count = 1
        for number, (cell, (_, output, *_)) in enumerate(zip(notebook.cells[1:], cells, strict=True), start=2):
            cell.execution_count = number
            if isinstance(output, str):
                output = nbformat.v4.new_output("stream", name="stdout", text=output)
            cell.outputs = [output] if output else []
        nbformat.write(notebook, path)
        return path

    return make


GOOD = ("print(2 + 2)", "4\n", "nbval-check-output")


def test_good_notebook_has_no_problems(executed):
    assert problems(executed(GOOD, ("print(scale)", "mini\n"))) == []


def test_each_problem_is_told(executed):
    def told(*cells, **options):
        return " ".join(problems(executed(*cells, **options)))

    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    warning = nbformat.v4.new_output("stream", name="stderr", text="file.py:3: FutureWarning: soon\n")
    assert "exactly one cell tagged `parameters`" in told(GOOD, ("scale = 'x'", None, "parameters"))
    assert 'must say scale = "mini"' in told(GOOD, parameters='scale = "smoke"')
    assert "papermill injected" in told(GOOD, ("scale = 'mini'", None, "injected-parameters"))
    assert "would compare nothing" in told(("print(4)", "4\n"))
    assert "cell [3] shows an error: ValueError: no" in told(GOOD, ("raise ValueError('no')", error))
    assert "shows an error" not in told(GOOD, ("raise ValueError('no')", error, "raises-exception"))
    assert "cell [3] shows a warning to the reader: file.py:3: FutureWarning: soon" in told(GOOD, ("warn()", warning))
    assert "a path of one machine: /home/somebody" in told(GOOD, ("print(p)", "saved in /home/somebody/kit/data"))
    assert "'nbval_check-output', which nbval does not know" in told(GOOD, ("1", None, "nbval_check-output"))


def test_unexecuted_or_out_of_order_is_told(executed):
    path = executed(GOOD, ("print(scale)", "mini\n"))
    for counts in ([1, 2, None], [1, 3, 2], [5, 6, 7]):
        notebook = nbformat.read(path, as_version=4)
        for cell, count in zip(notebook.cells, counts, strict=True):
            cell.execution_count = count
        nbformat.write(notebook, path)
        assert "not executed whole and in order" in " ".join(problems(path)), counts


def test_smoke_copy_overrides_the_scale_and_keeps_outputs(executed, tmp_path):
    (tmp_path / "copies").mkdir()
    copy = nbformat.read(smoke_copy(executed(GOOD), tmp_path / "copies"), as_version=4)
    assert [cell.metadata.tags for cell in copy.cells] == [["parameters"], ["injected-parameters"], [GOOD[2]]]
    assert 'scale = "smoke"' in copy.cells[1].source
    assert copy.cells[2].outputs[0].text == "4\n"


@pytest.mark.processes
def test_nbval_compares_what_is_tagged_and_runs_the_rest(executed, tmp_path):
    """One run of the script over four notebooks: which pass and which fail."""
    address = "<object object at 0x7f00deadbeef>\n"
    executed(GOOD, ("print(scale)", "mini\n"), ("print(object())", address, GOOD[2]), name="00_good")
    executed(("print(2 + 3)", "4\n", GOOD[2]), name="01_another_number")
    executed(GOOD, ("1 / 0", None), name="02_raises")
    here = "import os, diffclip\nos.makedirs(os.environ['DIFFCLIP_DATA'], exist_ok=True)\nassert scale == 'smoke'"
    executed(GOOD, (here + "\nassert os.environ['HF_HUB_OFFLINE'] == '1'", None), name="03_good")
    command = [sys.executable, ROOT / "tests" / "nbval_smoke.py", "--notebooks", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    failed = sorted(line.split(" ")[1] for line in ended.stdout.splitlines() if line.startswith("FAILED"))
    assert failed == ["01_another_number.ipynb::Cell", "02_raises.ipynb::Cell"], ended.stdout + ended.stderr
    assert "4 notebooks at scale smoke, outputs of 5 cells compared" in ended.stdout
    assert "2 failed, 14 passed" in ended.stdout and ended.returncode == 1

    good = subprocess.run([*command, "03"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert good.returncode == 0 and "4 passed" in good.stdout, good.stdout + good.stderr
