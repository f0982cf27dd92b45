"""A model hub on this machine's loopback, as far as creating a repository and one commit to it go."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was asked of it.

    Attributes:
        files: path in the repository -> bytes, of the last commit.
        created: the bodies of the requests that created a repository.
        refuse: a status that every request is answered with, where it is set.
    """

    def __init__(self):
        self.files, self.created, self.refuse = {}, [], None

    def answer(self, path, body):
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "jane", "auth": {}}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/jane/{self.created[-1]['name']}", "name": "jane/digits"}
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return {
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            }
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines() if line]
            self.files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            return {"commitUrl": f"{self.url}/jane/digits/commit/1", "commitOid": "1", "success": True}
        return {"siblings": [], "id": "jane/digits", "tags": [], "sha": "0" * 40}


@contextlib.contextmanager
def serving(monkeypatch):
    """Runs one, and points huggingface_hub at it, with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            status = hub.refuse or 200
            answer = {"error": "no such luck"} if hub.refuse else hub.answer(self.path.split("?")[0], body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
