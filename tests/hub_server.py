"""A small hub on loopback: repositories are folders, addresses and headers are those of the real one.

It serves what huggingface_hub and datasets ask for: repository info, tree listings, path infos, and files at
.../resolve/<revision>/<path>, small ones directly, large ones (here: anything from `large` bytes) by a redirect to a
store addressed by SHA-256, with range requests. Downloads can be cut off in the middle, politely or by a reset.

    with HubServer({"models/owner/name": folder, "datasets/owner/name": folder}) as server:
        os.environ["HF_ENDPOINT"] = server.url       # before huggingface_hub is imported, so usually for a subprocess
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Cut:
    """The next `times` answers with this file's content end after `after` bytes of what was asked for."""

    after: int
    times: int = 1
    reset: bool = False  # by a TCP reset instead of an orderly end


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None


class HubServer:
    def __init__(self, repositories: Mapping[str, Path], *, large: int = 100_000, gated: tuple[str, ...] = ()):
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.large, self.gated = large, gated
        self.cuts: dict[str, Cut] = {}  # by file name
        self.requests: list[Request] = []
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def store_url(self) -> str:
        """The same server under another host name: clients treat a redirect to another host differently."""
        return f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- what is known of a repository -------------------------------------------------------------------------------

    def files(self, repository: str) -> list[str]:
        folder = self.repositories[repository]
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def commit(self, repository: str) -> str:
        digest = hashlib.sha1()
        for name in self.files(repository):
            digest.update(name.encode() + self.content(repository, name))
        return digest.hexdigest()

    def content(self, repository: str, name: str) -> bytes:
        return (self.repositories[repository] / name).read_bytes()

    def entry(self, repository: str, name: str) -> dict:
        """One line of a tree listing."""
        content = self.content(repository, name)
        found = {"type": "file", "oid": _git_id(content), "size": len(content), "path": name}
        if len(content) >= self.large:
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return found

    def downloads(self, name: str) -> list[Request]:
        """The requests that asked for (a part of) this file's content."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith("/" + name)]


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may go away at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path).lstrip("/")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)(?:/(.*))?", path):
            self._api(match[1], match[2] or "", parse_qs(address.query), body)
        elif match := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve((match[1] or "models/") + match[2], match[3], match[4])
        elif match := re.fullmatch(r"store/([^/]+)/([^/]+)/([^/]+)/(.+)", path):
            self._content(self.hub.content("/".join(match.groups()[:3]), match[4]), match[4], {})
        else:
            self._error(404, None, f"no such address: {path}")

    def _known(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.repositories:
            self._error(404, "RepoNotFound", "Repository not found")
        elif repository in self.hub.gated:
            self._error(403, "GatedRepo", "Access to this repository is restricted")
        elif revision not in ("main", self.hub.commit(repository)):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _api(self, repository: str, rest: str, query: dict, body: bytes) -> None:
        what, _, rest = rest.partition("/")
        revision, _, folder = rest.partition("/")
        if what not in ("", "revision", "tree", "paths-info"):
            self._error(404, None, f"the test hub does not serve {what}")
        elif not self._known(repository, revision or "main"):
            pass
        elif what in ("", "revision"):
            name = repository.partition("/")[2]
            siblings = [{"rfilename": file} for file in self.hub.files(repository)]
            info = {"_id": "0", "id": name, "sha": self.hub.commit(repository), "siblings": siblings, "private": False}
            self._json(info | {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})
        elif what == "tree":
            files = [f for f in self.hub.files(repository) if not folder or f.startswith(folder + "/")]
            if folder and not files:
                self._error(404, "EntryNotFound", f"no folder {folder}")
            else:
                self._json(self._tree(repository, files, folder, query.get("recursive", [""])[0].lower() == "true"))
        else:
            form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            asked = form.get("paths", [])
            asked = [asked] if isinstance(asked, str) else asked
            files = self.hub.files(repository)
            found = [self.hub.entry(repository, f) for f in files if f in asked]
            folders = {p for p in asked if any(f.startswith(p.rstrip("/") + "/") for f in files)}
            self._json(found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in sorted(folders)])

    def _tree(self, repository: str, files: list[str], folder: str, recursive: bool) -> list[dict]:
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for file in files:
            parts = file[len(prefix) :].split("/")
            folders.update(
                prefix + "/".join(parts[:i]) for i in range(1, len(parts) if recursive else min(len(parts), 2))
            )
            if recursive or len(parts) == 1:
                entries.append(self.hub.entry(repository, file))
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in sorted(folders)] + entries

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if not self._known(repository, revision):
            return
        commit = {"X-Repo-Commit": self.hub.commit(repository)}
        if name not in self.hub.files(repository):
            self._error(404, "EntryNotFound", f"no file {name}", commit)
            return
        entry = self.hub.entry(repository, name)
        if "lfs" not in entry:
            self._content(self.hub.content(repository, name), name, commit | {"ETag": f'"{entry["oid"]}"'})
            return
        self.send_response(302)
        linked = {
            "X-Linked-Size": str(entry["size"]),
            "X-Linked-ETag": f'"{entry["lfs"]["oid"]}"',
            "Content-Length": "0",
        }
        for header, value in (
            commit | linked | {"Location": f"{self.hub.store_url}/store/{repository}/{name}"}
        ).items():
            self.send_header(header, value)
        self.end_headers()

    def _content(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        start, stop, status = 0, len(content), 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, status = int(match[1]), 206
            stop = min(int(match[2]) + 1, stop) if match[2] else stop
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        part = content[start:stop]
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(part)), "Accept-Ranges": "bytes"}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cuts.get(name)
        if cut and cut.times > 0 and cut.after < len(part):
            cut.times -= 1
            self.wfile.write(part[: cut.after])
            self.wfile.flush()
            if cut.reset:  # closing with nothing lingering sends a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(part)

    def _json(self, found: object) -> None:
        self._content(json.dumps(found).encode(), "", {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        for header, value in (extra | dict(headers or {})).items():
            self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
