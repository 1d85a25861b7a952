"""A stand-in for the Hugging Face hub on this machine: data sets at commits, over HTTP.

It answers what `datasets` and `huggingface_hub` ask of the real one to stream a data set: the
repository at a commit, its tree, metadata of paths, and files with ranges. Point `HF_ENDPOINT` at
`url` in a new process.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Commits = Mapping[str, Mapping[str, bytes]]
"""Files by commit."""

_API = re.compile(r"^/api/datasets/(?P<repo>[^/]+/[^/]+)(?P<rest>/.*)?$")
_FILE = re.compile(r"^/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>[^/]+)/(?P<path>.+)$")


@contextmanager
def hub_server(repos: Mapping[str, Commits]) -> Iterator[str]:
    """Serve `repos` (by `ORG/NAME`) and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repos))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(repos: Mapping[str, Commits]) -> type[BaseHTTPRequestHandler]:
    class Handler(_Hub):
        known = repos

    return Handler


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    known: Mapping[str, Commits] = {}

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        if found := _FILE.match(path):
            self._file(found["repo"], found["commit"], found["path"])
        elif found := _API.match(path):
            self._api(found["repo"], found["rest"] or "")
        else:
            self._refuse(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body).get("paths", [])
        found = _API.match(unquote(urlsplit(self.path).path))
        assert found is not None
        files = self._commit(found["repo"], (found["rest"] or "").split("/")[-1])
        if files is not None:
            entries = [entry for entry in _tree(files) if entry["path"] in wanted]
            self._json(entries)

    def _api(self, repo: str, rest: str) -> None:
        parts = rest.strip("/").split("/")
        if parts[0] == "tree":
            files = self._commit(repo, parts[1])
            if files is not None:
                below = "/".join(parts[2:])
                tree = [entry for entry in _tree(files) if str(entry["path"]).startswith(below)]
                self._json(tree) if tree else self._refuse(404, "EntryNotFound")
            return
        commit = parts[1] if parts[0] == "revision" else next(iter(self.known.get(repo, {"": {}})))
        files = self._commit(repo, commit)
        if files is not None:
            names = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": commit, "siblings": names, "private": False, "tags": []})

    def _file(self, repo: str, commit: str, path: str) -> None:
        files = self._commit(repo, commit)
        if files is None:
            return
        if path not in files:
            self._refuse(404, "EntryNotFound")
            return
        content = files[path]
        etag = hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, content, headers)
            return
        start = int(asked[1])
        end = min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers)

    def _commit(self, repo: str, commit: str) -> Mapping[str, bytes] | None:
        """Its files; None when it is not there, which is answered here."""
        if repo not in self.known:
            self._refuse(404, "RepoNotFound")
            return None
        if commit not in self.known[repo]:
            self._refuse(404, "RevisionNotFound")
            return None
        return self.known[repo][commit]

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        return


def _tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    folders = sorted({name.rsplit("/", 1)[0] for name in files if "/" in name})
    entries: list[dict[str, object]] = [
        {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders
    ]
    for name, content in files.items():
        oid = hashlib.sha1(content).hexdigest()
        entries.append({"type": "file", "path": name, "oid": oid, "size": len(content)})
    return entries
