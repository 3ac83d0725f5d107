"""What a run leaves on disk, safe against being killed at any moment, a full disk and a second trainer.

config.json          what the run is, and under "sessions" on which machine each stretch of it was computed
metrics.csv          one row every so many steps
state/latest.pt      everything needed to go on; replaced whole, gone once the run is finished
model.safetensors    the trained model, there only when the run is finished
tensorboard/         the same numbers for TensorBoard
.lock                held by the process that trains here
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from diffclip.files import write_text, written_whole
from diffclip.model import WEIGHTS_NAME

try:
    import fcntl
except ImportError:  # Windows; there, nothing keeps two trainings apart
    fcntl = None

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_locked_here: set[Path] = set()  # POSIX locks do not keep two trainings of one process apart; this does


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why, what is on disk and what to do."""


class RunFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.csv"
        self.state_path = self.path / "state" / "latest.pt"
        self.weights_path = self.path / WEIGHTS_NAME

    @property
    def finished(self) -> bool:
        return self.weights_path.is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other training out of this folder until the block, or the process, ends. TrainingError if one is in.

        An fcntl record lock: it ends with the process that took it, however that dies, and children (loading workers)
        do not inherit it.
        """
        path = self.path.resolve()
        if path in _locked_here:
            raise TrainingError(self._busy("this same process"))
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a+", encoding="utf-8") as file:
            if fcntl is not None:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                    file.seek(0)
                    raise TrainingError(self._busy(file.read().strip() or "another process")) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            _locked_here.add(path)
            try:
                yield
            finally:
                _locked_here.discard(path)

    def _busy(self, by: str) -> str:
        return (
            f"Another training is running in {self.path} ({by}). Two trainings would overwrite each other's checkpoints: "
            f"wait until it has ended, stop it, or train into another folder."
        )

    def sweep(self) -> None:
        """Remove what a run that was killed left half written, or too late to be of use (call under the lock)."""
        for folder, pattern in ((self.path, ".model.*"), (self.path, ".config.*"), (self.path, ".metrics.*")):
            for leftover in folder.glob(pattern):
                leftover.unlink()
        for leftover in self.state_path.parent.glob(".latest.*"):
            leftover.unlink()
        if self.finished:
            self.remove_state()

    def read_config(self) -> dict | None:
        """The contents of config.json; None if there is none."""
        try:
            return json.loads(self.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise TrainingError(
                f"{self.config_path} is not readable as JSON ({error}); restore or delete the run."
            ) from None

    def write_config(self, config: dict) -> None:
        with self.explains_a_full_disk():
            write_text(self.config_path, json.dumps(config, indent=1) + "\n")

    def write_state(self, state: dict) -> None:
        """Replace the state by this one. Until the new one is whole and on the disk, the previous one stays."""
        with (
            self.explains_a_full_disk(),
            written_whole(self.state_path) as temporary,
            open(temporary, "wb") as file,
        ):
            torch.save(state, file)

    def read_state(self) -> dict | None:
        """The last state written, on the CPU; None if there is none. TrainingError if it is damaged."""
        if not self.state_path.is_file():
            return None
        try:
            return torch.load(self.state_path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise TrainingError(
                f"The state in {self.state_path} is damaged and cannot be resumed ({reason}). "
                f"Restore it from a copy, or delete {self.path} to train this run from its beginning."
            ) from None

    def remove_state(self) -> None:
        shutil.rmtree(self.state_path.parent, ignore_errors=True)

    def metrics(self, columns: list[str], *, steps: int) -> Metrics:
        return Metrics(self, columns, steps=steps)

    @contextmanager
    def explains_a_full_disk(self) -> Iterator[None]:
        """Turn the many faces of "no space left" into one sentence."""
        try:
            yield
        except Exception as error:
            if not _is_disk_full(error):
                raise
            kept = (
                f"The previous state in {self.state_path} is whole"
                if self.state_path.is_file()
                else "No state was kept"
            )
            free = shutil.disk_usage(self.path).free
            raise TrainingError(
                f"The disk is full: {self.path} could not be written ({free / 1e6:,.0f} MB free there). {kept}. Free some "
                f"space and start the same command again; it goes on from there."
            ) from error


def _is_disk_full(error: BaseException | None) -> bool:
    # torch.save reports its own confusion and carries the reason as context; safetensors has it only in its text.
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(f"(os error {code})" in str(error) for code in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


class Metrics:
    """metrics.csv: rows are on disk as soon as they are appended."""

    def __init__(self, folder: RunFolder, columns: list[str], *, steps: int) -> None:
        """Keep the rows up to step `steps` of what a run that is resumed there left behind; drop what came after."""
        self.folder, self.columns = folder, columns
        kept = []
        if steps and folder.metrics_path.is_file():
            with open(folder.metrics_path, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if rows.fieldnames == columns:
                    kept = [row for row in rows if None not in row.values() and int(row["step"]) <= steps]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        with folder.explains_a_full_disk():
            write_text(folder.metrics_path, text.getvalue())
        self._file = open(folder.metrics_path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def append(self, row: dict) -> None:
        with self.folder.explains_a_full_disk():
            self._writer.writerow(row)
            self._file.flush()

    def sync(self) -> None:
        """To the disk itself, so that no state is ever ahead of its rows."""
        with self.folder.explains_a_full_disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
