"""A leaderboard's page over http, for this machine alone."""

import os
import posixpath
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from dcsft_harness.errors import HarnessError

from .page import FOLDER, POLICY

HOST = "127.0.0.1"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".webp": "image/webp",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
"""What is served; a file of any other kind is not there."""


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a page, bound to the loopback address alone; `serve_forever` runs it.

    Args:
        folder: a leaderboard, or its page.
        port: where; 0 takes a free one.

    Raises:
        HarnessError: there is no page, or the port cannot be had.
    """
    page = folder / FOLDER if (folder / FOLDER / INDEX).is_file() else folder
    if not (page / INDEX).is_file() or not (page / "data" / "board.js").is_file():
        raise HarnessError(
            f"{folder} holds no page", "Name a folder of `dcsft leaderboard build`, made without --no-page"
        )
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, root=page.resolve()))
    except (OSError, OverflowError) as error:
        raise HarnessError(f"port {port} of {HOST} cannot be had: {error}", "Name another --port") from error


class _Handler(SimpleHTTPRequestHandler):
    """GET and HEAD of the page's files: no listing, nothing outside the folder, not through a link either."""

    server_version = "dcsft"
    sys_version = ""

    def __init__(self, *arguments: object, root: Path) -> None:
        self.root = root
        super().__init__(*arguments, directory=str(root))  # type: ignore[arg-type]

    def send_head(self) -> BinaryIO | None:
        # A name that resolves to this machine is not enough: a page elsewhere could rebind its own to it.
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        found = self._file() if host in (HOST, "localhost") else None
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        try:
            file = found.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES[found.suffix])
        self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
        self.end_headers()
        return file

    def _file(self) -> Path | None:
        """The file that is asked for; None where there is none to be had."""
        asked = unquote(urlsplit(self.path).path)
        asked = INDEX if asked == "/" else asked.lstrip("/")
        if "\0" in asked or "\\" in asked or posixpath.normpath(asked) != asked:
            return None
        try:
            found = (self.root / asked).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        inside = found.is_relative_to(self.root) and found.is_file() and found.suffix in TYPES
        return found if inside else None

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: paths that are asked for may hold anything, and terminals obey some of it."""
