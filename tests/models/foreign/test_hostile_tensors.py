"""One tensor of a right checkpoint is replaced: the file is refused, or the outputs are finite."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import bundles

from i3d.errors import CheckpointError, I3DError
from i3d.models.checkpoints import load
from i3d.models.foreign.names import CHAINER, HASSONY2, OURS, PYTORCH_I3D
from i3d.models.foreign.readers import PARAMETERS
from i3d.records import plain

MODEL = bundles.small_model()
CLIP = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
TENSORFLOW_DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "float16": 19,
}
CHANGES = ["nan", "inf", "negative", "huge", "scalar", "one", "empty", "longer", "flat", "complex"]
CHANGES += ["float64", "float16", "int32", "int64", "bool"]


def state_of(naming) -> dict[str, np.ndarray]:
    """A state dict with a scale beside every offset, as PyTorch's own BatchNorm has it."""
    state = {naming.key(name): t.numpy() for name, t in MODEL.state_dict().items()}
    for name in PARAMETERS:
        if name.endswith("bn.bias"):
            key = naming.key(f"{name.removesuffix('bias')}weight")
            state[key] = np.full_like(state[naming.key(name)], 1.25)
    return state


ARRAYS = {
    "tensorflow": bundles.tensorflow_variables(MODEL, scope=""),
    "npz": {CHAINER.key(name): t.numpy() for name, t in MODEL.state_dict().items()},
    "pytorch_i3d": state_of(PYTORCH_I3D),
    "hassony2": state_of(HASSONY2),
    "ours": state_of(OURS),
    "safetensors": state_of(PYTORCH_I3D),
}


def changed(array: np.ndarray, change: str, position: float) -> np.ndarray:
    """The array with one value, its shape or its dtype changed."""
    array = array.copy()
    special = {"nan": math.nan, "inf": -math.inf, "negative": -0.5, "huge": 1e300}
    if change in special:
        if array.dtype.kind == "i" or change == "huge":
            array = array.astype(np.float64)
        array.reshape(-1)[int(position * array.size)] = special[change]
        return array
    if change == "scalar":
        return array.reshape(-1)[0]
    if change == "one":
        return array.reshape(-1)[:1].copy()
    if change == "empty":
        return array.reshape(-1)[:0].copy()
    if change == "longer":
        return np.concatenate([np.atleast_1d(array)] * 2)
    if change == "flat":
        return array.reshape(-1)
    if change == "complex":
        return array.astype(np.complex64) * np.complex64(1 + 2j)
    return array.astype(change)


def write(folder: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """The arrays as a file of that kind, whose checksums are right."""
    if kind == "tensorflow":
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        wrong = {name: {"dtype": TENSORFLOW_DTYPES[str(a.dtype)]} for name, a in arrays.items()}
        return bundles.write(folder, arrays, bundles.items_of(arrays, **wrong))
    if kind == "npz":
        np.savez(folder / "x.npz", **arrays)
        return folder / "x.npz"
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    if kind in ("ours", "safetensors"):
        metadata = {"i3d": json.dumps(plain(MODEL.config))} if kind == "ours" else None
        save_file(tensors, folder / "x.safetensors", metadata=metadata)
        return folder / "x.safetensors"
    torch.save(tensors, folder / "x.pt")
    return folder / "x.pt"


def load_or_refuse(path: Path) -> str:
    """The message of the error, which is short and names the file; else outputs are finite."""
    try:
        model = load(path)
    except I3DError as error:
        message = str(error)
        assert isinstance(error, CheckpointError)
        assert str(path) in message
        assert len(message.splitlines()) == 1
        return message
    with torch.inference_mode():
        assert torch.isfinite(model(CLIP)).all()
    return ""


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(ARRAYS)), st.data())
def test_any_one_tensor(tmp_path_factory, kind, data):
    arrays = ARRAYS[kind]
    key = data.draw(st.sampled_from(sorted(arrays)))
    change = data.draw(st.sampled_from(CHANGES))
    position = data.draw(st.floats(0, 1, exclude_max=True))
    hostile = {**arrays, key: changed(arrays[key], change, position)}
    message = load_or_refuse(write(tmp_path_factory.mktemp("hostile"), kind, hostile))
    if change in ("nan", "inf", "complex", "empty", "longer", "bool"):
        assert message
    # From some shapes the network is inferred, so that its layers are named.
    named = (key, "filters of", "first convolution takes", "classes (1 to")
    assert not message or any(words in message for words in named), message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_kind_of_file_is_right_without_a_change(tmp_path, kind):
    assert not load_or_refuse(write(tmp_path, kind, ARRAYS[kind]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", CHANGES)
def test_a_scale(tmp_path, change):
    """It is multiplied into the filters, which must not hide what it is."""
    key = PYTORCH_I3D.key("Mixed_4c.Branch_1.Conv3d_0a_1x1.bn.weight")
    arrays = ARRAYS["pytorch_i3d"]
    hostile = {**arrays, key: changed(arrays[key], change, 0.5)}
    message = load_or_refuse(write(tmp_path, "pytorch_i3d", hostile))
    # A scale may be negative, has one axis anyway, and these dtypes are converted.
    assert (message == "") == (change in ("negative", "flat", "float64", "float16")), message
    assert not message or key in message
