"""A small Hub on this machine: models with commits, ranges, tokens, uploads; and misbehaviour.

It speaks what `huggingface_hub` and mergewise ask for, over HTTP, and counts what it serves.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecret"


@dataclass
class Model:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        marks = sorted((n, hashlib.sha256(d).hexdigest()) for n, d in files.items())
        sha = hashlib.sha1(json.dumps([*marks, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


class Hub:
    """The state; tests read what was served, and set what goes wrong.

    Attributes:
        served: bytes of each file's body that were sent.
        tokens: hosts that were sent a token.
        listing: changes the answer about a model.
        answer: called with (handler, model, commit, path) for each file; True if it answered.
    """

    def __init__(self, large: int = 4096) -> None:
        self.models: dict[str, Model] = {}
        self.served: Counter[str] = Counter()
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.listing = lambda told: told
        self.answer = lambda handler, model, commit, path: False
        self.api = lambda handler: False
        self.pause = lambda path, sent: None
        self.large = large
        self.created: list[dict] = []
        self.url = self.elsewhere = ""

    def add(self, name: str, folder: Path | dict[str, bytes], **options) -> str:
        files = folder if isinstance(folder, dict) else read_folder(folder)
        ref = options.pop("ref", "main")
        model = self.models.setdefault(name, Model())
        for key, value in options.items():
            setattr(model, key, value)
        return model.commit(files, ref)


def read_folder(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@contextmanager
def serving(hub: Hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    port = server.server_address[1]
    hub.url, hub.elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path_only}")
        if self.headers.get("Authorization"):
            self.hub.tokens.add(self.headers["Host"].split(":")[0])
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.path_only)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", self.path_only)
        cdn = re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", self.path_only)
        if api and not self.hub.api(self):
            self.info(api[1], api[2] or "main")
        elif file:
            self.file(*file.groups())
        elif cdn:
            self.body(self.hub.models[cdn[1]], cdn[2], cdn[3])
        elif not api:
            self.error(404, "Nothing")

    def do_POST(self):
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {self.path_only}")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.api(self):
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.error(401, "", "Invalid credentials in Authorization header")
        elif self.path_only == "/api/repos/create":
            self.create(json.loads(data))
        elif self.path_only == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path_only:
            files = json.loads(data)["files"]
            self.json({"files": [{"path": f["path"], "uploadMode": "regular",
                                  "shouldIgnore": False} for f in files]})  # fmt: skip
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.path_only):
            self.commit(match[1], data)
        else:
            self.error(404, "Nothing")

    def create(self, asked):
        name = (
            f"{asked['organization']}/{asked['name']}"
            if asked.get("organization")
            else asked["name"]
        )
        self.hub.created.append(asked)
        self.hub.models.setdefault(name, Model(private=bool(asked.get("private"))))
        self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def commit(self, name, data):
        model = self.hub.models[name]
        files = dict(model.commits.get(model.refs.get("main", ""), {}))
        for line in data.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        sha = model.commit(files)
        self.json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}
        )

    def allowed(self, name) -> Model | None:
        given = self.headers.get("Authorization")
        model = self.hub.models.get(name)
        if given and given != f"Bearer {TOKEN}":
            self.error(401, "", "Invalid credentials in Authorization header")
        elif model is None or (model.private and not given):
            self.error(401 if not given else 404, "RepoNotFound", "Repository not found")
        elif model.gated and not given:
            self.error(403, "GatedRepo", "Access to this model is restricted")
        else:
            return model
        return None

    def info(self, name, revision):
        model = self.allowed(name)
        if model is None:
            return
        sha = model.refs.get(revision, revision)
        if sha not in model.commits:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [self.sibling(n, d) for n, d in model.commits[sha].items()]
        told = {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "tags": [],
                "private": model.private, "downloads": 0, "likes": 0}  # fmt: skip
        self.json(self.hub.listing(told))

    def sibling(self, name, data):
        told = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if len(data) > self.hub.large:
            mark = hashlib.sha256(data).hexdigest()
            told["lfs"] = {"sha256": mark, "size": len(data), "pointerSize": 134}
        return told

    def file(self, name, revision, path):
        model = self.allowed(name)
        if model is None:
            return
        sha = model.refs.get(revision, revision)
        files = model.commits.get(sha)
        if files is None:
            self.error(404, "RevisionNotFound", "no such revision")
        elif path not in files:
            self.error(404, "EntryNotFound", "no such file")
        elif not self.hub.answer(self, model, sha, path):
            self.honest(name, model, sha, path)

    def honest(self, name, model, sha, path, **changed):
        data = model.commits[sha][path]
        head = {"X-Repo-Commit": sha, "ETag": f'"{mark(data, self.hub.large)}"'}
        if len(data) > self.hub.large:  # as the Hub does: to another host, without the token
            head |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": head["ETag"],
                     "Location": f"{self.hub.elsewhere}/cdn/{name}/{sha}/{path}"}  # fmt: skip
            self.send(302, b"", head | changed)
        else:
            self.body(model, sha, path, **changed)

    def body(self, model, sha, path, **changed):
        data = model.commits[sha][path]
        head = {"X-Repo-Commit": sha, "ETag": f'"{mark(data, self.hub.large)}"',
                "Accept-Ranges": "bytes"}  # fmt: skip
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self.send(200, data, head | changed, path)
            return
        start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        head["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.send(206, data[start : end + 1], head | changed, path)

    def send(self, status, data, head, path=""):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | head).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(data), 1 << 16):
            if path:
                self.hub.pause(path, at)
                self.hub.served[path] += len(data[at : at + (1 << 16)])
            try:
                self.wfile.write(data[at : at + (1 << 16)])
            except OSError:
                self.close_connection = True
                return

    def json(self, value, status=200):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status, code, message=""):
        head = {"X-Error-Code": code, "X-Error-Message": message or code}
        body = json.dumps({"error": message or code}).encode()
        self.send(status, body, head | {"Content-Type": "application/json"})


def mark(data: bytes, large: int) -> str:
    return (hashlib.sha256 if len(data) > large else hashlib.sha1)(data).hexdigest()
