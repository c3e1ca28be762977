"""The export: what a file says of itself, its check against PyTorch, and predictions with it."""

import json
import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from support import bundles
from support.exports import CLASSES, RUNTIMES, metadata_of
from support.paths import ROOT
from support.videos import noise_images, write_video

import i3d
from i3d.cli import main
from i3d.errors import UsageError
from i3d.models.checkpoints import fingerprint, read_weights, save
from i3d.models.exported import graph as export_graph
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.tasks.export import CLIPS, export

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


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
    with pytest.raises(UsageError, match=rf"needs {package}.*pip install onnx {runtime}"):
        ExportedNetwork(path, runtime=runtime)
    if extra == "export":
        with pytest.raises(UsageError, match=rf"need {package}.*pip install onnx onnxruntime"):
            export(networks["rgb"], tmp_path / "out.onnx")


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
