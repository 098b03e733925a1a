import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server

import pooch
import pytest

from deepclust import datasets


@pytest.fixture
def genuine_home():
    """Give the data home that holds a genuine copy of the named set, or skip the test."""

    def find(name):
        beside_the_checkout = Path(__file__).parents[3] / "shared" / "data"
        home = Path(os.environ.get("DEEPCLUST_DATA") or beside_the_checkout)
        if getattr(datasets, name).DATASET._find(home / name) is None:
            pytest.skip(f"needs the files of {name} in DEEPCLUST_DATA; {home / name} lacks them")
        return home

    return find


@pytest.fixture(autouse=True)
def _own_surroundings(request, monkeypatch, tmp_path):
    """Neither the user's cache nor a proxy takes part."""
    if "genuine_home" not in request.fixturenames:
        monkeypatch.delenv("DEEPCLUST_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Server(ThreadingHTTPServer):
    """Serves ``files`` from memory; ``asked`` records the names, in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.asked = []
        self.breaks_off = set()  # names of which only the first half is sent
        self.on_request = lambda name: None
        self.url = f"http://127.0.0.1:{self.server_port}/{{name}}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        self.server.on_request(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name in self.server.breaks_off:
            content = content[: len(content) // 2]
            self.close_connection = True
        with suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """An HTTP server on this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def nobody():
    """URL of a port on which nothing listens."""
    with create_server(("127.0.0.1", 0)) as socket:
        port = socket.getsockname()[1]
    return f"http://127.0.0.1:{port}/{{name}}"
