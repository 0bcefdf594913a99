"""A stand-in for the Hub's HTTP interface: repositories, commits, large files and downloads, in memory.

Commits travel as one JSON value per line, large files by Git LFS's "basic" transfer, as the Hub's documents say.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
LARGE = (".safetensors", ".png")
TOKEN = "hf_of_the_tests"


class Hub(http.server.ThreadingHTTPServer):
    """`repositories`: what was created, by (type, name); `files`: their content, by (type, name) and path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], dict] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.cards: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def url(self, key: tuple[str, str]) -> str:
        return f"{self.address}/{'spaces/' if key[0] == 'space' else ''}{key[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer({"name": "user", "type": "user", "orgs": []}) if self.known() else self.refuse(401)
        if match := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)(/revision/\w+)?", path):
            files = self.server.files.get((match[1], match[2]))
            if files is None:
                return self.refuse(404, "RepoNotFound")
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": match[2], "sha": COMMIT, "siblings": siblings, "tags": []})
        if match := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/tree/\w+", path):
            return self.answer(self.tree((match[1], match[2])))
        if match := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            data = self.server.files[("space" if match[1] else "model", match[2])].get(match[3])
            return self.refuse(404, "EntryNotFound") if data is None else self.send(data)
        return self.refuse(404)

    do_HEAD = do_GET

    def tree(self, key: tuple[str, str]) -> list[dict]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
            for name, data in self.server.files[key].items()
        ]

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self.body()
        if not self.known():
            return self.refuse(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            key = (asked.get("type") or "model", f"{asked['organization']}/{asked['name']}")
            if key in self.server.repositories:
                return self.answer({"error": "You already created this repo", "url": self.server.url(key)}, 409)
            self.server.repositories[key] = asked
            self.server.files[key] = {}
            return self.answer({"url": self.server.url(key)})
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/(?:model|space)s/[^/]+/[^/]+/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.server.address}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/commit/main", path):
            return self.commit((match[1], match[2]), [json.loads(line) for line in body.splitlines() if line])
        return self.refuse(404)

    def do_PUT(self):
        oid, data = self.path.rpartition("/")[2], self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self.refuse(400)
        self.server.large[oid] = data
        return self.answer({})

    def commit(self, key: tuple[str, str], lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                self.server.files[key][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[key][value["path"]] = self.server.large[value["oid"]]
        self.answer({"success": True, "commitUrl": f"{self.server.url(key)}/commit/{COMMIT}", "commitOid": COMMIT})

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: dict | list, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), "application/json", status)

    def send(self, data: bytes, kind: str = "application/octet-stream", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty Hub inside a block."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server
        finally:
            server.shutdown()
