"""Requests to the Space over HTTP, as no browser sends them, to a server in a process of its own."""

import atexit
import contextlib
import http.client
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from tests.tiny import tiny_network

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import app
app.demo.launch(server_name="127.0.0.1", server_port=int(sys.argv[2]), quiet=True, **app.launch_options())
"""
METHOD = "Predictor-Corrector (SDE)"
SCRIPT = "<script>alert(1)</script>"


class Server:
    """The Space, served from a new process.

    Attributes:
        port: on loopback.
        pid: number of the process.
        log: file of its output.
        model: name of a small model.
    """

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        root = Path(tempfile.mkdtemp())
        self.model, self.log = str(root / "model"), root / "log.txt"
        ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=5.0)).save_pretrained(self.model)
        spaces = str(Path(__file__).parents[2] / "spaces")
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(root / "files"), "GRADIO_ANALYTICS_ENABLED": "False"}
        with self.log.open("w") as log:
            command = [sys.executable, "-c", SERVER, spaces, str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root)
        self.pid = self.process.pid
        atexit.register(self.stop)
        for _ in range(600):
            with contextlib.suppress(OSError):
                self.get("/config")
                return
            time.sleep(0.2)
        raise RuntimeError(self.log.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def memory(self) -> float:
        """Resident memory of the server in MB."""
        line = next(line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmRSS" in line)
        return int(line.split()[1]) / 1024

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
        """Status, headers and content of an answer; the path is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=15).read()

    def upload(self, content: bytes, name: str) -> str:
        """Path on the server of a file that was sent."""
        edge = "edge-of-a-part"
        part = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = part + content + f"\r\n--{edge}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        status, _, answer = self.request("POST", "/gradio_api/upload", body, headers)
        if status != 200:
            raise ValueError(f"HTTP {status}: {answer[:200].decode(errors='replace')}")
        return json.loads(answer)[0]

    def call(self, name: str, data, patience: float = 15) -> list:
        """The outputs of an event; a refusal is a ValueError."""
        body = json.dumps({"data": data}).encode()
        headers = {"Content-Type": "application/json"}
        status, _, answer = self.request("POST", f"/gradio_api/call/{name}", body, headers)
        if status >= 500:
            raise RuntimeError(f"HTTP {status}: {answer[:500]!r}")
        if status != 200:
            raise ValueError(f"HTTP {status}: {answer[:200].decode(errors='replace')}")
        event = json.loads(answer)["event_id"]
        url = f"http://127.0.0.1:{self.port}/gradio_api/call/{name}/{event}"
        kind, found = None, None
        with urllib.request.urlopen(url, timeout=patience) as stream:
            for line in stream:
                words = line.decode().strip()
                if words.startswith("event:"):
                    kind = words.removeprefix("event:").strip()
                elif words.startswith("data:") and kind in ("complete", "error"):
                    found = words.removeprefix("data:").strip()
                    break
        if kind == "complete":
            return json.loads(found)
        content = json.loads(found)
        message = content.get("error") if isinstance(content, dict) else content
        if not message or SCRIPT in message or "Traceback" in message:
            raise RuntimeError(f"no clear error: {found}")
        raise ValueError(message)


@cache
def server() -> Server:
    return Server()


def picture(kind: str = "PNG", size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def file_data(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


class Listener:
    """A server of the local network, which must not be asked for anything."""

    def __enter__(self):
        self.asked = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                listener.asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(picture())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret.png"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        assert self.asked == [], f"the server asked for {self.asked}"


VALUES = {
    "null": None,
    "text": "x",
    "script": SCRIPT,
    "long": "x" * 100_000,
    "list": [],
    "list_of_lists": [[[]]],
    "long_list": [0] * 100_000,
    "object": {},
    "minus": -1,
    "fraction": 0.5,
    "huge": 10**9,
    "thousand_digits": 10**1000,
    "nan": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "passwd": file_data("/etc/passwd"),
    "parent": file_data("../../../../etc/passwd"),
    "bare_file": {"path": "/etc/passwd"},
    "link": {"url": "file:///etc/passwd", "path": None, "meta": {"_type": "gradio.FileData"}},
    "inline": {"url": "data:image/png;base64,AAAA", "path": None, "meta": {"_type": "gradio.FileData"}},
    "metadata": file_data("http://169.254.169.254/latest/meta-data"),
    "elsewhere": file_data("https://example.org/a.png"),
    "ftp": file_data("ftp://127.0.0.1/a.png"),
}


def good_calls() -> dict:
    """Arguments of each event that succeed."""
    sampler = [10, "reverse_diffusion", "none", 0.16]
    image = file_data(server().upload(picture(), "a.png"))
    model = server().model
    masked = {"background": image, "layers": [], "composite": None}
    return {
        "generate": [model, METHOD, 1, 0, *sampler],
        "edit": [model, image, 0.5, 1, 0, *sampler],
        "colorize": [model, image, 1, 0, *sampler],
        "inpaint": [model, masked, 1, 0, *sampler],
        "interpolate": [model, None, 1, None, 2, 2],
        "likelihood": [model, image, 1, 0],
        "process": [model, image, 0, *sampler],
    }


def call_cases() -> dict:
    """Each argument of each event with each odd value."""
    places = {
        "generate": range(8),
        "edit": range(5),
        "inpaint": (0, 1),
        "interpolate": range(1, 6),
        "likelihood": (1, 2),
    }
    found = {}
    for name, numbers in places.items():
        for place in numbers:
            for word, value in VALUES.items():

                def case(folder, name=name, place=place, value=value):
                    data = list(good_calls()[name])
                    data[place] = value
                    server().call(name, data)

                found[f"call_{name}_{place}_{word}"] = case
    shapes = {"no_data": None, "empty": [], "short": [1], "text": "x", "object": {"a": 1}, "long": [1] * 50}
    for word, data in shapes.items():
        found[f"call_shape_{word}"] = lambda folder, d=data: server().call("generate", d)
    found["call_unknown"] = lambda folder: server().call("nothing", [])
    found["call_private"] = lambda folder: server().call("describe", [server().model])
    return found


def address_cases() -> dict:
    """The server fetches nothing from an address that it is given."""

    def by_call(folder):
        with Listener() as listener:
            for word in (file_data(listener.url), {"path": listener.url}, {"url": listener.url, "path": listener.url}):
                data = good_calls()["edit"]
                data[1] = word
                try:
                    server().call("edit", data)
                except ValueError:
                    continue
                raise AssertionError("an address was taken for an image")

    def by_layer(folder):
        with Listener() as listener:
            data = good_calls()["inpaint"]
            data[1] = {**data[1], "layers": [file_data(listener.url)]}
            server().call("inpaint", data)

    def by_model(folder):
        with Listener() as listener:
            server().call("generate", [listener.url, *good_calls()["generate"][1:]])

    def by_path(form: str):
        def case(folder):
            with Listener() as listener:
                status, _, content = server().request("GET", form.format(listener.url))
                assert content != picture()
                refuse(status, content)

        return case

    forms = ("file={}", "proxy={}", "file/{}", "file=HTTP{0}", "file=%68ttp:{0}")
    return {
        "address_call": by_call,
        "address_layer": by_layer,
        "address_model": by_model,
        **{f"address_{form}": by_path(f"/gradio_api/{form}") for form in forms},
    }


def refuse(status: int, content: bytes) -> None:
    """An answer as an outcome."""
    if status >= 500:
        raise RuntimeError(f"HTTP {status}: {content[:300]!r}")
    if status >= 400:
        raise ValueError(f"HTTP {status}: {content[:300].decode(errors='replace')}")


def path_cases() -> dict:
    """Files of the server that are nobody's business."""
    places = ("/etc/passwd", "//etc/passwd", "../../../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd")
    places += (
        "....//....//etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "%00/etc/passwd",
        "C:\\windows\\win.ini",
    )
    places += ("..%5c..%5cetc%5cpasswd", "/dev/zero", "~/.bashrc", "", "/", "x" * 5000)
    forms = (
        "/gradio_api/file=",
        "/gradio_api/file/",
        "/file=",
        "/static/",
        "/assets/",
        "/gradio_api/upload_progress?",
    )
    found = {}
    for form in forms:
        for place in places:

            def case(folder, path=form + place):
                status, _, content = server().request("GET", path)
                assert b"root:" not in content and b"PATH=" not in content, "a file of the server"
                refuse(status, content)

            found[f"path_{form}_{place[:40]}"] = case
    code = Path(__file__).parents[2] / "spaces" / "score_space" / "models.py"
    found["path_code"] = lambda folder: refuse(*server().request("GET", f"/gradio_api/file={code}")[::2])
    return found


def upload_cases() -> dict:
    """Odd files, names and requests."""
    names = [
        "../../x.png",
        "/etc/x.png",
        "a" * 300 + ".png",
        "\u202egnp.exe",
        "x.svg",
        "x.html",
        "x.eps",
        ".png",
        "",
        " ",
    ]
    names += [f"{SCRIPT}.png", "a;b|c&d$(touch x).png", "a\\..\\b.png", "%2e%2e%2fx.png", "con.png", "x.png\0.exe"]
    contents = {
        "picture": picture(),
        "svg": f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>".encode(),
        "html": f"<html>{SCRIPT}</html>".encode(),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "empty": b"",
        "zip": b"PK\3\4" + bytes(100),
    }

    def send(folder, content, name):
        """What was sent is read as a picture or refused, and never comes back as a page."""
        path = server().upload(content, name)
        status, headers, _ = server().request("GET", "/gradio_api/file=" + urllib.request.pathname2url(path))
        headers = {key.lower(): value for key, value in headers.items()}
        kind = headers.get("content-type", "")
        is_page = kind.startswith(("text/html", "image/svg")) and "attachment" not in headers.get(
            "content-disposition", ""
        )
        assert status != 200 or not is_page, f"{name} comes back as {kind}"
        data = good_calls()["edit"]
        data[1] = file_data(path)
        server().call("edit", data)

    found = {f"upload_name_{name[:30]!r}": lambda folder, n=name: send(folder, picture(), n) for name in names}
    for word, content in contents.items():
        for name in ("a.png", "a.svg", "a.html"):
            found[f"upload_{word}_{name}"] = lambda folder, c=content, n=name: send(folder, c, n)
    found["upload_11_mb"] = lambda folder: server().upload(bytes(11_000_000), "a.png")
    found["upload_40_mb"] = lambda folder: upload_declared(40_000_000)
    found["body_20_mb"] = lambda folder: refuse(
        *server().request("POST", "/gradio_api/call/generate", bytes(20_000_000))[::2]
    )
    found["body_chunked"] = lambda folder: chunked(20_000_000)
    found["body_no_json"] = lambda folder: refuse(*server().request("POST", "/gradio_api/call/generate", b"{")[::2])
    found["body_deep"] = lambda folder: refuse(
        *server().request("POST", "/gradio_api/call/generate", b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")[
            ::2
        ]
    )
    for place in ("vibe-edit", "vibe-code", "process_recording", "deep_link", "component_server", "reset", "cancel"):
        found[f"post_{place}"] = lambda folder, p=place: refuse(
            *server().request("POST", f"/gradio_api/{p}", b"{}", {"Content-Type": "application/json"})[::2]
        )
    return found


def upload_declared(size: int) -> None:
    """An upload that declares its size and would send it."""
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(size)}
    refuse(*server().request("POST", "/gradio_api/upload", b"", headers)[::2])


def chunked(size: int) -> None:
    """A request whose length is not declared."""
    connection = http.client.HTTPConnection("127.0.0.1", server().port, timeout=15)
    parts = (bytes(100_000) for _ in range(size // 100_000))
    try:
        connection.request("POST", "/gradio_api/call/generate", parts, encode_chunked=True)
        answer = connection.getresponse()
        refuse(answer.status, answer.read())
    except (BrokenPipeError, ConnectionError) as error:
        raise ValueError(f"the server ended the connection: {error}") from error
    finally:
        connection.close()


def alive(folder) -> None:
    """The server still draws."""
    for name, data in good_calls().items():
        server().call(name, data)


def cases() -> dict:
    """All requests, and at the end good ones."""
    server()
    return {**address_cases(), **upload_cases(), **path_cases(), **call_cases(), "alive": alive}
