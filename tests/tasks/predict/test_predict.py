"""From a video file to class scores, against the steps written out with other libraries."""

import itertools
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
import torch
from support import bundles
from support.golden import shared
from support.videos import noise_images, video_bytes, write_video
from support.web import WebServer

import i3d
from i3d.cli import main
from i3d.errors import CheckpointError, UsageError, VideoError
from i3d.flow import optical_flow
from i3d.models.checkpoints import save
from i3d.tasks.predict import predictor

CLASSES = [f"action {i}" for i in range(7)]  # the fixtures'


def decoded(path) -> np.ndarray:
    """Frames by PyAV alone, uint8 (T, H, W, 3)."""
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def network_logits(path, clip: np.ndarray) -> np.ndarray:
    """clip: float32 (T, 224, 224, C)."""
    model = i3d.load(path, trainable=True).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(clip).permute(3, 0, 1, 2)[None])[0].numpy()


def expected_logits(networks, path, stream, length=250) -> np.ndarray:
    frames = decoded(path)[:length]
    if stream == "rgb":
        x = frames.astype(np.float32) / 127.5 - 1
    else:
        gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
        tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
        flow = np.stack([tvl1.calc(a, b, None) for a, b in itertools.pairwise(gray)])
        x = np.round(np.clip(flow, -20, 20) * 127 / 20) / 127
    left = (x.shape[2] - 224) // 2
    x = x[:, 16:240, left : left + 224].astype(np.float32)
    return network_logits(networks[stream], x[np.arange(length) % len(x)])


def logits_of(prediction) -> np.ndarray:
    (window,) = prediction.windows
    return window.logits


def test_rgb_prediction_is_the_protocol_written_out(networks, video):
    prediction = i3d.predict(video, checkpoints=[networks["rgb"]], top_k=3)
    expected = expected_logits(networks, video, "rgb")
    np.testing.assert_allclose(logits_of(prediction), expected, atol=1e-4)
    assert (prediction.frames, prediction.seconds) == (40, 1.6)
    probabilities = torch.from_numpy(expected).softmax(0)
    order = expected.argsort()[::-1][:3]
    assert [s.index for s in prediction.predictions] == order.tolist()
    assert [s.name for s in prediction.predictions] == [CLASSES[i] for i in order]
    for score in prediction.predictions:
        assert score.probability == pytest.approx(float(probabilities[score.index]), abs=1e-4)
        assert score.logit == pytest.approx(float(expected[score.index]), abs=1e-4)


def test_two_streams_are_the_sum_of_logits(networks, short_video):
    both = i3d.predict(short_video, checkpoints=[networks["rgb"], networks["flow"]])
    rgb = expected_logits(networks, short_video, "rgb")
    flow = expected_logits(networks, short_video, "flow")
    # Ours and OpenCV's flow differ by hundredths of a pixel, which moves the sum this little.
    spread = float(np.abs(flow - flow.mean()).max())
    np.testing.assert_allclose(logits_of(both), rgb + flow, atol=0.02 * spread)
    assert both.as_dict()["checkpoints"] == [str(networks["rgb"]), str(networks["flow"])]


def test_a_long_video_is_looked_at_for_ten_seconds(networks, tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, noise_images(300, width=64, height=48))
    prediction = i3d.predict(path, checkpoints=[networks["rgb"]])
    assert (prediction.frames, prediction.seconds) == (250, 10.0)


def test_windows_along_a_video(networks, video):
    prediction = i3d.predict(video, checkpoints=[networks["rgb"]], every_seconds=0.6, mean=True)
    frames = decoded(video)[:, 16:240, 58:282].astype(np.float32) / 127.5 - 1
    spans = [(0, 15), (15, 30), (30, 40)]  # the last one is looped to 15 frames
    assert len(prediction.windows) == 3
    for window, (start, end) in zip(prediction.windows, spans, strict=True):
        assert (window.start_seconds, window.end_seconds) == (start / 25, end / 25)
        clip = frames[start:end][np.arange(15) % (end - start)]
        expected = network_logits(networks["rgb"], clip)
        np.testing.assert_allclose(window.logits, expected, atol=1e-4)
    mean = np.mean([w.logits for w in prediction.windows], axis=0)
    assert prediction.predictions[0].logit == pytest.approx(float(mean.max()))
    assert len(prediction.as_dict()["windows"]) == 3


def test_a_short_rest_is_no_window_of_its_own(networks, video):
    # 40 frames in windows of 35: the rest of 5 is under the network's minimum of 9
    prediction = i3d.predict(video, checkpoints=[networks["rgb"]], every_seconds=1.4)
    assert [(w.start_seconds, w.end_seconds) for w in prediction.windows] == [(0, 1.4)]


def test_windows_adjoin_where_their_length_is_no_whole_number_of_frames(networks, video):
    """0.5 s are 12.5 frames: 12 and 13 by turns, and none is left out or looped."""
    windows = i3d.predict(video, networks["rgb"], every_seconds=0.5).windows
    spans = [(round(25 * w.start_seconds), round(25 * w.end_seconds)) for w in windows]
    assert spans == [(0, 12), (12, 25), (25, 38)]  # halves to even; the rest is under 9 frames
    frames = decoded(video)[12:25, 16:240, 58:282].astype(np.float32) / 127.5 - 1
    expected = network_logits(networks["rgb"], frames)
    np.testing.assert_allclose(windows[1].logits, expected, atol=1e-4)


def test_windows_farther_apart_than_ten_seconds(networks, tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, noise_images(360, width=64, height=48))
    prediction = i3d.predict(path, checkpoints=[networks["rgb"]], every_seconds=12)
    spans = [(w.start_seconds, w.end_seconds) for w in prediction.windows]
    assert spans == [(0, 10), (12, 14.4)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": 0}, UsageError, "top_k is 0"),
        ({"every_seconds": 0.1}, UsageError, "0.36 s"),
        ({"every_seconds": float("nan")}, UsageError, "0.36 s"),
        ({"device": "tpu"}, UsageError, "auto, cpu or cuda"),
        ({"checkpoints": []}, UsageError, "at least one"),
    ],
)
def test_wrong_arguments(networks, video, options, error, words):
    with pytest.raises(error, match=words):
        i3d.predict(video, **({"checkpoints": [networks["rgb"]]} | options))


def test_cuda_without_cuda_is_a_clear_error(networks, video):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match="sees no CUDA device"):
        i3d.predict(video, checkpoints=[networks["rgb"]], device="cuda")


def test_networks_of_other_classes_are_not_added(networks, video, tmp_path):
    save(bundles.small_model(num_classes=5), tmp_path / "five.safetensors")
    with pytest.raises(CheckpointError, match="5 classes that are not the 7"):
        i3d.predict(video, checkpoints=[networks["rgb"], tmp_path / "five.safetensors"])


def test_one_frame_has_no_flow(networks, tmp_path):
    path = tmp_path / "one.mp4"
    write_video(path, noise_images(1, width=64, height=48))
    assert i3d.predict(path, checkpoints=[networks["rgb"]]).frames == 1
    with pytest.raises(VideoError, match="no flow"):
        i3d.predict(path, checkpoints=[networks["flow"]])


# --- the command ----------------------------------------------------------------------------------


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_a_video_that_was_cut_short_says_so(networks, tmp_path, capsys):
    data = write_video(tmp_path / "whole.mkv", noise_images(30, 128, 96)).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) // 2])
    arguments = (cut, "--checkpoint", networks["rgb"])
    code, out, _ = run(capsys, *arguments, "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0 and 9 < result["frames"] < 30
    words = f"{cut}: the file ends after {len(data) // 2:,} of {len(data):,} bytes"
    assert result["damage"] == words
    assert f"  damaged: {words}" in run(capsys, *arguments)[1]


def test_json_is_the_contract_and_nothing_else(networks, video, capsys):
    code, out, _ = run(capsys, video, "--checkpoint", networks["rgb"], "--top_k", 2, "--json")
    assert code == 0
    (result,) = json.loads(out)["results"]
    keys = {"video", "frames", "seconds", "duration", "checkpoints", "predictions", "damage"}
    assert set(result) == keys
    assert result["video"] == video
    assert len(result["predictions"]) == 2
    assert set(result["predictions"][0]) == {"class", "index", "probability", "logit"}


def test_one_bad_video_does_not_stop_the_rest(networks, video, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    missing = tmp_path / "missing.mp4"
    code, out, err = run(
        capsys, bad, video, missing, video, "--checkpoint", networks["rgb"], "--json"
    )
    assert code == 1
    results = json.loads(out)["results"]
    assert [set(r) for r in results[::2]] == [{"video", "error"}] * 2
    assert results[1]["predictions"] == results[3]["predictions"]
    assert str(bad) in results[0]["error"]
    assert str(missing) in results[2]["error"]
    assert "2 of 4 videos predicted" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "rgb_imagenet_kinetics40"], "did you mean rgb_imagenet_kinetics400"),
        (["--checkpoint", "RGB", "--every", "0.1"], "0.36 s"),
        (["--checkpoint", "RGB", "--every", "1e308"], "one a year at least"),
        (["--no-such-option"], "no-such-option"),
        (["--top-k", "many"], "top-k"),
        (["--checkpoint", "RGB", "--plot", "x.xyz"], ".xyz|suffixes"),
        (["--checkpoint", "none.ckpt", "--plot", "no folder/x.svg"], "to the folder no folder"),
    ],
)
def test_mistakes_in_the_call_exit_with_2(networks, video, capsys, arguments, words):
    arguments = [networks["rgb"] if a == "RGB" else a for a in arguments]
    code, _, err = run(capsys, video, *arguments)
    assert code == 2
    assert any(word in err for word in words.split("|")), err
    assert "Traceback" not in err


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot_is_a_picture_of_the_timeline(networks, video, tmp_path, capsys, suffix):
    pytest.importorskip("matplotlib")
    target = tmp_path / f"plot.{suffix}"
    code, _, _ = run(
        capsys, video, "--checkpoint", networks["rgb"], "--every", 0.6, "--plot", target
    )
    assert code == 0
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [target.name]
    if suffix == "png":
        picture = cv2.imread(str(target))
        assert picture.shape[1] > 1000
        assert picture.std() > 10  # not blank
    elif suffix == "svg":
        root = ElementTree.parse(target).getroot()
        texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "noise.mp4" in texts and "1.6 s, 3 windows" in texts
    else:
        assert target.read_bytes().startswith(b"%PDF")


def test_python_m_i3d_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "i3d", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"i3d, version {i3d.__version__}\n"


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("arm_wrestling_340x256_28fps.mp4", 250),
        ("mpeg4_320x240_25fps.avi", 164),
        ("v_GGSY1Qvo990_320x240_19.62fps.mp4", 250),  # the first ten of its 18 seconds
    ],
)
def test_real_clips(networks, name, frames):
    prediction = i3d.predict(shared("clips", name), checkpoints=[networks["rgb"]])
    assert (prediction.frames, prediction.seconds) == (frames, frames / 25)


def test_flow_takes_the_cores_and_the_device_that_it_may(networks, short_video, monkeypatch):
    asked = []

    def note(frames, **how):
        asked.append(how)
        return optical_flow(frames, threads=how["threads"])

    monkeypatch.setattr(predictor, "optical_flow", note)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    network = i3d.tasks.predict.Predictor([networks["flow"]], device="cpu")
    network.predict(short_video)
    assert asked == [{"device": "cpu", "threads": 3}]
    frames = i3d.read_video(short_video)
    monkeypatch.setattr(predictor, "choose_device", lambda _: "cuda:1")
    monkeypatch.setattr(predictor, "open_network", lambda *_, **__: network.models[0])
    for check, device in ((lambda _: None, "cuda:1"), (predictor.check_device, "cpu")):
        # there is no such GPU here: where flow is asked for is what counts
        monkeypatch.setattr(predictor, "check_device", check)
        i3d.tasks.predict.Predictor([networks["flow"]])._flow(frames, "x")
        assert asked[-1]["device"] == device


def test_videos_on_servers_that_fail(networks, capsys, monkeypatch):
    """Each with its cause; the others are predicted."""
    monkeypatch.setattr("i3d.web.ANSWER_SECONDS", 0.1)
    with WebServer() as server, WebServer() as gone:
        gone.close()
        server.files["/good.mp4"] = video_bytes(10)
        server.failures["/forbidden.mp4"] = 403
        names = ["forbidden.mp4", "absent.mp4", "good.mp4"]
        urls = [f"{server.url.replace('://', '://me:s3cret@')}/{name}" for name in names]
        with pytest.raises(SystemExit) as caught:
            options = ["--json", "--device", "cpu", "--every", "0.4"]
            main(["predict", *urls, f"{gone.url}/x", *options, "--checkpoint", networks["rgb"]])
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert "s3cret" not in said.out + said.err
    results = json.loads(said.out)["results"]
    assert "HTTP 403" in results[0]["error"]
    assert "cannot open http" in results[1]["error"] and "404" in results[1]["error"]
    assert results[2]["video"] == f"http://***@{server.host}/good.mp4"
    assert "connection refused" in results[3]["error"]
    for result in results:
        assert str(result.get("error", "")) in said.err


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt", "onnx", "ckpt"])
def test_what_is_no_file_is_refused(suffix, networks, tmp_path, capsys):
    fifo = tmp_path / f"fifo.{suffix}"
    os.mkfifo(fifo)
    (tmp_path / "x.index").symlink_to(fifo)
    name = tmp_path / "x" if suffix == "ckpt" else fifo
    for arguments in (["x.mp4", "--checkpoint", name], [fifo, "--checkpoint", networks["rgb"]]):
        with pytest.raises(SystemExit) as caught:
            main(["predict", "--device", "cpu", *map(str, arguments)])
        assert caught.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "not a regular file (a FIFO)" in line
        assert str(arguments[0] if arguments[0] == fifo else name) in line


def test_names_on_the_command_line(networks, tmp_path, monkeypatch, capsys):
    names = ["~x.mp4", "-x_y.mp4", "--debug", "50%.mp4", "a#b?c.mp4", "d e.mp4", "f\ng.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(video_bytes(10))
    monkeypatch.chdir(tmp_path)
    options = ["--json", "--device", "cpu", "--every", "0.4", "--checkpoint", networks["rgb"]]
    with pytest.raises(SystemExit) as caught:
        main(["predict", *options, "--", *names])
    assert caught.value.code == 0
    assert [r["video"] for r in json.loads(capsys.readouterr().out)["results"]] == names
