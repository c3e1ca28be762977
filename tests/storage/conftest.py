"""Fixtures: storage servers that live as long as the tests, and a small dataset."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.storage import Server, ServerPool, forget_servers
from support.videos import noise_images, write_video


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerPool]:
    with ServerPool() as pool:
        yield pool


@pytest.fixture
def use_server(servers, monkeypatch) -> Callable[..., Server]:
    """`ServerPool.start`, and this test and the processes that it starts know the way there."""

    def use(name: str, copy: int = 0) -> Server:
        server = servers.start(name, copy)
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
