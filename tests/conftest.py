"""What every test shares: no network, no window, no writing outside temporary folders, the same examples every time."""

import os
from pathlib import Path

# Processes that tests start find this checkout, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
# Before any import of the libraries that read them. A test of the hub sets its own endpoint, and asks for online mode.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

settings.register_profile("kit", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("kit")


@pytest.fixture(scope="session", autouse=True)
def data_root(tmp_path_factory):
    """A data folder of the test session's own (DIFFCLIP_DATA), so that no test reads or writes the user's data/."""
    root = tmp_path_factory.mktemp("data")
    before = os.environ.get("DIFFCLIP_DATA")
    os.environ["DIFFCLIP_DATA"] = str(root)
    yield root
    if before is None:
        del os.environ["DIFFCLIP_DATA"]
    else:
        os.environ["DIFFCLIP_DATA"] = before


@pytest.fixture
def make_notebook():
    """make_notebook(path, *cells): write an unexecuted notebook whose first cell holds the parameters.

    A cell is its source, or (source, tag, ...).
    """
    import nbformat

    def make(path, *cells, parameters='scale = "mini"'):
        new = nbformat.v4.new_code_cell
        notebook = nbformat.v4.new_notebook(cells=[new(parameters, metadata={"tags": ["parameters"]})])
        for cell in cells:
            source, *tags = (cell,) if isinstance(cell, str) else cell
            notebook.cells.append(new(source, metadata={"tags": tags} if tags else {}))
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return make
