"""A web server of a folder that fails one request in ten when it is told to."""

import html
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from support.web import WebServer

SHARE = 0.1  # of the requests


class UnreliableServer(WebServer):
    """Serves what is in a folder, and pages that list its folders.

    Attributes:
        requests: number since `failing`.
        failed: how many of them failed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.requests = self.failed = 0
        for path in folder.rglob("*"):
            name = f"/{quote(path.relative_to(folder).as_posix())}"
            self.files[name] = list_folder(path) if path.is_dir() else path.read_bytes()

    @contextmanager
    def failing(self, seed: int) -> Iterator[None]:
        """Fail while the block lasts."""
        self.requests = self.failed = 0
        self.failures = Chance(self, random.Random(seed))
        try:
            yield
        finally:
            self.failures = {}

    def reset(self, handler) -> None:
        """Reset the connection."""
        linger = struct.pack("ii", 1, 0)  # so that closing it is a reset
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()

    def cut(self, handler) -> None:
        """Send half of the body that was announced."""
        handler.wfile = _Half(handler.wfile)
        if (data := self.files.get(urlsplit(handler.path).path)) is not None:
            self.serve(handler, data)


class _Half:
    """A connection that takes the head of an answer and half of its body."""

    def __init__(self, file) -> None:
        self._file, self._head_came = file, False

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2] if self._head_came else data)
        self._head_came = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class Chance:
    """What happens to a request, as `WebServer.failures` says it of paths."""

    def __init__(self, server: UnreliableServer, rng: random.Random) -> None:
        self._server, self._rng, self._lock = server, rng, threading.Lock()

    def get(self, _path: str) -> object:
        """A failure of one of three kinds, or None."""
        server = self._server
        with self._lock:
            server.requests += 1
            if self._rng.random() >= SHARE:
                return None
            server.failed += 1
            return self._rng.choice([503, server.reset, server.cut])


def list_folder(folder: Path) -> str:
    """The page that a web server shows of a folder."""
    names = (f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.iterdir()))
    return "\n".join(f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in names)
