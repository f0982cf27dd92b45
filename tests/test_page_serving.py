"""The leaderboard's page over http: its own files, to this machine, and nothing else."""

import http.client
import re
import signal
import subprocess
import sys
import threading

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build, serve

from .test_leaderboard import ID, scores_folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running server of a page with ways out of it, and what asks it."""
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
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()

        def ask(path, host=None, method="GET"):
            connection = http.client.HTTPConnection(*running.server_address, timeout=5)
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{running.server_port}")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

        yield running, ask, root
        running.shutdown()
        thread.join()


class TestServing:
    def test_the_page_and_its_files(self, served):
        running, ask, _ = served
        assert running.server_address[0] == "127.0.0.1"
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
    def test_nothing_else(self, served, path):
        status, _, body = served[1](path)
        assert status == 404 and b"secret" not in body.replace(path.encode(), b"")

    def test_not_under_another_name(self, served):
        assert served[1]("/", host="rebound.example")[0] == 404
        assert served[1]("/", host="localhost:1")[0] == 200

    def test_only_to_be_read(self, served):
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

    def test_a_folder_without_a_page(self, tmp_path):
        with pytest.raises(HarnessError, match="holds no page"):
            serve.server(tmp_path)

    def test_a_taken_port(self, served, tmp_path):
        with pytest.raises(HarnessError, match="cannot be had"):
            serve.server(served[2], served[0].server_port)
