"""Exported networks, made once a module, and what they are compared with."""

import importlib.util
import json

import pytest
import torch
from support import bundles

import i3d
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.tasks.export import export

NO_OPENVINO = importlib.util.find_spec("openvino") is None
RUNTIMES = [
    "onnx",
    pytest.param(
        "openvino", marks=pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed")
    ),
]
CLASSES = [f"action {i}" for i in range(7)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two small checkpoints: {"rgb": path, "flow": path}."""
    return bundles.save_pair(tmp_path_factory.mktemp("networks"), num_classes=None, classes=CLASSES)


@pytest.fixture(scope="module")
def exported(networks):
    """Function: (stream, precision, suffix) -> exported file, made once."""

    def get(stream="rgb", precision="fp32", suffix=".onnx"):
        path = networks[stream].with_name(f"{stream}-{precision}{suffix}")
        if not path.exists():
            export(networks[stream], path, precision=precision)
        return path

    return get


@pytest.fixture(scope="module")
def opened(exported):
    """Function: (runtime, stream, precision) -> network, opened once."""
    cache = {}

    def get(runtime, stream="rgb", precision="fp32"):
        key = runtime, stream, precision
        if key not in cache:
            cache[key] = ExportedNetwork(exported(stream, precision), runtime=runtime)
        return cache[key]

    return get


@pytest.fixture(scope="module")
def pytorch(networks):
    """Function: stream -> the unfolded network, loaded once."""
    models = {s: i3d.load(path, trainable=True).eval() for s, path in networks.items()}
    return models.__getitem__


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same_outputs(model, outputs, clip, share):
    """Logits and features within ``share`` of the largest."""
    with torch.inference_mode():
        expected = model(clip), model.features(clip)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        error, largest = (ours - theirs).abs().max(), theirs.abs().max()
        assert error <= share * largest, f"{clip.shape}: {error} of {largest}"


def metadata_of(path) -> dict:
    import onnx

    (prop,) = onnx.load(path).metadata_props
    assert prop.key == "i3d"
    return json.loads(prop.value)
