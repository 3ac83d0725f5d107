"""Files from the Hugging Face hub, through huggingface_hub, with errors that say what to do.

Everything is pinned and cached as huggingface_hub does it: a revision is a branch, a tag or a commit; HF_HOME (or
HF_HUB_CACHE) says where the cache is, HF_ENDPOINT which hub, HF_HUB_OFFLINE=1 that nothing may be fetched. What is
added here: a download that broke off is tried again, a large file is compared with the hub's SHA-256 once after it
came, and where a file cannot be had the error names it, the command that fetches it, and the folder it belongs in.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants, errors

log = logging.getLogger("diffclip")
T = TypeVar("T")

ATTEMPTS = 4
PAUSE_S = 1.0  # before the second attempt, doubled each time
# The HTTP library's base class differs between versions of huggingface_hub; its own errors derive from it in each.
_NETWORK_ERRORS = (errors.HfHubHTTPError.__bases__[0], OSError)
_FINAL_STATUS = (401, 403, 404)  # asking again does not help


class HubError(RuntimeError):
    """Something of the hub that cannot be had; the message says how to get it and where to put it."""


@dataclass(frozen=True)
class HubFile:
    path: str
    size: int  # bytes
    identity: str  # SHA-256 of a large file, git's id of a small one


def is_repo_id(text: str) -> bool:
    """Whether the text has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def is_offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE)


def cached(repo_id: str, filename: str, revision: str | None = None, repo_type: str = "model") -> Path | None:
    """The file if it is in the cache already; nothing is asked of the network."""
    found = huggingface_hub.try_to_load_from_cache(
        repo_id, filename, cache_dir=constants.HF_HUB_CACHE, revision=revision, repo_type=repo_type
    )
    return Path(found) if isinstance(found, str) else None


def fetch(
    repo_id: str,
    filename: str,
    revision: str | None = None,
    repo_type: str = "model",
    *,
    folder: Path | None = None,
) -> Path:
    """One file of a repository, from the cache or the network.

    repo_type: "model" or "dataset". revision: branch, tag or commit; None is the main branch.
    folder: put the file there instead of into the cache.
    Raises HubError if it cannot be had.
    """
    was_cached = folder is None and cached(repo_id, filename, revision, repo_type)
    where = {"local_dir": folder} if folder is not None else {"cache_dir": constants.HF_HUB_CACHE}

    def download() -> Path:
        path = Path(huggingface_hub.hf_hub_download(repo_id, filename, revision=revision, repo_type=repo_type, **where))
        if not was_cached:
            _check_hash(path)
        return path

    return _attempt(download, _Wanted(repo_id, repo_type, revision, filename))


def snapshot(
    repo_id: str, revision: str | None = None, repo_type: str = "model", patterns: list[str] | None = None
) -> Path:
    """A whole repository, or those of its files that match one of the patterns; the folder it lies in.

    Offline the cache's folder is taken as it is, unless an earlier listing shows that something is missing.
    Raises HubError if it cannot be had.
    """

    def download() -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                repo_type=repo_type,
                allow_patterns=patterns,
                cache_dir=constants.HF_HUB_CACHE,
            )
        )

    return _attempt(download, _Wanted(repo_id, repo_type, revision, patterns=tuple(patterns or ())))


def list_files(repo_id: str, revision: str | None = None, repo_type: str = "model") -> tuple[str, list[HubFile]]:
    """The commit that a revision stands for, and its files in the order of their paths.

    Offline, or with no network, those files that the cache holds of it. Raises HubError if there are none.
    """

    def listing() -> tuple[str, list[HubFile]]:
        api = huggingface_hub.HfApi()
        commit = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
        entries = api.list_repo_tree(repo_id, revision=commit, repo_type=repo_type, recursive=True)
        files = [e for e in entries if isinstance(e, huggingface_hub.hf_api.RepoFile)]
        return commit, [HubFile(f.path, f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in files]

    wanted = _Wanted(repo_id, repo_type, revision)
    try:
        commit, files = _attempt(listing, wanted, attempts=1)  # huggingface_hub itself asks again
    except HubError:
        commit, files = _cached_files(wanted)
        if not files:
            raise
        log.warning("%s cannot be asked: taking the %d files of it in the cache (%.12s)", repo_id, len(files), commit)
    return commit, sorted(files, key=lambda f: f.path)


def commit_of(path: str | Path) -> str | None:
    """The commit a file in the cache belongs to, for the record of where a result came from."""
    match = re.search(r"/snapshots/([0-9a-f]{40})(/|$)", Path(path).as_posix())
    return match and match.group(1)


@dataclass(frozen=True)
class _Wanted:
    repo: str
    repo_type: str
    revision: str | None
    file: str | None = None
    patterns: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = "data set" if self.repo_type == "dataset" else self.repo_type
        return f"{self.file or 'The content'} of the {kind} repository {self.repo} (revision {self.revision or 'main'})"

    @property
    def cache_name(self) -> str:
        return f"{self.repo_type}s--{self.repo.replace('/', '--')}"

    def how_to_get(self) -> str:
        command = ["hf", "download", self.repo, *([self.file] if self.file else [])]
        command += [part for pattern in self.patterns for part in ("--include", pattern)]
        command += ["--repo-type", self.repo_type] if self.repo_type != "model" else []
        command += ["--revision", self.revision] if self.revision else []
        return (
            f"On a machine with a network run\n    {shlex.join(command)}\nand copy the folder {self.cache_name} from "
            f"its cache (by default ~/.cache/huggingface/hub) into\n    {constants.HF_HUB_CACHE}\n"
            f"here. The cache's place follows HF_HOME; a local path may also be given instead of the repository."
        )


def _attempt(action: Callable[[], T], wanted: _Wanted, attempts: int = ATTEMPTS) -> T:
    """Run a download, again where it broke off, and turn what is final into a HubError."""
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except errors.GatedRepoError as error:
            raise HubError(
                f"{wanted} is behind a form: accept its terms on {constants.ENDPOINT}/{wanted.repo}, then log in here "
                f"with `hf auth login`."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(
                f"{constants.ENDPOINT} knows no {wanted.repo_type} repository {wanted.repo}, or it is private. Check "
                f"the name; for a private one log in with `hf auth login`."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise HubError(
                f"{wanted.repo} has no revision {wanted.revision!r}: a branch, tag or commit of it."
            ) from error
        except errors.LocalEntryNotFoundError as error:
            if is_offline():
                reason = "HF_HUB_OFFLINE forbids fetching it"
            else:  # huggingface_hub has asked several times by now
                reason = (
                    f"the hub at {constants.ENDPOINT} could not be reached ({_first_line(error.__cause__ or error)})"
                )
            raise HubError(f"{wanted} is not on this machine, and {reason}. {wanted.how_to_get()}") from error
        except errors.EntryNotFoundError as error:
            raise HubError(f"{wanted} does not exist: the repository has no such file.") from error
        except errors.OfflineModeIsEnabled as error:
            raise HubError(
                f"{wanted} is not on this machine, and HF_HUB_OFFLINE forbids fetching it. {wanted.how_to_get()}"
            ) from error
        except _NETWORK_ERRORS as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise  # the disk, not the network
            if attempt < attempts and _may_pass(error):
                log.warning("%s: %s; trying again (%d of %d)", wanted, _first_line(error), attempt + 1, attempts)
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
                continue
            raise HubError(
                f"{wanted} could not be fetched from {constants.ENDPOINT}: {_first_line(error)}. {wanted.how_to_get()}"
            ) from error


def _may_pass(error: BaseException | None) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status not in _FINAL_STATUS


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_hash(path: Path) -> None:
    """Large files lie in the cache under their SHA-256; huggingface_hub itself compares only the size."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        with open(blob, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == blob.name:
                return
        blob.unlink()
        path.unlink(missing_ok=True)
        raise OSError(f"{path.name} came damaged: its SHA-256 is not the hub's")


def _cached_files(wanted: _Wanted) -> tuple[str, list[HubFile]]:
    """What the cache holds of a revision: by its name if that is on record, else (fetched by commit) the newest."""
    store = Path(constants.HF_HUB_CACHE) / wanted.cache_name
    reference = store / "refs" / (wanted.revision or "main")
    roots = [
        store / "snapshots" / (reference.read_text().strip() if reference.is_file() else wanted.revision or "main")
    ]
    if wanted.revision is None:
        roots += sorted(store.glob("snapshots/*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for root in roots:
        if paths := [p for p in root.rglob("*") if p.is_file()]:
            sizes = [HubFile(p.relative_to(root).as_posix(), p.stat().st_size, p.resolve().name) for p in paths]
            return root.name, sizes
    return "", []
