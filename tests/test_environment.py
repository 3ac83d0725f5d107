"""One environment, described in three files and made by one script: they must say the same, and the script must mend."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffclip
from diffclip import environment

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [Requirement(line) for line in environment.pinned()]
PINS = {pin.name: next(iter(pin.specifier)).version for pin in LOCK}
REQUIRED = environment.required()

# Other machines than this one, by the markers that packages ask about.
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"}
MACHINES = [
    {**system, "python_version": version, "python_full_version": f"{version}.4"}
    for system in (LINUX, MAC)
    for version in ("3.11", "3.12", "3.13")
]


def test_lock_is_exact_sorted_and_names_no_address():
    for line, pin in zip(environment.pinned(), LOCK, strict=True):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*( ; [\w\s\"'.<>=]+)?", line), line
        assert pin.url is None and not pin.extras
    assert "://" not in (ROOT / "requirements.lock").read_text() + (ROOT / "environment.yml").read_text()
    names = [pin.name for pin in LOCK]
    assert names == sorted(set(names)) and names == [canonicalize_name(name) for name in names]


@pytest.mark.parametrize("line", REQUIRED)
def test_pyproject_agrees_with_the_lock(line):
    requirement = Requirement(line)
    name = canonicalize_name(requirement.name)
    assert name in PINS, f"{name} is required but not locked"
    assert requirement.specifier.contains(PINS[name]), f"{line} does not allow the locked {PINS[name]}"
    assert [s.operator for s in requirement.specifier] == [">="], "pyproject has lower bounds; the lock has the pins"


def test_conda_environment_is_made_of_the_same_pins():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *of_conda, of_pip = conda["dependencies"]
    # Only the interpreter and pip come from conda; whatever else there is comes from the lock itself.
    assert of_conda == ["python=3.11", "pip"]
    assert of_pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert "3.11" in Requirement(f"python{PROJECT['requires-python']}").specifier


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['sys_platform']}-{m['python_version']}")
def test_lock_is_closed_on_every_machine(machine):
    """What a locked package needs on that machine is locked for it, in a version that it accepts."""
    here = {pin.name for pin in LOCK if pin.marker is None or pin.marker.evaluate(machine)}
    installed = {}
    for name in here:
        try:
            installed[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # locked for other machines
        found = installed[name].version.split("+")[0]
        if found != PINS[name]:
            pytest.skip(f"the active environment has {name} {found}: it cannot tell what the locked {PINS[name]} needs")
    assert len(installed) > 100
    extras = {(name, "") for name in installed}
    todo = sorted(extras)
    while todo:
        name, extra = todo.pop()
        for line in installed[name].requires or []:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({**machine, "extra": extra}):
                continue
            other = canonicalize_name(needed.name)
            assert other in here, f"{name} needs {line}, which is not locked for {machine}"
            assert needed.specifier.contains(PINS[other]), f"{name} needs {line}, locked is {PINS[other]}"
            new = {(other, e) for e in needed.extras if other in installed} - extras
            extras |= new
            todo += sorted(new)


def test_nothing_of_cuda_is_locked_off_linux():
    mac = [pin.name for pin in LOCK if pin.marker is None or pin.marker.evaluate(MACHINES[-1])]
    assert not [name for name in mac if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert {"torch", "torchvision", "numpy"} <= set(mac)


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == diffclip.__version__ == citation["version"]
    assert PROJECT["license"] == citation["license"] == "MIT"
    assert PROJECT["authors"][0]["name"] in (ROOT / "LICENSE").read_text()


def test_unmet_names_what_is_missing_old_or_fine():
    assert environment.unmet(["packaging>=1", "no-such-package-here>=2 ; sys_platform == 'nowhere'"]) == []
    assert environment.unmet(["no-such-package-here>=2"]) == ["no-such-package-here>=2 (found nothing)"]
    (old,) = environment.unmet(["packaging>=9999"])
    assert old == f"packaging>=9999 (found {metadata.version('packaging')})"


def test_a_local_build_of_the_release_counts(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.11.0+cu130")
    assert environment.unmet(["torch==2.11.0", "torch>=2.6"]) == []


def test_make_has_the_promised_targets():
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("reproduce", "test", "lab", "lint", "clean"):
        assert re.search(rf"^  make {target} ", help_text, re.MULTILINE)


# ------------------------------------------------------------------------------------------------- tools/in-environment


@pytest.fixture
def checkout(tmp_path):
    """A checkout with what tools/in-environment reads, and a false Python that makes false environments: its pip notes
    its arguments in calls.txt, and fails as long as there is a file named `broken`."""
    root = tmp_path / "a checkout"  # with a space, as home folders have
    for name in ("tools/in-environment", "pyproject.toml", "requirements.lock", "diffclip/environment.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "tools/in-environment").chmod(0o755)
    inner = f"""#!/bin/sh
case "$*" in
    "-m pip --version") exit 0 ;;
    "-m pip "*) echo "$*" >> "{root}/calls.txt"; test ! -e "{root}/broken" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    (root / "inner").write_text(inner)
    outer = f"""#!/bin/sh
case "$*" in
    *"-m venv --clear"*) for last; do :; done; mkdir -p "$last/bin"; cp "{root}/inner" "$last/bin/python"
        chmod +x "$last/bin/python"; echo "venv" >> "{root}/calls.txt" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    (root / "python").write_text(outer)
    (root / "python").chmod(0o755)
    return root


def run_in(checkout, *command, **variables):
    """(exit status, stdout, stderr) of tools/in-environment there, in a shell with nothing active but `variables`."""
    # The interpreter's name must not hold a space (PYTHON may be a list), so it is reached by its name on the path.
    variables = {"PATH": f"{checkout}:/usr/bin:/bin", "HOME": str(checkout), "PYTHON": "python", **variables}
    script = [checkout / "tools/in-environment", *command]
    ended = subprocess.run(script, env=variables, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def calls(checkout):
    file = checkout / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.removeprefix("-m pip ").replace(str(checkout), "ROOT").replace(" -q", "") for line in lines]


INSTALL = ["install -r ROOT/requirements.lock", "install --no-deps --no-build-isolation -e ROOT"]


def test_venv_is_made_once_and_filled_again_when_the_lock_changes(checkout):
    status, out, err = run_in(checkout, "sh", "-c", "echo $JUPYTER_PREFER_ENV_PATH $PYTHONPATH; command -v python")
    assert (status, out) == (0, f"1 {checkout}\n{checkout}/.venv/bin/python\n"), err
    assert calls(checkout) == ["venv", *INSTALL]

    assert run_in(checkout, "true")[0] == 0
    assert calls(checkout) == []

    with open(checkout / "requirements.lock", "a") as lock:
        lock.write("another==1\n")
    assert run_in(checkout, "true")[0] == 0
    assert calls(checkout) == INSTALL


def test_interrupted_install_is_done_again(checkout):
    (checkout / "broken").touch()
    assert run_in(checkout, "true")[0] != 0
    assert calls(checkout) == ["venv", INSTALL[0]]
    (checkout / "broken").unlink()
    assert run_in(checkout, "true")[0] == 0
    assert calls(checkout) == INSTALL


def test_half_made_venv_is_made_again(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    assert run_in(checkout, "true")[0] == 0
    assert calls(checkout) == ["venv", *INSTALL]


def test_exit_status_is_the_commands(checkout):
    assert run_in(checkout, "sh", "-c", "exit 7")[0] == 7


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_that_fits_is_used_as_it_is(checkout, variable):
    if environment.unmet(environment.required()):
        pytest.skip("this environment lacks packages itself")
    active = checkout / "active"
    (active / "bin").mkdir(parents=True)
    (active / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (active / "bin" / "python").chmod(0o755)
    status, out, err = run_in(checkout, "sh", "-c", "command -v python", **{variable: str(active)})
    assert (status, out, err) == (0, f"{active}/bin/python\n", "")
    assert calls(checkout) == [] and not (checkout / ".venv").exists()


def test_active_environment_without_the_packages_is_left_alone(checkout):
    active = checkout / "active"
    (active / "bin").mkdir(parents=True)
    (active / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # -S: no site-packages
    (active / "bin" / "python").chmod(0o755)
    status, out, err = run_in(checkout, "sh", "-c", "command -v python", VIRTUAL_ENV=str(active))
    assert (status, out) == (0, f"{checkout}/.venv/bin/python\n")
    assert f"the active environment {active} is not used: the kit's packages are not installed in it" in err


def test_no_python_is_said_clearly(checkout):
    status, _, err = run_in(checkout, "true", PYTHON="/nowhere/python")
    assert status == 1 and "no Python 3.11 or later was found as /nowhere/python" in err and "conda" in err


def test_python_without_venv_is_said_clearly(checkout):
    (checkout / "python").write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')
    status, _, err = run_in(checkout, "true")
    assert status == 1 and "python3-venv" in err
