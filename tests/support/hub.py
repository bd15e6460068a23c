"""A small hub on this machine that speaks as much of the Hub's protocol as an upload needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


@dataclass
class Hub:
    """What was sent to the hub."""

    address: str
    repositories: dict[str, bool] = field(default_factory=dict)  # name -> private
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> path -> bytes
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)  # SHA-256 -> bytes


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub that knows one token, :data:`TOKEN`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repository, _, what = (
            self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        )
        del what
        if "/preupload/" in self.path:
            return self._preupload(json.loads(body))
        if "/commit/" in self.path:
            return self._commit(repository, body)
        return self._answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.large[hashlib.sha256(body).hexdigest()] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(404, {"error": self.path})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        if asked["organization"] == "locked":
            return self._answer(403, {"error": "You don't have the rights"})
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[name] = bool(private)
        return self._answer(200, {"url": url, "name": name})

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._answer(200, {"files": files, "commitOid": "0" * 40})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, body: bytes) -> None:
        files = self.hub.files.setdefault(repository, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.address}/{repository}/commit/{'1' * 40}"
        self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
