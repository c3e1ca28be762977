"""Fixtures: the golden checkpoints and inputs, and a cache folder of the test's own."""

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.golden import reference_file

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
def rgb_scratch():
    """Path of the released `rgb_scratch_kinetics400`, as `i3d.load` takes it."""
    path = os.environ.get("I3D_REAL_RGB")
    if not path:
        pytest.skip("I3D_REAL_RGB does not name the released rgb_scratch's model.ckpt")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test touches the user's cache or a released file's real address."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("I3D_CACHE", str(folder))
    monkeypatch.setenv("I3D_CHECKPOINT_URL", str(tmp_path / "no-mirror"))
    return folder
