"""The leaderboard's page over http: its own files, to this machine, and nothing else."""

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build
from dcsft_harness.leaderboard.page import serve
from tests.leaderboard.test_leaderboard import ID, scores_folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running server of a page with links out of its folder, and a function that sends requests."""
    tmp_path = tmp_path_factory.mktemp("served")
    root = tmp_path / "board"
    made = [scores_folder(tmp_path / "a", "a", {ID: [1.0, 0.0]})]
    build(made, root, options=Options(plots=False, items=False, strict=True))
    (tmp_path / "secret.js").write_text("secret")
    (root / "secret.js").write_text("secret")
    (root / "page" / "data" / "link.js").symlink_to(tmp_path / "secret.js")
    (root / "page" / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "page" / "data" / "notes.env").write_text("secret")
    with serve.server(root) as running:
        threading.Thread(target=running.run, daemon=True).start()
        address = (running.effective_host, running.effective_port)

        def ask(path, host=None, method="GET"):
            connection = http.client.HTTPConnection(*address, timeout=5)
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{running.effective_port}")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

        yield running, ask, root


class TestServing:
    def test_serves_the_page_and_its_files(self, served):
        running, ask, _ = served
        assert running.effective_host == "127.0.0.1"
        status, headers, body = ask("/")
        assert status == 200 and b"assets/main.js" in body
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, body = ask("/data/board.js?x=1")
        assert status == 200 and body.startswith(b'dcsft.take("board"')
        assert headers["Content-Type"].startswith("text/javascript")
        assert ask("/index.html", method="HEAD")[0] == 200

    @pytest.mark.parametrize("path", [
        "/data/", "/data", "/assets/", "/../secret.js", "/data/../../secret.js", "/%2e%2e/secret.js",
        "//etc/passwd", "/..%2f..%2fsecret.js", "/data/link.js", "/up/secret.js", "/data/notes.env",
        "/data/%00", "/data\\board.js", "/nothing.js", "/%ff%fe.js", "/./index.html", "/data//board.js",
    ])  # fmt: skip
    def test_serves_nothing_else(self, served, path):
        status, _, body = served[1](path)
        assert status == 404 and b"secret" not in body.replace(path.encode(), b"")

    def test_a_request_for_the_icon_is_not_an_error(self, served):
        assert served[1]("/favicon.ico")[::2] == (204, b"")

    def test_other_host_names_are_refused(self, served):
        assert served[1]("/", host="rebound.example")[0] == 404
        assert served[1]("/", host="localhost:1")[0] == 200

    def test_only_get_and_head_are_allowed(self, served):
        assert served[1]("/", method="POST")[0] == 501
        assert served[1]("/", method="PUT")[0] == 501

    def test_the_command_serves_until_it_is_interrupted(self, served):
        command = [
            sys.executable,
            "-m",
            "dcsft_harness.cli",
            "leaderboard",
            "serve",
            str(served[2]),
            "--port",
            "0",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            host, port = re.match(r"http://(.*):(\d+)/", running.stdout.readline()).groups()
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            connection.request("GET", "/index.html")
            assert connection.getresponse().status == 200
            running.send_signal(signal.SIGINT)
            assert running.wait(10) == 0

    def test_a_folder_without_a_page_is_refused(self, tmp_path):
        with pytest.raises(HarnessError, match="holds no page"), serve.server(tmp_path):
            pass

    def test_a_port_in_use_is_reported(self, served, tmp_path):
        port = served[0].effective_port
        with pytest.raises(HarnessError, match="is not available"), serve.server(served[2], port):
            pass


REQUEST = b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW = {
    "silent": [b""],
    "half a request": [b"GET /index.html HTTP/1.1\r\nHo"],
    "byte by byte": [bytes([byte]) for byte in b"GET /index.html HTTP/1.1\r\nX-Padding: " + b"a" * 200],
    "empty lines": [b"\r\n"] * 100,
    "a body that does not come": [b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"],
    "never read": [REQUEST],
    "many requests at once": [REQUEST * 100],
}


@pytest.mark.parametrize("kind", SLOW)
def test_slow_connections_end_and_delay_nobody(served, monkeypatch, kind):
    """40 connections where 10 are allowed: each ends after its time, and a reader is answered meanwhile."""
    monkeypatch.setitem(serve.LIMITS, "connection_limit", 10)
    before = threading.active_count()
    with serve.server(served[2]) as running, contextlib.ExitStack() as held:
        # At first, waitress only accepts whole seconds.
        running.adj.channel_timeout = 0.25
        running.adj.cleanup_interval = running.adj.asyncore_loop_timeout = 0.1
        threading.Thread(target=running.run, daemon=True).start()
        address, started = (running.effective_host, running.effective_port), time.monotonic()
        slow = [held.enter_context(socket.create_connection(address, timeout=5)) for _ in range(40)]
        stop = threading.Event()
        dripping = threading.Thread(target=drip, args=(slow, SLOW[kind], stop))
        dripping.start()
        try:
            connection = http.client.HTTPConnection(*address, timeout=20)
            connection.request("GET", "/index.html", headers={"Host": "localhost"})
            assert connection.getresponse().status == 200
            assert time.monotonic() - started < 10
            assert threading.active_count() - before <= serve.LIMITS["threads"] + 2
        finally:
            stop.set()
            dripping.join()


def drip(connections, parts, stop):
    """Sends each connection a part every 0.1 s, until there are none left or the test is over."""
    for part in parts:
        for one in connections:
            with contextlib.suppress(OSError):
                one.sendall(part)
        if stop.wait(0.1):
            return


def test_every_connection_ends(served, monkeypatch):
    monkeypatch.setattr(serve, "LIFETIME", 1)
    with serve.server(served[2]) as running:
        threading.Thread(target=running.run, daemon=True).start()
        address = (running.effective_host, running.effective_port)
        with socket.create_connection(address, timeout=10) as connection, pytest.raises(OSError):
            for _ in range(50):
                connection.sendall(REQUEST)
                if not connection.recv(1 << 20):
                    raise ConnectionError
                time.sleep(0.1)


def test_a_request_body_is_refused(served):
    address = (served[0].effective_host, served[0].effective_port)
    connection = http.client.HTTPConnection(*address, timeout=5)
    connection.request("POST", "/", body=b"a" * 1000, headers={"Host": "localhost"})
    assert connection.getresponse().status == 413
