"""Serves a leaderboard's page over http, for this machine only."""

import contextlib
import logging
import os
import posixpath
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waitress import create_server
from waitress.channel import HTTPChannel

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.page import FOLDER, POLICY

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from waitress.server import TcpWSGIServer

HOST = "127.0.0.1"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".webp": "image/webp",
    ".png": "image/png",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
"""The served file types; other files are not found."""
LIMITS = {
    "threads": 4,
    "connection_limit": 100,
    "channel_timeout": 10,  # seconds without a complete request or a byte sent
    "cleanup_interval": 1,  # seconds between checks of the connections
    "max_request_header_size": 16 * 1024,
    "max_request_body_size": 1,
}
"""waitress's settings: limits on what clients may use of this machine."""
LIFETIME = 600
"""Seconds after which any connection is closed; browsers open another."""


@contextlib.contextmanager
def server(folder: Path, port: int = 0) -> "Iterator[TcpWSGIServer]":
    """A server of a leaderboard or its page, bound only to the loopback address; `run` serves until Ctrl-C.

    Port 0 uses a free one, given by the server's `effective_port`.

    Raises:
        HarnessError: there is no page, or the port is not available.
    """
    page = folder / FOLDER if (folder / FOLDER / INDEX).is_file() else folder
    if not (page / INDEX).is_file() or not (page / "data" / "board.js").is_file():
        raise HarnessError(
            f"{folder} holds no page", "Name a folder of `dcsft leaderboard build`, made without --no-page"
        )
    # It logs requested paths. They may contain control characters, which terminals obey.
    logging.getLogger("waitress").setLevel(logging.CRITICAL + 1)
    try:
        running = create_server(
            _Pages(page.resolve()), host=HOST, port=port, ident="dcsft", asyncore_use_poll=True, **LIMITS
        )
    except (OSError, OverflowError, ValueError) as error:
        raise HarnessError(
            f"port {port} of {HOST} is not available: {error}", "Name another --port"
        ) from error
    running.channel_class = _Channel
    try:
        yield running
    finally:
        running.task_dispatcher.shutdown()
        running.close()


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection with time limits that waitress itself lacks.

    A client that sends a request byte by byte counts as idle, no connection lives longer than `LIFETIME`, and
    requests may not be sent before the previous response.
    """

    last_activity: float

    def handle_read(self) -> None:
        """Counts bytes as activity only at the end of a request."""
        before = self.last_activity
        super().handle_read()
        if self.request is not None:
            self.last_activity = before

    def received(self, data: bytes) -> bool:
        """Closes on empty lines without a request, and on several requests at once."""
        if self.request is None and not data.strip(b"\r\n"):
            self.will_close = True
            return False
        taken = bool(super().received(data))
        if len(self.requests) > 1:
            self.will_close = True
        return taken

    def writable(self) -> bool:
        """Called every second; closes old connections."""
        if time.time() - self.creation_time > LIFETIME:
            self.will_close = True
        return bool(super().writable())


class _Pages:
    """GET and HEAD of the page's files: no listing, nothing outside the folder, not even through a link."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            return self._refuse(start, HTTPStatus.NOT_IMPLEMENTED)
        # A name that resolves to this machine is not enough: another site could rebind its name to it.
        host = environ.get("HTTP_HOST", "").rsplit(":", 1)[0]
        ours, path = host in (HOST, "localhost"), environ.get("PATH_INFO", "")
        if ours and path == "/favicon.ico":  # which browsers ask for, and the page does not have
            start("204 No Content", _headers(TYPES[".txt"], 0))
            return []
        found = self._file(path) if ours else None
        if found is None:
            return self._refuse(start, HTTPStatus.NOT_FOUND)
        try:
            file = found.open("rb")
        except OSError:
            return self._refuse(start, HTTPStatus.NOT_FOUND)
        start("200 OK", _headers(TYPES[found.suffix], os.fstat(file.fileno()).st_size))
        if method == "HEAD":
            file.close()
            return []
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    def _refuse(self, start: "StartResponse", status: HTTPStatus) -> list[bytes]:
        said = f"{status.value} {status.phrase}"
        start(said, _headers(TYPES[".txt"], len(said)))
        return [said.encode("ascii")]

    def _file(self, given: str) -> Path | None:
        """The requested file; None if it is not available."""
        try:
            asked = given.encode("latin-1").decode("utf-8")  # WSGI passes bytes as latin-1
        except UnicodeError:
            return None
        asked = INDEX if asked == "/" else asked.lstrip("/")
        if "\0" in asked or "\\" in asked or posixpath.normpath(asked) != asked:
            return None
        try:
            found = (self.root / asked).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        inside = found.is_relative_to(self.root) and found.is_file() and found.suffix in TYPES
        return found if inside else None


def _headers(kind: str, length: int) -> list[tuple[str, Any]]:
    return [
        ("Content-Type", kind),
        ("Content-Length", str(length)),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'"),
        ("Cache-Control", "no-cache"),
    ]
