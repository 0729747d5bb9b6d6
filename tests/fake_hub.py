"""A small Hugging Face hub on this machine: as much of its API as uploading and fetching a model needs.

Repositories live in memory. All files are sent within the commit; neither LFS nor Xet is spoken.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)  # their messages

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class FakeHub:
    """`repositories` {id: Repository}; `requests` are the lines of all that were made.

    Every token but TOKEN is refused. `broken` is a status that every commit is answered with.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.broken = 0
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class RefusedError(Exception):
    """(status, what the hub says about it, maybe its name for the kind of 404)."""


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            if self.headers.get("Authorization", "") not in ("", f"Bearer {TOKEN}"):
                raise RefusedError(401, "Invalid credentials in Authorization header")
            self.route()
        except RefusedError as refused:
            status, message, *kind = refused.args
            code = {"X-Error-Code": kind[0] if kind else "RepoNotFound"} if status == 404 else {}
            self.send(json.dumps({"error": message}).encode(), status, {"X-Error-Message": message, **code})

    do_GET = do_HEAD = do_POST = answer  # noqa: N815 (the names that http.server calls)

    def route(self) -> None:
        match self.command, *self.parts:
            case "POST", "api", "repos", "create":
                self.create()
            case "POST", "api", "validate-yaml":
                self.send_json({"errors": [], "warnings": []})
            case "GET", "api", "models", user, name, *revision if revision in ([], ["revision", "main"]):
                self.describe(f"{user}/{name}")
            case "GET", "api", "models", user, name, "tree", _:
                self.list(self.repository(f"{user}/{name}"))
            case "POST", "api", "models", user, name, "preupload", "main":
                self.plan(self.repository(f"{user}/{name}"))
            case "POST", "api", "models", user, name, "commit", "main":
                self.commit(f"{user}/{name}")
            case "GET" | "HEAD", user, name, "resolve", _, *path:
                self.hand_out(self.repository(f"{user}/{name}"), "/".join(path))
            case _:
                raise RefusedError(501, f"the fake hub does not know {self.command} {self.path}")

    def repository(self, repo_id: str) -> Repository:
        if repo_id not in self.hub.repositories:
            raise RefusedError(404, "Repository not found")
        return self.hub.repositories[repo_id]

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.hub.repositories:
            return self.send_json({"error": "exists", "url": f"{self.hub.address}/{repo_id}"}, 409)
        self.hub.repositories[repo_id] = Repository(asked["visibility"] == "private")
        return self.send_json({"url": f"{self.hub.address}/{repo_id}"})

    def describe(self, repo_id: str) -> None:
        found = self.repository(repo_id)
        siblings = [{"rfilename": name} for name in found.files]
        self.send_json({"id": repo_id, "private": found.private, "sha": found.sha, "siblings": siblings, "tags": []})

    def list(self, repository: Repository) -> None:
        files = [{"path": path, "size": len(data), "oid": git_oid(data)} for path, data in repository.files.items()]
        self.send_json([{"type": "file", **file} for file in files])

    def plan(self, repository: Repository) -> None:
        def planned(path: str) -> dict:
            there = git_oid(repository.files[path]) if path in repository.files else None
            return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": there}

        self.send_json({"files": [planned(file["path"]) for file in json.loads(self.body)["files"]]})

    def commit(self, repo_id: str) -> None:
        repository = self.repository(repo_id)
        if self.hub.broken:
            raise RefusedError(self.hub.broken, "no room left")
        for line in self.body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "header":
                repository.commits.append(value["summary"])
            elif change["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "deletedFile":
                del repository.files[value["path"]]
        address = f"{self.hub.address}/{repo_id}/commit/{repository.sha}"
        self.send_json({"commitUrl": address, "commitOid": repository.sha})

    def hand_out(self, repository: Repository, path: str) -> None:
        if path not in repository.files:
            raise RefusedError(404, "no such file", "EntryNotFound")
        data = repository.files[path]
        self.send(data, headers={"ETag": f'"{git_oid(data)}"', "X-Repo-Commit": repository.sha})

    def send_json(self, value, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def send(self, data: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Not on the tests' output."""


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
