"""Exported networks on other runtimes, against PyTorch and TensorFlow."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.exports import CLASSES, NO_OPENVINO, RUNTIMES, assert_same_outputs, noise
from support.golden import golden

from i3d.models.exported.runtimes import ExportedNetwork
from i3d.tasks.export import METADATA_FILE, export

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("stream", ["rgb", "flow"])
@settings(max_examples=6)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(9, 40),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
)
@example(batch=1, frames=9, height=1, width=1)
@example(batch=3, frames=10, height=64, width=33)
@example(batch=1, frames=17, height=35, width=98)
@example(batch=1, frames=64, height=32, width=31)
@example(batch=3, frames=65, height=63, width=34)
def test_any_number_length_and_size(opened, pytorch, runtime, stream, batch, frames, height, width):
    network = opened(runtime, stream)
    clip = noise(batch, {"rgb": 3, "flow": 2}[stream], frames, height, width)
    # measured 5e-7 of the largest logit on seven sizes
    assert_same_outputs(pytorch(stream), network.outputs(clip), clip, 1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_checkpoint_of_tensorflows_gives_tensorflows_logits(bundle_folder, tmp_path, runtime):
    result = export(bundle_folder("rgb400"), tmp_path / "rgb400.onnx")
    assert result.classes == "kinetics400"
    assert result.size_bytes < 51_000_000  # nothing is there twice
    network = ExportedNetwork(tmp_path / "rgb400.onnx", runtime=runtime)
    for name in ("rgb16a", "rgb23odd"):
        g = golden("rgb400", name)
        # measured 1.1e-4 with ONNX Runtime, 2.1e-4 with OpenVINO, where logits reach ±17
        np.testing.assert_allclose(network(g.clip).numpy(), g.outputs["logits"], atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("checkpoint", ["rgb400", "flow400", "rgb600"])
def test_all_of_tensorflows_outputs(bundle_folder, tmp_path, checkpoint, precision):
    export(bundle_folder(checkpoint), tmp_path / "it.onnx", precision=precision)
    stream = checkpoint[:-3]
    names = {"rgb": ("rgb16a", "rgb16b", "rgb23odd"), "flow": ("flow16a", "flow16b", "flow21odd")}
    for runtime in ("onnx",) if NO_OPENVINO else ("onnx", "openvino"):
        network = ExportedNetwork(tmp_path / "it.onnx", runtime=runtime)
        for name in names[stream]:
            g = golden(checkpoint, name)
            # measured 2.5e-4 (OpenVINO) and 0.16, where logits reach ±18.5
            atol = {"fp32": 5e-4, "fp16": 0.4}[precision]
            np.testing.assert_allclose(network(g.clip).numpy(), g.outputs["logits"], atol=atol)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_half_precision_keeps_three_digits(opened, pytorch, exported, runtime):
    clip = noise(2, 3, 17, 45, 70)
    # measured 6e-4 of the largest; what is left in float32 would be 1e-6
    outputs = opened(runtime, "rgb", "fp16").outputs(clip)
    assert outputs[0].dtype == torch.float32
    assert_same_outputs(pytorch("rgb"), outputs, clip, 5e-3)
    with pytest.raises(AssertionError):
        assert_same_outputs(pytorch("rgb"), outputs, clip, 1e-5)
    halves, floats = (exported("rgb", p).stat().st_size for p in ("fp16", "fp32"))
    assert halves < 0.55 * floats


def test_batch_norm_is_folded_and_padding_is_left_to_the_runtime(exported):
    graph = onnx.load(exported()).graph
    operators = {node.op_type for node in graph.node}
    assert operators == {
        "Conv", "Relu", "MaxPool", "Concat", "ReduceMean", "AveragePool", "Gemm"
    }  # fmt: skip
    assert sum(node.op_type == "Conv" for node in graph.node) == 57


def test_endpoints_can_be_cut_out_by_their_names(exported, pytorch, tmp_path):
    import onnxruntime

    # the recipe of docs/deploy.md
    onnx.utils.extract_model(exported(), tmp_path / "part.onnx", ["clip"], ["Mixed_4f"])
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    clip = noise(1, 3, 17, 64, 45)
    (ours,) = session.run(None, {"clip": clip.numpy()})
    with torch.inference_mode():
        expected = pytorch("rgb").endpoints(clip, ["Mixed_4f"])["Mixed_4f"]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow  # torch.export's symbols: 10 s to trace, and again to load
@pytest.mark.parametrize(("stream", "precision"), [("rgb", "fp32"), ("flow", "fp16")])
def test_a_pt2_file_is_a_program_of_pytorchs(exported, pytorch, stream, precision):
    extra = {METADATA_FILE: ""}
    program = torch.export.load(exported(stream, precision, ".pt2"), extra_files=extra)
    network = program.module()
    share = {"fp32": 1e-5, "fp16": 5e-3}[precision]
    for shape in [(1, 9, 1, 1), (3, 10, 64, 33), (1, 64, 32, 31), (2, 65, 35, 34)]:
        clip = noise(shape[0], {"rgb": 3, "flow": 2}[stream], *shape[1:])
        with torch.no_grad():
            outputs = network(clip)
        ours = outputs["logits"], outputs["features"]
        assert_same_outputs(pytorch(stream), ours, clip, share)
    assert json.loads(extra[METADATA_FILE])["classes"] == CLASSES
    with pytest.raises(AssertionError, match="9"):
        network(noise(1, {"rgb": 3, "flow": 2}[stream], 8, 40, 40))


def test_the_same_network_gives_the_same_bytes(exported, networks, tmp_path):
    export(networks["rgb"], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported().read_bytes()
