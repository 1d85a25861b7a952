"""A W&B backend on 127.0.0.1 that says yes and records what arrives, or fails as told: enough for
online runs and `wandb sync` of `wandb` 0.31 in tests. Standard library only."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ENTITY = "team"
Fault = int | str
"""An HTTP status, `hang` (no answer) or `close` (the connection ends without one)."""


@dataclass
class RecordedRun:
    """What one run has sent."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    num_upserts: int = 0


class WandbEndpoint:
    """Use as a context manager; `url` goes to WANDB_BASE_URL.

    `faults`: what happens to requests whose path contains the key (`/graphql`, `/file_stream`).
    `deleted`: ids of runs that were deleted; W&B never takes such an id again."""

    def __init__(self, faults: Mapping[str, Fault] | None = None) -> None:
        self.faults: dict[str, Fault] = dict(faults or {})
        self.deleted: set[str] = set()
        self.runs: dict[str, RecordedRun] = {}
        self.bodies: list[bytes] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def fault(self, path: str) -> Fault | None:
        return next((fault for part, fault in self.faults.items() if part in path), None)

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation.group(1) if operation else ""
        if name == "RunResumeStatus":
            known = self.runs.get(variables["name"])
            bucket = self._bucket(variables["name"]) if known else None
            return {"model": {"id": "P", "name": "p", "entity": _ENTITY, "bucket": bucket}}
        if name == "CreateRunFiles":
            files = [
                {"name": file, "uploadUrl": f"{self.url}/upload/{file}"}
                for file in variables["files"]
            ]
            return {
                "createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}
            }
        if "serverInfo" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9.9.9"}}}
        if "viewer" in query.lower():
            return {"viewer": {"id": "U", "entity": ENTITY, "username": "u", "flags": "{}"}}
        return {}

    def stream(self, run_id: str, document: dict[str, Any]) -> None:
        """File-stream chunks replace the lines from their offset on, as the real one does."""
        run = self.runs.setdefault(run_id, RecordedRun())
        chunk = document.get("files", {}).get("wandb-history.jsonl")
        if chunk:
            start = chunk["offset"]
            rows = [json.loads(line) for line in chunk["content"]]
            run.history[start : start + len(rows)] = rows
        summary = document.get("files", {}).get("wandb-summary.json")
        if summary:
            run.summary.update(json.loads(summary["content"][-1]))
        if document.get("complete"):
            run.exit_code = document.get("exitcode")

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], RecordedRun())
        run.num_upserts += 1
        run.settings.update({k: v for k, v in variables.items() if v is not None})
        for key, value in json.loads(variables.get("config") or "{}").items():
            run.config[key] = value.get("value") if isinstance(value, dict) else value
        return self._bucket(variables["name"])

    def _bucket(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        tail = [json.dumps(row) for row in run.history[-1:]]
        return {
            "id": f"B-{run_id}",
            "name": run_id,
            "displayName": run_id,
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": "P", "name": "p", "entity": _ENTITY},
        }


_ENTITY = {"id": "E", "name": ENTITY}


def _deleted(run_id: str) -> dict[str, Any]:
    text = f"run {run_id} was previously created and deleted; try a new run name (Error 409)"
    return {"data": {"upsertBucket": None}, "errors": [{"message": text}]}


def _handler(endpoint: WandbEndpoint) -> type[BaseHTTPRequestHandler]:  # noqa: C901  one class
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer({})

        def do_PUT(self) -> None:
            endpoint.bodies.append(self._body())
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            endpoint.bodies.append(body)
            if (fault := endpoint.fault(self.path)) is not None:
                self._fail(fault)
            elif self.path.startswith("/graphql"):
                document = json.loads(body)
                variables = document.get("variables") or {}
                query = document.get("query", "")
                if "upsertBucket" in query and variables["name"] in endpoint.deleted:
                    self._answer(_deleted(variables["name"]), status=409)
                else:
                    self._answer({"data": endpoint.graphql(query, variables)})
            elif self.path.endswith("/file_stream"):
                endpoint.stream(self.path.split("/")[-2], json.loads(body))
                self._answer({"exitcode": None, "limits": {}})
            else:
                self._answer({})

        def _body(self) -> bytes:
            return _read_body(self)

        def _fail(self, fault: Fault) -> None:
            if fault == "hang":
                while endpoint.fault(self.path) == fault:
                    time.sleep(0.05)
            if isinstance(fault, int):
                self._answer({"errors": [{"message": f"failing with {fault}"}]}, status=fault)
            else:
                self.close_connection = True

        def _answer(self, document: dict[str, Any], *, status: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _read_body(request: BaseHTTPRequestHandler) -> bytes:
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        body = b""
        while size := int(request.rfile.readline().strip() or b"0", 16):
            body += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    else:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    zipped = request.headers.get("Content-Encoding") == "gzip"
    return gzip.decompress(body) if zipped else body
