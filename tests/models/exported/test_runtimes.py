"""Files that lie, and clips that do not fit: what a runtime is never given."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.exports import NO_OPENVINO, RUNTIMES, noise

from i3d.errors import CheckpointError, I3DError
from i3d.models.exported.runtimes import ExportedNetwork

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def test_clips_that_do_not_fit(opened):
    for shape in [(3, 9, 32, 32), (1, 2, 9, 32, 32), (1, 3, 8, 32, 32)]:
        with pytest.raises(I3DError, match="9 frames"):
            opened("onnx")(torch.zeros(shape))


def make_external(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(location)


def external_weight(model, secret):
    make_external(model.graph.initializer[0], secret)


def external_constant(model, secret):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32))
    make_external(tensor, secret)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def external_in_a_branch(model, secret):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    make_external(tensor, secret)
    value = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    branch = helper.make_graph([], "branch", [], [value], [tensor])
    node = helper.make_node("If", ["logits"], ["d"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("lie", [external_weight, external_constant, external_in_a_branch])
def test_weights_in_other_files_are_not_read(exported, tmp_path, runtime, lie):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    model = onnx.load(exported())
    lie(model, secret)
    path = tmp_path / "lie.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="weights in other files"):
        ExportedNetwork(path, runtime=runtime)


def with_metadata(change):
    def lie(model):
        prop = model.metadata_props[0]
        prop.value = change(prop.value)

    return lie


def with_fields(**fields):
    return with_metadata(lambda text: json.dumps(json.loads(text) | fields))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda model: model.ClearField("metadata_props"), "not made by i3d export"),
        (with_metadata(lambda _: "{"), "not JSON"),
        (with_metadata(lambda _: "[" * 200_000), "not JSON|not what i3d writes"),
        (with_metadata(lambda _: "[]"), "not what i3d writes"),
        (with_metadata(lambda text: text + " " * (1 << 24)), "characters"),
        (with_fields(stream="depth"), "not what i3d writes"),
        (with_fields(classes=["one"]), "not what i3d writes"),
        (with_fields(classes=list(range(7))), "not what i3d writes"),
        (with_fields(classes=None, num_classes=10**12), "not what i3d writes"),
        (with_fields(source=None), "not what i3d writes"),
        (with_fields(preset="kinetics-i3d-9999999"), "preset"),
        (lambda model: model.graph.output.pop(), "outputs"),
        (lambda model: model.graph.node.pop(), "cannot load it"),
    ],
)
def test_damaged_files_are_refused(exported, tmp_path, lie, words):
    model = onnx.load(exported())
    lie(model)
    path = tmp_path / "lie.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=words):
        ExportedNetwork(path)


def test_what_is_not_onnx_is_refused(exported, tmp_path):
    path = tmp_path / "it.onnx"
    whole = exported().read_bytes()
    for data in (b"", b"not a network", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"it\.onnx"):
            ExportedNetwork(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_logits_of_other_classes_are_refused(exported, tmp_path, runtime):
    model = onnx.load(exported())
    with_fields(classes=None, num_classes=5)(model)
    path = tmp_path / "lie.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"\(1, 7\) for 1 clips and 5 classes"):
        ExportedNetwork(path, runtime=runtime)(noise(1, 3, 9, 32, 32))


@pytest.mark.skipif(NO_OPENVINO, reason="openvino is not installed")
def test_a_signal_after_openvino_finds_its_stack(exported):
    """In a process of its own: two networks come and go, then a child ends, which is a signal."""
    script = """
import gc, signal, subprocess, sys
import numpy as np
from i3d.tasks.network import open_network

signal.signal(signal.SIGCHLD, lambda *_: None)
networks = [open_network(sys.argv[1], runtime="openvino") for _ in range(2)]
while networks:
    networks.pop(0)
    gc.collect()
subprocess.run(["true"], check=True)
"""
    subprocess.run([sys.executable, "-c", script, exported()], check=True)
