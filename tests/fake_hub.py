"""A small Hugging Face hub on this machine: as much of its API as uploading and fetching a model needs.

Repositories live in memory. `.safetensors` go through the LFS protocol, as on the real hub; Xet is not spoken.
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

    Whoever has the token TOKEN is the user `me`. `broken` is a status that every upload of a file is answered with.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS content by its SHA-256
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
            self.route()
        except RefusedError as refused:
            status, message, *kind = refused.args
            code = {"X-Error-Code": kind[0] if kind else "RepoNotFound"} if status == 404 else {}
            self.send(json.dumps({"error": message}).encode(), status, {"X-Error-Message": message, **code})

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 (the names that http.server calls)

    def route(self) -> None:
        match self.command, *self.parts:
            case "POST", "api", "repos", "create":
                self.create()
            case "POST", "api", "validate-yaml":
                self.send_json({"errors": [], "warnings": []})
            case "GET", "api", "models", user, name, *revision if revision in ([], ["revision", "main"]):
                self.describe(f"{user}/{name}")
            case "GET", "api", "models", user, name, "tree", _:
                self.list(self.readable(f"{user}/{name}"))
            case "POST", "api", "models", user, name, "preupload", "main":
                self.plan(self.writable(f"{user}/{name}"))
            case "POST", user, name, "info", "lfs", "objects", "batch":
                self.offer(self.writable(f"{user}/{name.removesuffix('.git')}"))
            case "PUT", "lfs", oid:
                self.receive(oid)
            case "POST", "api", "models", user, name, "commit", "main":
                self.commit(f"{user}/{name}")
            case "GET" | "HEAD", user, name, "resolve", _, *path:
                self.hand_out(self.readable(f"{user}/{name}"), "/".join(path))
            case _:
                raise RefusedError(501, f"the fake hub does not know {self.command} {self.path}")

    # Who may do what

    def is_me(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return token == TOKEN

    def readable(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self.is_me()):
            raise RefusedError(404 if self.is_me() else 401, "Repository not found")
        return repository

    def writable(self, repo_id: str) -> Repository:
        self.check_writer(repo_id.split("/")[0])
        return self.readable(repo_id)

    def check_writer(self, user: str) -> None:
        if not self.is_me():
            raise RefusedError(401, "Invalid username or password.")
        if user != "me":
            raise RefusedError(403, f'You don\'t have the rights to create a model under the namespace "{user}"')

    # Answers

    def create(self) -> None:
        asked = json.loads(self.body)
        user, repo_id = asked["organization"], f"{asked['organization']}/{asked['name']}"
        self.check_writer(user)
        if repo_id in self.hub.repositories:
            return self.send_json({"error": "exists", "url": f"{self.hub.address}/{repo_id}"}, 409)
        self.hub.repositories[repo_id] = Repository(asked["visibility"] == "private")
        return self.send_json({"url": f"{self.hub.address}/{repo_id}"})

    def describe(self, repo_id: str) -> None:
        found = self.readable(repo_id)
        siblings = [{"rfilename": name} for name in found.files]
        self.send_json({"id": repo_id, "private": found.private, "sha": found.sha, "siblings": siblings, "tags": []})

    def list(self, repository: Repository) -> None:
        files = repository.files.items()
        self.send_json(
            [{"type": "file", "path": name, "size": len(data), "oid": git_oid(data)} for name, data in files]
        )

    def plan(self, repository: Repository) -> None:
        def planned(path: str) -> dict:
            there = git_oid(repository.files[path]) if path in repository.files else None
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there}

        self.send_json({"files": [planned(file["path"]) for file in json.loads(self.body)["files"]]})

    def offer(self, repository: Repository) -> None:
        asked = json.loads(self.body)["objects"]
        upload = {o["oid"]: {"upload": {"href": f"{self.hub.address}/lfs/{o['oid']}"}} for o in asked}
        objects = [{**o, **({} if o["oid"] in self.hub.objects else {"actions": upload[o["oid"]]})} for o in asked]
        self.send_json({"transfer": "basic", "objects": objects})

    def receive(self, oid: str) -> None:
        if self.hub.broken:
            raise RefusedError(self.hub.broken, "no room left")
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.send(b"")

    def commit(self, repo_id: str) -> None:
        repository = self.writable(repo_id)
        for line in self.body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "header":
                repository.commits.append(value["summary"])
            elif change["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            elif change["key"] == "deletedFile":
                del repository.files[value["path"]]
        self.send_json(
            {"commitUrl": f"{self.hub.address}/{repo_id}/commit/{repository.sha}", "commitOid": repository.sha}
        )

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
