"""A stand-in for the Hugging Face Hub on loopback: enough of it to create, commit to and load a model."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import urlsplit

TOKEN = "hf_a_token_of_the_stand_in"
LFS = (".safetensors", ".png")


class StandInHub:
    """Repositories by name, each a list of commits (message and files), and what was asked for."""

    def __init__(self):
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def files(self, name: str) -> dict[str, bytes]:
        """Files of the last commit."""
        return self.repositories[name][-1][1]

    def revision(self, name: str) -> str:
        """Something like a commit's hash."""
        return hashlib.sha1(f"{name} {len(self.repositories[name])}".encode()).hexdigest()

    def create(self, name: str) -> bool:
        if name in self.repositories:
            return False
        self.repositories[name] = [("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})]
        return True

    def commit(self, name: str, lines: list[dict]) -> None:
        """Apply the lines of a commit."""
        files, message = dict(self.files(name)), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise NotImplementedError(line["key"])
        self.repositories[name].append((message, files))

    def tree(self, name: str) -> list[dict]:
        """What the Hub tells of each file."""
        entries = []
        for path, content in self.files(name).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *args):
        pass

    def _answer(self, content=b"", status: int = 200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _handle(self):
        path, body = urlsplit(self.path).path, self._body()
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, function in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                name = match.groupdict().get("name")
                if name is not None and name not in self.hub.repositories:
                    return self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
                return function(self, body, **match.groupdict())
        return self._answer({"error": f"the stand-in has no {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _authorised(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid username or password."}, 401)
        return False

    def create(self, body):
        if not self._authorised():
            return
        content = json.loads(body)
        name = f"{content['organization']}/{content['name']}"
        status = 200 if self.hub.create(name) else 409
        self._answer({"url": f"{self.hub.endpoint}/{name}", "name": name}, status)

    def validate(self, body):
        good = json.loads(body)["content"].startswith("---\n")
        self._answer({} if good else {"errors": [{"message": "no metadata"}]}, 200 if good else 400)

    def preupload(self, body, name):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS) else "regular" for path in files}
        self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, body, name):
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {key: {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"} for key in ("upload", "verify")}
            objects.append(item if item["oid"] in self.hub.objects else item | {"actions": actions})
        self._answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put(self, body, oid):
        good = hashlib.sha256(body).hexdigest() == oid
        if good:
            self.hub.objects[oid] = body
        self._answer(status=200 if good else 400)

    def verify(self, body, oid):
        self._answer(status=200 if len(self.hub.objects[oid]) == json.loads(body)["size"] else 400)

    def commit(self, body, name):
        if not self._authorised():
            return
        self.hub.commit(name, [json.loads(line) for line in body.splitlines() if line])
        revision = self.hub.revision(name)
        address = f"{self.hub.endpoint}/{name}/commit/{revision}"
        self._answer({"commitOid": revision, "commitUrl": address, "success": True, "hookOutput": ""})

    def info(self, body, name):
        siblings = [{"rfilename": path} for path in self.hub.files(name)]
        self._answer({"id": name, "sha": self.hub.revision(name), "siblings": siblings, "tags": []})

    def tree(self, body, name):
        self._answer(self.hub.tree(name))

    def resolve(self, body, name, path):
        content = self.hub.files(name).get(path)
        if content is None:
            return self._answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
        digest = (hashlib.sha256 if PurePosixPath(path).suffix in LFS else hashlib.sha1)(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X_Repo_Commit": self.hub.revision(name)}
        self._answer(content, Content_Type="application/octet-stream", **headers)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/main", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/main", _Handler.commit),
    ("GET", f"/api/models/{_NAME}/tree/[^/]+", _Handler.tree),
    ("GET", f"/api/models/{_NAME}(?:/revision/[^/]+)?", _Handler.info),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.verify),
    ("GET HEAD", f"/{_NAME}/resolve/[^/]+/(?P<path>.+)", _Handler.resolve),
]


@contextlib.contextmanager
def stand_in_hub():
    """A running stand-in."""
    hub = StandInHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
