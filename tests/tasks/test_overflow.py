"""A network whose numbers overflow: its video's error in every command, and JSON stays JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.bundles import small_model
from support.training import QUICK, write_shards
from support.videos import write_video

import i3d
from i3d.cli import main
from i3d.data.videos import VideoSet
from i3d.errors import DatasetError, VideoError
from i3d.models.checkpoints import read_weights
from i3d.models.i3d import Unit3D
from i3d.parallel.world import World
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.features.extraction import extract
from i3d.tasks.features.options import FeatureOptions
from i3d.tasks.fvd.metric import FrechetVideoDistance
from i3d.tasks.fvd.protocols import change_protocol
from i3d.tasks.train.options import RunOptions
from i3d.tasks.train.outcome import Trained
from i3d.tasks.train.plan import make_plan
from i3d.tasks.train.state import LogRow
from i3d.tasks.train.validation import validate

CLASSES = ("archery", "bowling", "clapping")
PRESET = "kinetics-i3d-48"
FP16_LARGEST = 65504.0
REMEDY = "at fp16, which overflowed; use --precision fp32"


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def strict_json(text):
    """As a parser reads it that knows JSON alone: Python's takes NaN."""
    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos of one gray each, in class folders."""
    root = tmp_path_factory.mktemp("gray") / "val"
    for name, gray in zip(CLASSES, (40, 128, 240), strict=True):
        write_video(root / name / "v.mp4", [np.full((56, 80, 3), gray, np.uint8)] * 20)
    return root


@pytest.fixture(scope="module")
def network(videos, tmp_path_factory):
    """Function: factor of its classifier -> checkpoint."""
    folder = tmp_path_factory.mktemp("networks")

    def make(factor):
        path = folder / f"{factor!r}.safetensors"
        model = small_model(num_classes=3, classes=CLASSES, preset=PRESET)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Unit3D):
                    module.conv.weight *= 1.5  # signals stay alive to the end
            model.Logits.Conv3d_0c_1x1.weight *= factor
        i3d.save(model, path)
        return path

    return make


@pytest.fixture(scope="module")
def one_overflows(videos, network):
    """A checkpoint whose logits are too large for fp16 for one of the videos; and that one."""
    options = EvaluateOptions(frames=16, workers=0, device="cpu")
    with pytest.warns(UserWarning, match="sorted list"):
        found = evaluate(
            VideoSet(videos, classes="folders"), {"rgb": network(1.0)}, options=options
        )
    table = found.evaluation.predictions
    largest = np.abs(table.logits["rgb"]).max(1)
    low, high = np.sort(largest)[-2:]
    return network(FP16_LARGEST / math.sqrt(low * high)), table.videos[largest.argmax()]


@pytest.fixture
def run(capsys):
    """Function: arguments -> (exit code, standard output, standard error)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return caught.value.code, out, err

    return call


def test_evaluate_skips_the_video(run, videos, one_overflows, tmp_path):
    checkpoint, bad = one_overflows
    code, out, err = run(
        *("evaluate", videos, "--classes", "folders", "--rgb-checkpoint", checkpoint, "--json"),
        *("--precision", "fp16", "--frames", 16, "--workers", 0, "--device", "cpu"),
        *("--predictions", tmp_path / "p.parquet", "--report", tmp_path / "page.html"),
    )
    assert out, err
    report = strict_json(out)
    assert (code, report["found"], report["evaluated"]) == (0, 3, 2)
    (skipped,) = report["skipped"]
    assert skipped["video"] == bad
    assert str(checkpoint) in skipped["reason"] and skipped["reason"].endswith(REMEDY)


def test_nothing_evaluated_is_an_error_with_the_remedy(run, videos, network):
    code, out, err = run(
        *("evaluate", videos, "--classes", "folders", "--rgb-checkpoint", network(1e9)),
        *("--precision", "fp16", "--frames", 16, "--workers", 0, "--device", "cpu", "--json"),
    )
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("i3d: none of 3 videos could be evaluated")
    assert err.strip().endswith(REMEDY)


@pytest.mark.parametrize("form", ["npz", "npy", "parquet", "hdf5"])
def test_features_of_the_video_are_not_done(run, videos, one_overflows, tmp_path, form):
    checkpoint, bad = one_overflows
    output = tmp_path / (f"out.{form}" if form in ("parquet", "hdf5") else "out")
    fixed = ("--window", 16, "--workers", 0, "--device", "cpu", "--endpoint", "Logits", "--json")
    code, out, _ = run(
        *("features", videos, output, "--checkpoint", checkpoint, "--precision", "fp16"),
        *("--format", form, *fixed),
    )
    result = strict_json(out)
    assert (code, result["found"], result["done"]) == (0, 3, 2)
    (skipped,) = result["skipped"]
    assert skipped["video"] == bad
    assert skipped["reason"].startswith("at 0 s ") and skipped["reason"].endswith(REMEDY)
    for path in tmp_path.rglob("*.json"):
        strict_json(path.read_text())


def test_features_of_later_windows_count_too(videos, one_overflows, tmp_path):
    """All chunks of a video come after one of its windows overflowed; the next video is sound."""
    checkpoint, bad = one_overflows
    options = FeatureOptions(
        window="9", step="1", batch_size=2, precision="fp16", workers=0, device="cpu",
        endpoint="Logits",
    )  # fmt: skip
    found = extract(videos, tmp_path / "out", [checkpoint], options=options)
    assert [video for video, _ in found.skipped] == [bad] and found.done == 2


def test_fvd_skips_the_video(run, network, tmp_path):
    grays = np.array([40, 128, 240], np.uint8)[:, None, None, None, None]
    pixels = np.broadcast_to(grays, (3, 9, 32, 32, 3))
    np.save(tmp_path / "real.npy", pixels)
    protocol = change_protocol("google-2018", {"frames": 9})
    features = FrechetVideoDistance(network(1.0), protocol, device="cpu").features(pixels)
    largest = np.abs(features).max(1)
    low, high = np.sort(largest)[-2:]
    checkpoint, bad = network(FP16_LARGEST / math.sqrt(low * high)), int(largest.argmax())
    np.save(tmp_path / "fake.npy", np.delete(pixels, bad, axis=0))
    code, out, _ = run(
        *("fvd", tmp_path / "real.npy", tmp_path / "fake.npy", "--checkpoint", checkpoint),
        *("--precision", "fp16", "--frames", 9, "--workers", 0, "--device", "cpu", "--json"),
    )
    result = strict_json(out)
    assert (code, result["real"]["used"], result["real"]["skipped"]) == (0, 2, 1)
    (reason,) = result["real"]["reasons"]
    assert reason["video"] == f"[{bad}]" and reason["reason"].endswith(REMEDY)


def test_fvd_in_memory_names_the_video(network):
    protocol = change_protocol("google-2018", {"size": 64})
    metric = FrechetVideoDistance(network(1e9), protocol, device="cpu", precision="fp16")
    with pytest.raises(DatasetError, match=rf"^videos\[0\]: .*{REMEDY}$"):
        metric.update(np.zeros((2, 16, 32, 32, 3), np.uint8))


def test_predict_gives_an_error_and_json(run, videos, network, tmp_path):
    """In fp32, as predict computes, only weights that are far too large do it."""
    path = videos / "bowling" / "v.mp4"
    checkpoint = network(1e38)
    code, out, err = run("predict", path, "--checkpoint", checkpoint, "--json", "--device", "cpu")
    (result,) = strict_json(out)["results"]
    assert code == 1
    assert result["error"].startswith(
        f"{path}: {checkpoint} gives infinity: its weights are damaged"
    )
    assert err == f"i3d: {result['error']}\n"
    with pytest.raises(VideoError, match=rf"{path}, 0 s: "):
        i3d.predict(path, checkpoints=[checkpoint], every_seconds=0.4, device="cpu")
    code, out, _ = run("predict", path, "--checkpoint", network(1.0), "--json", "--device", "cpu")
    assert code == 0 and len(strict_json(out)["results"][0]["predictions"]) == 3


def test_the_sum_of_two_networks_is_looked_at(videos, tmp_path):
    """Each is finite, both together are not."""
    model = small_model(num_classes=3, classes=CLASSES, preset=PRESET)
    with torch.no_grad():
        model.Logits.Conv3d_0c_1x1.weight.zero_()
        model.Logits.Conv3d_0c_1x1.bias.fill_(2e38)
    i3d.save(model, tmp_path / "large.safetensors")
    path = videos / "bowling" / "v.mp4"
    twice = [tmp_path / "large.safetensors"] * 2
    with pytest.raises(
        VideoError, match=f"{path}, 0 s: the sum of the networks' logits is too lar"
    ):
        i3d.predict(path, checkpoints=twice, every_seconds=0.4, device="cpu")


def test_predict_with_an_exported_network(run, videos, network, tmp_path):
    """ONNX Runtime computes what was exported as fp16 in fp16."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import numpy_helper

    code, _, err = run("export", network(1.0), tmp_path / "half.onnx", "--precision", "fp16")
    assert code == 0, err
    model = onnx.load(tmp_path / "half.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float16 and array.ndim == 5 and array.shape[0] == 3:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, 60000), tensor.name))
    onnx.save(model, tmp_path / "half.onnx")
    path = videos / "bowling" / "v.mp4"
    code, out, _ = run("predict", path, "--checkpoint", tmp_path / "half.onnx", "--json")
    (result,) = strict_json(out)["results"]
    assert code == 1
    assert result["error"].startswith(f"{path}: {tmp_path / 'half.onnx'} gives ")
    assert result["error"].endswith("overflowed; export it with --precision fp32")


def test_a_validation_skips_the_video(tmp_path, network):
    """Logits that are too large for bf16, whose range is float32's, are so for every video."""
    shards = write_shards(tmp_path / "shards", [20, 21, 22])
    options = replace(QUICK, epochs=1, batch_size=3, frames=20, precision="bf16")
    remedy = "at bf16, which overflowed; use --precision fp32"
    with pytest.raises(DatasetError, match=f"none of 3 videos could be evaluated.*{remedy}"):
        run = RunOptions("rgb", str(tmp_path / "run"), "scratch", str(shards), None, None)
        plan = make_plan(str(shards), run, options, World())
        validate(plan, read_weights(network(1e38)), step=1)


def test_a_gradient_that_overflowed_is_null_in_json():
    """At fp16 the scaler leaves such a step out; the row says inf in log.csv."""
    row = LogRow(step=3, epoch=1, loss=1.5, top1=0.5, learning_rate=0.1, gradient_norm=math.inf)
    trained = Trained(
        *("run", "rgb", 3, 9, 3, 1, 4), row, None, None, 1.0, 1.0, "cpu", 1
    )  # fmt: skip
    log = strict_json(json.dumps(trained.as_dict(), allow_nan=False))["log"]
    assert log["gradient_norm"] is None and log["loss"] == 1.5
