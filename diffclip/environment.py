"""What is installed, against what the kit asks for: the lower bounds of pyproject.toml and the pins of requirements.lock.

Standard library and `packaging` only, and no import of the package: the Makefile runs this file as a script, with whatever
interpreter is active, to learn whether that environment can be used as it is.
"""

import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout; without one (a wheel) neither file is there


def required(extras=("notebooks", "dev")) -> list[str]:
    """The requirement lines of pyproject.toml: the dependencies and the given extras."""
    import tomllib  # here, so that main() can tell an older Python what is wrong

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]


def pinned() -> list[str]:
    """The requirement lines of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def unmet(requirements: list[str]) -> list[str]:
    """One entry a requirement that holds on this platform and is not satisfied here: "torch>=2.6 (found 2.1)"."""
    from packaging.requirements import Requirement

    problems = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = None
        # A local label ("2.11.0+cpu") names a build of the same release.
        if found is None or not requirement.specifier.contains(found.split("+")[0], prereleases=True):
            problems.append(f"{requirement.name}{requirement.specifier} (found {found or 'nothing'})")
    return problems


def main() -> int:
    """Exit status 0 if this environment satisfies pyproject.toml and its torch imports; else 1 and a line on what it lacks."""
    if sys.version_info < (3, 11):  # noqa: UP036  this may be any interpreter that is active
        print(f"its Python {sys.version_info.major}.{sys.version_info.minor} is older than 3.11")
        return 1
    try:
        problems = unmet(required())
    except ImportError:
        print("the kit's packages are not installed in it")
        return 1
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        print(f"it lacks {', '.join(problems[:3])}{more}")
        return 1
    try:  # the pair that breaks most often: torch and torchvision of different releases or builds
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        print(f"torch and torchvision do not import together there: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
