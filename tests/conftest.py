"""Fixtures: the golden checkpoints and inputs, and a cache folder of the test's own."""

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Shared machines are slow at times, which is no finding; under CI the examples are the same each
# time, so that what fails is the change.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

REFERENCE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2] / "shared"
SHARED_TENSORFLOW = SHARED / "reference" / "tensorflow"


def shared(*parts: str) -> Path:
    """A file that is not committed; the test skips where the folder of such files is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there; this test reads {'/'.join(parts)} from it")
    return SHARED.joinpath(*parts)


def reference_file(name: str, folder: str = "") -> Path:
    """A golden file: the committed one, else the one in the folder beside the repository."""
    committed = REFERENCE / name
    return committed if committed.exists() else shared("reference", "tensorflow", folder, name)


@dataclass(frozen=True)
class Golden:
    """An input of the original TensorFlow graph with its outputs."""

    clip: torch.Tensor  # float32 (1, C, T, H, W)
    outputs: dict[str, np.ndarray]


def golden(checkpoint: str, input_name: str) -> Golden:
    with np.load(reference_file(f"{input_name}.npz", "inputs")) as z:
        video = z["video"]
    with np.load(reference_file(f"{checkpoint}__{input_name}.npz", "refs")) as z:
        outputs = dict(z)
    clip = torch.from_numpy(video).float().div(127.5).sub(1)
    return Golden(clip.permute(3, 0, 1, 2)[None], outputs)  # (T, H, W, C) -> (1, C, T, H, W)


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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test touches the user's cache or a released file's real address."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("I3D_CACHE", str(folder))
    monkeypatch.setenv("I3D_CHECKPOINT_URL", str(tmp_path / "no-mirror"))
    return folder
