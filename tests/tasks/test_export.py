"""Exported networks on other runtimes, against PyTorch, TensorFlow and files that lie."""

import importlib.util
import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import bundles
from support.golden import golden
from support.paths import ROOT
from support.videos import noise_images, write_video

import i3d
from i3d.cli import main
from i3d.errors import CheckpointError, I3DError, UsageError
from i3d.models.checkpoints import fingerprint, read_weights, save
from i3d.models.exported import graph as export_graph
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.tasks.export import CLIPS, METADATA_FILE, export

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'i3d[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

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
    folder = tmp_path_factory.mktemp("networks")
    paths = {}
    for stream in ("rgb", "flow"):
        paths[stream] = folder / f"{stream}.safetensors"
        save(bundles.small_model(stream=stream, num_classes=None, classes=CLASSES), paths[stream])
    return paths


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


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("stream", ["rgb", "flow"])
@settings(max_examples=12)
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


# --- what the file says of itself -----------------------------------------------------------------


def metadata_of(path) -> dict:
    (prop,) = onnx.load(path).metadata_props
    assert prop.key == "i3d"
    return json.loads(prop.value)


def test_metadata_say_what_the_network_is(exported, networks):
    metadata = metadata_of(exported())
    assert metadata["classes"] == CLASSES
    assert metadata["num_classes"] == 7
    assert metadata["stream"] == "rgb"
    assert metadata["preset"] == "kinetics-i3d"
    assert metadata["i3d"] == i3d.__version__
    assert metadata["weights_sha256"] == fingerprint(read_weights(networks["rgb"]))
    network = ExportedNetwork(exported())
    assert (network.stream, network.classes) == ("rgb", tuple(CLASSES))
    assert network.weights_sha256 == metadata["weights_sha256"]


def test_a_clip_made_by_the_metadata_is_ours(exported):
    rng = np.random.default_rng(0)
    p = metadata_of(exported("rgb"))["preprocessing"]
    assert (p["fps"], p["short_side"], p["crop"], p["clip_frames"]) == (25, 256, 224, 250)
    frames = rng.integers(0, 256, (9, 256, 300, 3), dtype=np.uint8)
    crop = frames[:, 16:240, 38:262]
    clip = ((crop - np.float32(p["mean"])) / np.float32(p["std"])).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(clip, i3d.rgb_clip(frames))

    p = metadata_of(exported("flow"))["preprocessing"]
    flow = rng.normal(0, 15, (9, 256, 300, 2)).astype(np.float32)
    crop = flow[:, 16:240, 38:262]
    bound, mean, std = (np.float32(p[k]) for k in ("flow_bound_pixels", "mean", "std"))
    stored = np.round(np.clip(crop, -bound, bound) * std / bound) + mean
    clip = ((stored - mean) / std).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(clip, i3d.flow_clip(flow))


def test_a_network_without_names_stays_without(tmp_path):
    save(bundles.small_model(num_classes=4), tmp_path / "four.safetensors")
    export(tmp_path / "four.safetensors", tmp_path / "four.onnx")
    assert metadata_of(tmp_path / "four.onnx")["classes"] is None
    network = ExportedNetwork(tmp_path / "four.onnx")
    assert network.classes == i3d.load(tmp_path / "four.safetensors").classes


def test_the_same_network_gives_the_same_bytes(exported, networks, tmp_path):
    export(networks["rgb"], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported().read_bytes()


# --- the check in the command ---------------------------------------------------------------------


def test_the_errors_are_reported(networks, tmp_path, capsys):
    target = tmp_path / "out.onnx"
    code, out, _ = run(capsys, "export", networks["flow"], target, "--json")
    assert code == 0
    result = json.loads(out)
    assert [check["clip"] for check in result["checks"]] == [[b, 2, *size] for b, *size in CLIPS]
    assert all(frames % 2 for _, frames, _, _ in CLIPS)
    for check in result["checks"]:
        assert 0 < check["logits_error"] < 1e-5 * check["largest_logit"]
        assert 0 < check["features_error"] < 1e-5 * check["largest_feature"]
    code, out, _ = run(capsys, "export", networks["flow"], target)
    assert code == 0
    assert "1 x 33x48x65" in out
    assert f"{result['checks'][2]['logits_error']:.1e}" in out


SYMMETRIC = {"auto_pad": "NOTSET", "pads": [3] * 6, "kernel_shape": (7, 7, 7)}


@pytest.mark.parametrize(
    ("wrong", "precision"),
    [  # measured 4e-2 to 7e-2 and, of the first convolution alone, 5e-3 to 9e-3 of the largest
        ({"auto_pad": "SAME_LOWER"}, "fp32"),
        ({"auto_pad": "SAME_LOWER"}, "fp16"),
        (SYMMETRIC, "fp32"),
    ],
)
def test_a_file_with_other_numbers_is_not_written(
    networks, tmp_path, capsys, monkeypatch, wrong, precision
):
    real = export_graph._Graph.add

    def add(self, operator, inputs, output, **attributes):
        if attributes.get("auto_pad") and attributes["kernel_shape"] == wrong.get(
            "kernel_shape", attributes["kernel_shape"]
        ):
            attributes |= wrong
        return real(self, operator, inputs, output, **attributes)

    monkeypatch.setattr(export_graph._Graph, "add", add)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"an older file")
    code, _, err = run(capsys, "export", networks["rgb"], target, "--precision", precision)
    assert code == 1
    assert "not written" in err
    assert "differ" in err
    assert [p.read_bytes() for p in tmp_path.glob("*out*")] == [b"an older file"]


def test_weights_that_half_precision_cannot_hold(tmp_path, capsys):
    model = bundles.small_model()
    with torch.no_grad():
        model.Conv3d_2b_1x1.conv.weight[0] = 1e6
    save(model, tmp_path / "large.safetensors")
    target = tmp_path / "large.onnx"
    arguments = ["export", tmp_path / "large.safetensors", target]
    code, _, err = run(capsys, *arguments, "--precision", "fp16")
    assert code == 1
    assert "use --precision fp32" in err
    assert not target.exists()
    assert run(capsys, *arguments)[0] == 0


# --- predict --------------------------------------------------------------------------------------


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "short.mp4"
    write_video(path, noise_images(12, width=256, height=256))
    return str(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_streams_predict_as_in_pytorch(exported, networks, video, capsys, runtime):
    results = {}
    for suffix, files in (
        ("torch", networks),
        (runtime, {s: exported(s) for s in ("rgb", "flow")}),
    ):
        code, out, _ = run(
            capsys, "predict", video, "--json", "--runtime", suffix,
            "--checkpoint", files["rgb"], "--checkpoint", files["flow"],
        )  # fmt: skip
        assert code == 0
        (results[suffix],) = json.loads(out)["results"]
    ours, theirs = results[runtime], results["torch"]
    assert ours["checkpoints"] == [str(exported("rgb")), str(exported("flow"))]
    assert ours.keys() == theirs.keys()
    assert (ours["video"], ours["frames"]) == (theirs["video"], theirs["frames"])
    for a, b in zip(ours["predictions"], theirs["predictions"], strict=True):
        assert (a["class"], a["index"]) == (b["class"], b["index"])
        assert a["logit"] == pytest.approx(b["logit"], abs=1e-5)  # measured 2e-6
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_an_onnx_file_needs_no_option_and_mixes_with_others(exported, networks, video):
    mixed = i3d.predict(video, checkpoints=[exported("rgb"), networks["flow"]])
    plain = i3d.predict(video, checkpoints=[networks["rgb"], networks["flow"]])
    np.testing.assert_allclose(mixed.windows[0].logits, plain.windows[0].logits, atol=1e-5)


@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        ("ONNX", {"runtime": "torch"}, "PyTorch does not run .onnx"),
        ("TORCH", {"runtime": "onnx"}, "i3d export .*safetensors OUT.onnx"),
        ("TORCH", {"runtime": "openvino"}, "runs .onnx files"),
        ("ONNX", {"runtime": "tensorrt"}, "torch, onnx or openvino"),
        ("nowhere.onnx", {}, "nowhere.onnx: no such file"),
        ("program.pt2", {}, "can run any code"),
    ],
)
def test_runtimes_that_do_not_fit(exported, networks, video, checkpoint, options, words):
    path = {"ONNX": exported(), "TORCH": networks["rgb"]}.get(checkpoint, checkpoint)
    with pytest.raises(UsageError, match=words):
        i3d.predict(video, checkpoints=[path], **options)


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("out.tflite", [], "ends in .onnx or .pt2"),
        ("out", [], "without suffix"),
        ("out.onnx", ["--precision", "int8"], "int8"),
    ],
)
def test_exports_that_cannot_be(networks, tmp_path, capsys, output, options, words):
    code, _, err = run(capsys, "export", networks["rgb"], tmp_path / output, *options)
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("package", "runtime", "extra"),
    [
        ("onnxruntime", "onnx", "export"),
        ("onnx", "onnx", "export"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_packages_are_named(
    exported, networks, tmp_path, monkeypatch, package, runtime, extra
):
    path = exported()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}.*pip install 'i3d\[{extra}\]'"):
        ExportedNetwork(path, runtime=runtime)
    if extra == "export":
        with pytest.raises(UsageError, match=rf"need {package}.*pip install 'i3d\[export\]'"):
            export(networks["rgb"], tmp_path / "out.onnx")


def test_clips_that_do_not_fit(opened):
    for shape in [(3, 9, 32, 32), (1, 2, 9, 32, 32), (1, 3, 8, 32, 32)]:
        with pytest.raises(I3DError, match="9 frames"):
            opened("onnx")(torch.zeros(shape))


# --- files that lie -------------------------------------------------------------------------------


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


def test_the_recipe_for_programs_without_i3d(exported, networks, monkeypatch, capsys):
    text = (ROOT / "docs" / "deploy.md").read_text()
    code = re.search(r"    import json\n(?:    .*\n|\n)+", text)[0]
    monkeypatch.chdir(exported().parent)
    (exported().parent / "rgb.onnx").write_bytes(exported().read_bytes())
    frames = np.stack(noise_images(12, width=300, height=256))
    scope = {"frames": frames}
    exec(textwrap.dedent(code), scope)
    with torch.inference_mode():
        clip = i3d.rgb_clip(frames[np.arange(250) % 12])[None]
        expected = i3d.load(networks["rgb"])(clip).numpy()
    np.testing.assert_allclose(scope["logits"], expected, atol=1e-5)
    best = capsys.readouterr().out.splitlines()[0]
    assert best.split("  ")[-1] == CLASSES[int(expected.argmax())]


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
