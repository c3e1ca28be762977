"""Golden files: what TensorFlow made, committed here or in the folder beside the repository."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import REFERENCE, SHARED


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
