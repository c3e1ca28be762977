"""Storage servers as their clients see them, and folders on them."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import TESTS

from i3d import files, remote

PROGRAM = TESTS / "support" / "servers.py"
STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A running server: its root, the environment of its clients, and its processes' ids."""

    url: str
    environment: dict[str, str]
    processes: dict[str, int]


class ServerPool:
    """Servers that are started when they are first asked for; leaving the block ends them.

    One that cannot be had skips the test with the reason; the variable I3D_REQUIRE_STORAGE
    (``hdfs``, or several names with commas between) makes that a failure.
    """

    def __init__(self) -> None:
        self._processes = ExitStack()
        self._servers: dict[tuple[str, int], Server | str] = {}  # or why there is none

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._processes.close()

    def start(self, name: str, copy: int = 0) -> Server:
        """A server of this kind, the same one for the same copy.

        A test that harms its server asks for one of its own: ``start("hdfs", copy=1)``.
        """
        if (name, copy) not in self._servers:
            self._servers[name, copy] = self._start(name)
        server = self._servers[name, copy]
        if isinstance(server, str):
            required = name in os.environ.get("I3D_REQUIRE_STORAGE", "").split(",")
            (pytest.fail if required else pytest.skip)(server)
        return server

    def _start(self, name: str) -> Server | str:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, name],
            stdin=subprocess.PIPE,  # its end, however this process ends, stops the server
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # closes its input, which ends it
        self._processes.callback(process.communicate, timeout=STOP_SECONDS)
        answer = process.stdout.readline()
        assert answer, f"{name} did not start:\n{process.communicate()[1]}"
        fields = json.loads(answer)
        return fields["missing"] if "missing" in fields else Server(**fields)


def forget_servers() -> None:
    """Another S3, which only the environment tells from the one before, is opened anew."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    remote._answered.clear()


def upload(folder: Path, url: str) -> None:
    """Copy a folder of files."""
    for path in folder.rglob("*"):
        if path.is_file():
            files.write(files.join(url, path.relative_to(folder).as_posix()), path.read_bytes())


def contents(folder: Path | str) -> dict[str, bytes]:
    """Name and bytes of every file of a folder without folders."""
    found = {}
    for name in files.names_in(folder):
        with files.open_read(files.join(folder, name)) as file:
            found[name] = file.read()
    return found
