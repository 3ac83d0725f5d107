"""`diffclip reproduce`: in order, with its parameters, in this interpreter; stopped and started again it repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from diffclip import reproduce
from diffclip.reproduce import NotebookFailed, duration, find_notebooks, load, put_outputs, select

ROOT = Path(__file__).parents[1]
NOTE = "import os\nwith open('ran.txt', 'a') as file: print({!r}, scale, file=file)"


@pytest.fixture
def kit(tmp_path, monkeypatch, make_notebook):
    """A folder with three small notebooks, each of which notes in ran.txt that it ran, and a data folder beside it."""
    monkeypatch.setenv("DIFFCLIP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(reproduce, "package_hash", lambda: "as it was")  # others may be editing the real package
    for name in ("00_first", "01_second", "02_third"):
        make_notebook(tmp_path / "notebooks" / f"{name}.ipynb", NOTE.format(name))
    return tmp_path


def run(kit, **options):
    """Run at smoke; returns (what it said, which notebooks ran)."""
    said, ran = [], kit / "notebooks" / "ran.txt"
    ran.unlink(missing_ok=True)
    try:
        reproduce.reproduce("smoke", folder=kit / "notebooks", say=said.append, **options)
    finally:
        run.ran = ran.read_text().split() if ran.exists() else []
    return "\n".join(said), [name for name in run.ran if name != "smoke"]


def test_runs_in_order_with_parameters_and_skips_what_is_unchanged(kit, make_notebook):
    said, ran = run(kit)
    assert ran == ["00_first", "01_second", "02_third"] and run.ran.count("smoke") == 3
    assert "[ 1/3] 00_first   running" in said and "[ 3/3] 02_third   done in" in said
    copies = kit / "data" / "runs" / "smoke" / "notebooks"
    assert {path.name for path in copies.glob("*.ipynb")} == {path.name for path in (kit / "notebooks").glob("*.ipynb")}

    said, ran = run(kit)
    assert ran == [] and said.count("skipped: finished before") == 3

    # Outputs and execution counts of the source are no change; a cell is.
    second = kit / "notebooks" / "01_second.ipynb"
    put_outputs(copies / second.name, second, "smoke", 1.0)
    assert run(kit)[1] == []
    make_notebook(second, NOTE.format("changed"))
    said, ran = run(kit)
    assert ran == ["changed"] and "1 to go: about" in said


def test_only_from_and_force(kit):
    assert run(kit, only=["2", "00"])[1] == ["00_first", "02_third"]
    assert run(kit, start="01_second")[1] == ["01_second"]
    assert run(kit, only=["01"], force=True)[1] == ["01_second"]


def test_another_package_or_seed_is_another_run(kit, make_notebook, monkeypatch):
    seeded = make_notebook(
        kit / "notebooks" / "01_second.ipynb", NOTE.format("01_second"), parameters='scale = "mini"\nseed = 0'
    )
    base = load(seeded, "smoke", 0, "package")
    assert base.parameters == {"scale": "smoke", "seed": 0}
    keys = {
        load(seeded, *case).key for case in [("smoke", 1, "package"), ("mini", 0, "package"), ("smoke", 0, "other")]
    }
    assert len(keys | {base.key}) == 4
    # A notebook that takes no seed does not care about it.
    plain = kit / "notebooks" / "00_first.ipynb"
    assert load(plain, "smoke", 0, "package") == load(plain, "smoke", 1, "package")


def test_package_hash_sees_the_source(tmp_path, monkeypatch):
    (tmp_path / "diffclip").mkdir()
    file = tmp_path / "diffclip" / "reproduce.py"
    file.write_text("x = 1")
    monkeypatch.setattr(reproduce, "__file__", str(file))
    before = reproduce.package_hash()
    assert before == reproduce.package_hash()
    file.write_text("x = 2")
    assert before != reproduce.package_hash()


def test_failure_stops_and_shows_where_then_goes_on(kit, make_notebook):
    failing = kit / "notebooks" / "01_second.ipynb"
    make_notebook(failing, "1 / 0")
    with pytest.raises(NotebookFailed) as failure:
        run(kit)
    assert [name for name in run.ran if name != "smoke"] == ["00_first"]
    copy = kit / "data" / "runs" / "smoke" / "notebooks" / "01_second.ipynb"
    assert "01_second.ipynb failed at cell [3] with ZeroDivisionError: division by zero" in str(failure.value)
    assert str(copy) in str(failure.value)
    outputs = [output for cell in nbformat.read(copy, as_version=4).cells for output in cell.get("outputs", [])]
    assert any(output.output_type == "error" and output.ename == "ZeroDivisionError" for output in outputs)

    make_notebook(failing, NOTE.format("mended"))
    assert run(kit)[1] == ["mended", "02_third"]


def test_a_kernel_that_dies_is_reported(kit, make_notebook):
    make_notebook(kit / "notebooks" / "00_first.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="could not be run to its end: DeadKernelError"):
        run(kit)


def test_kernel_is_this_interpreter_whatever_is_registered(kit, make_notebook, monkeypatch):
    spec = kit / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python", "{connection_file}"], "display_name": "x"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(kit / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shows = "import os, sys, diffclip\nprint(sys.executable, diffclip.__file__, os.environ['MPLBACKEND'], os.environ['DIFFCLIP_DATA'])"
    make_notebook(kit / "notebooks" / "00_first.ipynb", shows)
    run(kit, only=["00"], write_back=True)
    written = nbformat.read(kit / "notebooks" / "00_first.ipynb", as_version=4)
    executable, package, backend, data = written.cells[1].outputs[0].text.split()
    assert executable == sys.executable
    assert Path(package).parent.samefile(ROOT / "diffclip")
    assert backend == "module://matplotlib_inline.backend_inline"
    assert data == "../data"  # no path of this machine in what is committed
    assert [cell.execution_count for cell in written.cells] == [1, 2]
    assert written.metadata.diffclip["scale"] == "smoke" and "papermill" not in written.metadata
    assert os.environ["MPLBACKEND"] == "Agg"  # this process's own environment is left as it was


def test_estimates_are_of_the_longest_run(kit, make_notebook):
    """A notebook that finds its models trained is quick; the next stranger's will not be."""
    path = kit / "notebooks" / "00_first.ipynb"
    make_notebook(path, "import time\ntime.sleep(0 if 'slow' not in open('speed').read() else 1.5)")
    (kit / "notebooks" / "speed").write_text("slow")
    run(kit, only=["00"])
    (kit / "notebooks" / "speed").write_text("quick")
    run(kit, only=["00"], force=True, write_back=True)
    state = json.loads((kit / "data/runs/smoke/notebooks/state.json").read_text())["00_first"]
    assert state["longest"] >= 1.5 and state["longest"] > state["seconds"]
    assert load(path, "smoke", 0, "").seconds_committed == round(state["longest"])
    assert load(path, "mini", 0, "").seconds_committed is None


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_stopped_at_any_moment_it_goes_on(kit, make_notebook, how):
    """The command is stopped while its second notebook runs: no kernel is left behind, and the first is not run again."""
    notebooks = kit / "notebooks"
    tells_its_pid = "import os, time\nopen('part', 'w').write(str(os.getpid()))\nos.rename('part', 'kernel.pid')\n"
    make_notebook(notebooks / "01_second.ipynb", tells_its_pid + "time.sleep(0 if os.path.exists('go') else 600)")
    # Run in the background of a script, pytest has inherited that SIGINT is ignored, and passes it on: undone first.
    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from diffclip import cli, reproduce; reproduce.package_hash = lambda: 'as it was'; "
        f"sys.exit(cli.main(['reproduce', '--scale', 'smoke', '--notebooks', {str(notebooks)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        _wait(lambda: (notebooks / "kernel.pid").exists() or process.poll() is not None)
        process.send_signal(how)
        said, _ = process.communicate(timeout=120)  # against hanging for ever, not a measurement
    finally:
        process.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how), said
    kernel = int((notebooks / "kernel.pid").read_text())
    _wait(lambda: not _alive(kernel))
    assert list(json.loads((kit / "data/runs/smoke/notebooks/state.json").read_text())) == ["00_first"]

    (notebooks / "go").touch()
    said, ran = run(kit)
    assert said.count("skipped") == 1 and ran == ["02_third"]  # the second notes nothing in ran.txt


def test_a_polite_kill_is_an_interrupt():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), reproduce._terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_two_at_once_are_refused(kit):
    with reproduce._alone(kit / "data" / "runs" / "smoke" / "notebooks"), pytest.raises(ValueError, match="Another"):
        run(kit)


def test_damaged_state_only_means_running_again(kit):
    run(kit, only=["00"])
    state = kit / "data" / "runs" / "smoke" / "notebooks" / "state.json"
    state.write_text(state.read_text()[:40])
    assert run(kit, only=["00"])[1] == ["00_first"]


def test_missing_copy_means_running_again(kit):
    run(kit, only=["00"])
    (kit / "data" / "runs" / "smoke" / "notebooks" / "00_first.ipynb").unlink()
    assert run(kit, only=["00"])[1] == ["00_first"]


def test_wrong_choices_are_refused_before_anything_runs(kit, make_notebook):
    with pytest.raises(ValueError, match="no notebook '07'. Choose from: 00_first, 01_second, 02_third"):
        run(kit, only=["07"])
    with pytest.raises(ValueError, match="one of the two"):
        select(find_notebooks(kit / "notebooks"), ["00"], "01")
    with pytest.raises(ValueError, match="Unknown scale 'huge'"):
        reproduce.reproduce("huge", folder=kit / "notebooks")
    with pytest.raises(FileNotFoundError, match="no notebooks"):
        find_notebooks(kit / "data")
    make_notebook(kit / "notebooks" / "02_third.ipynb", "1", parameters="seed = 0")
    with pytest.raises(ValueError, match="02_third.ipynb has no parameter `scale`"):
        run(kit)
    assert run.ran == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (100, "1 min 40 s"), (7500, "2 h 5 min"), (273600, "3 days 4 h")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words
