"""Fixtures: storage servers that live as long as the tests, and a small dataset.

A server that cannot be had skips its tests with the reason; the variable I3D_REQUIRE_STORAGE
(``hdfs``, or several names with commas between) makes that a failure.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.paths import TESTS
from support.storage import forget_servers
from support.videos import noise_images, write_video

PROGRAM = TESTS / "support" / "servers.py"


@dataclass(frozen=True)
class Server:
    """A running server: its root, the environment of its clients, and its processes' ids."""

    url: str
    environment: dict[str, str]
    processes: dict[str, int]


@pytest.fixture(scope="session")
def start_server(request):
    """Function: name -> the server, started when it is first asked for.

    A test that harms its server asks for one of its own: ``start("hdfs", copy=1)``.
    """
    servers: dict[tuple[str, int], Server | str] = {}

    def start(name: str, copy: int = 0) -> Server:
        if (name, copy) not in servers:
            process = subprocess.Popen(
                [sys.executable, PROGRAM, name],
                stdin=subprocess.PIPE,  # its end, however this process ends, stops the server
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            request.addfinalizer(lambda: process.communicate(timeout=60))
            answer = process.stdout.readline()
            assert answer, f"{name} did not start:\n{process.communicate()[1]}"
            fields = json.loads(answer)
            missing = fields.get("missing")
            servers[name, copy] = Server(**fields) if missing is None else missing
        server = servers[name, copy]
        if isinstance(server, str):
            required = name in os.environ.get("I3D_REQUIRE_STORAGE", "").split(",")
            (pytest.fail if required else pytest.skip)(server)
        return server

    return start


@pytest.fixture
def use_server(start_server, monkeypatch) -> Callable[..., Server]:
    """As `start_server`, and this test and the processes that it starts know the way there."""

    def use(name: str, copy: int = 0) -> Server:
        server = start_server(name, copy)
        if server.url.startswith("hdfs"):
            pytest.importorskip("hdfs_native")
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        forget_servers()
        return server

    return use


@pytest.fixture
def hdfs(use_server) -> Server:
    return use_server("hdfs")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Six videos in three class folders, one of them broken; a file is larger than a block."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    names = ["archery/a", "archery/b c", "bowling/d", "massaging person's head/e (1)"]
    for i, name in enumerate(names):
        write_video(root / f"{name}.mp4", noise_images(10 + 3 * i, 64, 48, i))
    write_video(root / "bowling" / "large.mp4", noise_images(40, 160, 120), options={"crf": "10"})
    assert (root / "bowling" / "large.mp4").stat().st_size > 1 << 16
    (root / "bowling" / "broken.mp4").write_bytes(b"not a video")
    return root
