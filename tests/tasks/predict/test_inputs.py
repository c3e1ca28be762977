"""What people have: folders, standard input, arrays, lists, web pages; and what is printed."""

import contextlib
import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.command import exit_code
from support.videos import noise_images, write_video
from support.web import WebServer

import i3d
from i3d.errors import CheckpointError, I3DError, UsageError
from i3d.tasks.predict import Prediction
from i3d.video import AheadReader, FrameReader


def logits(prediction):
    return np.stack([window.logits for window in prediction.windows])


@pytest.fixture(scope="module")
def predictor(networks):
    return i3d.Predictor(networks["rgb"], device="cpu")


# --- arrays and lists -----------------------------------------------------------------------------


def test_frames_give_what_their_file_gives(predictor, video):
    frames = i3d.read_video(video)
    expected = logits(predictor(video, every_seconds=0.6))
    for given in (frames, torch.from_numpy(frames)):
        found = predictor(given, every_seconds=0.6)
        np.testing.assert_array_equal(logits(found), expected)
    assert (found.video, found.duration, found.frames) == ("<40 frames>", 1.6, 40)


@pytest.mark.parametrize("fps", [12.5, 25, 30, 50])
def test_frames_of_any_rate_and_size(tmp_path, fps):
    """As the file of them is read: lossless, so that the reader sees the same pixels."""
    images = np.stack(noise_images(30, width=120, height=80))
    path = tmp_path / "x.mkv"
    write_video(path, images, rate=Fraction(fps), codec="ffv1", pixel_format="bgr0")
    expected = i3d.read_video(path, short_side=64)
    with FrameReader(images, source_fps=fps, short_side=64) as reader:
        np.testing.assert_array_equal(np.stack(list(reader)), expected)
    assert reader.duration_seconds == 30 / fps


@pytest.mark.parametrize(
    "frames",
    [np.zeros((3, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8),
     np.zeros((0, 8, 8, 3), np.uint8), torch.zeros(3, 3, 8, 8, dtype=torch.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(predictor, frames):
    with pytest.raises(UsageError, match=r"uint8 \(T, H, W, 3\)"):
        predictor(frames)


def test_a_rate_is_of_an_array(predictor, video):
    with pytest.raises(UsageError, match="a file says its own"):
        predictor(video, fps=30)
    for fps in (0, -1, 1e-320, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"it must be 0\.001 or more"):
            predictor(np.zeros((3, 8, 8, 3), np.uint8), fps=fps)


@pytest.mark.parametrize("short_side", [256, 64])
def test_a_video_that_is_being_read_already(predictor, video, short_side):
    """As the network wants it, or otherwise: then it is read again."""
    expected = predictor(video)
    with AheadReader(video, end_seconds=10, fps=25, short_side=short_side) as early:
        found = predictor(early)
    np.testing.assert_array_equal(logits(found), logits(expected))
    assert found.as_dict() == expected.as_dict()


def test_a_list_gives_a_list(predictor, video):
    frames = i3d.read_video(video)
    one, two = predictor([video, frames])
    np.testing.assert_array_equal(logits(one), logits(two))
    first, second = predictor(iter([Path(video), Path(video).read_bytes()]))
    assert first.video == video and second.video.endswith("bytes>")
    assert predictor([]) == []


def test_a_bad_video_of_many_is_its_error(predictor, video, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    outcomes = list(predictor.predict_many([tmp_path / "bad.mp4", video]))
    assert isinstance(outcomes[0], I3DError) and isinstance(outcomes[1], Prediction)


def test_a_network_in_memory_is_a_checkpoint(networks, video):
    model = i3d.load(networks["rgb"], trainable=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = i3d.predict(video, model, device="cpu")
    np.testing.assert_array_equal(
        logits(found), logits(i3d.predict(video, networks["rgb"], device="cpu"))
    )
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not model.folded


def test_what_is_trained_on_changes_no_predictor(networks, video):
    model = i3d.load(networks["rgb"], trainable=True)
    kept = i3d.Predictor(model, device="cpu")
    before = logits(kept(video))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    np.testing.assert_array_equal(logits(kept(video)), before)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_network_of_another_precision_is_refused(networks, trainable):
    model = i3d.load(networks["rgb"], trainable=trainable).half()
    with pytest.raises(
        UsageError, match=r"the rgb network in memory has parameters in torch\.float16"
    ):
        i3d.Predictor(model, device="cpu")


def test_the_folder_of_a_training_is_a_checkpoint(networks, video, tmp_path, capsys):
    """Its best network, or where nothing was validated its newest."""
    words = ("predict", video, "--checkpoint", tmp_path, "--json")
    for name in ("last", "best"):
        other = i3d.load(networks["rgb"], trainable=True)
        with torch.no_grad():
            other.get_parameter("Logits.Conv3d_0c_1x1.bias").mul_(2 if name == "best" else 1)
        i3d.save(other, tmp_path / f"{name}.safetensors")
        assert exit_code(*words) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        expected = i3d.predict(video, other, device="cpu").predictions
        assert [p["logit"] for p in result["predictions"]] == [p.logit for p in expected]
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        i3d.Predictor(tmp_path.parent)


# --- folders, standard input, servers -------------------------------------------------------------


def test_a_folder_is_all_the_videos_in_it(networks, video, tmp_path, capsys):
    for name in ("b.mp4", "a/c.MP4", "a/b/d.webm", ".hidden/e.mp4", "a/.f.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no video")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert exit_code("predict", tmp_path, video, "--checkpoint", networks["rgb"], "--json") == 0
    out, err = capsys.readouterr()
    found = [result["video"] for result in json.loads(out)["results"]]
    names = ["b.mp4", "a/c.MP4", "a/b/d.webm"]
    assert found == [*(str(tmp_path / name) for name in names), video]
    assert f"{tmp_path}: 3 videos; 1 other files are left out" in err
    assert "4 of 4 videos predicted" in err


def test_a_folder_without_videos(networks, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("x")
    assert exit_code("predict", tmp_path, "--checkpoint", networks["rgb"]) == 2
    assert "no videos in this folder; their suffixes are 3gp, avi" in capsys.readouterr().err


def run_with_input(data, *words):
    return subprocess.run(
        [sys.executable, "-m", "i3d", "predict", *map(str, words)],
        input=data,
        capture_output=True,
        check=False,
        env=os.environ | {"I3D_MAX_COPY_GIB": "0.001"},
    )


def test_standard_input(networks, video, predictor):
    done = run_with_input(Path(video).read_bytes(), "-", "--checkpoint", networks["rgb"], "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert done.returncode == 0 and result["video"] == "<stdin>"
    best = predictor(video).predictions[0]
    assert result["predictions"][0]["class"] == best.name
    assert result["predictions"][0]["logit"] == pytest.approx(best.logit, abs=1e-4)


def test_standard_input_has_a_bound(networks):
    done = run_with_input(bytes(2 << 20), "-", "--checkpoint", networks["rgb"])
    line = done.stderr.decode().strip()
    assert done.returncode == 1 and done.stdout == b""
    assert line.startswith("i3d: <stdin>: more than 0.001 GiB, from standard input, which must be")


def test_standard_input_that_is_closed(networks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert exit_code("predict", "-", "--checkpoint", networks["rgb"]) == 2
    assert "standard input, which is closed" in capsys.readouterr().err


def test_an_empty_name_is_no_folder(networks, capsys):
    """As from a variable that is not set."""
    assert exit_code("predict", "", "--checkpoint", networks["rgb"]) == 2
    assert "a video's name is empty" in capsys.readouterr().err


def test_a_name_that_the_system_refuses_stops_no_other(networks, video, capsys):
    words = ("predict", "a" * 300, video, "--checkpoint", networks["rgb"], "--json")
    assert exit_code(*words) == 1
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert "too long" in first["error"] and second["video"] == video


@pytest.mark.parametrize("option", ["--plot", "--map"])
def test_an_output_is_no_input(networks, video, tmp_path, capsys, option):
    """Under another name, too; a picture has one that plots may have."""
    path = tmp_path / ("x.svg" if option == "--plot" else "x.mp4")
    shutil.copy(video, path)
    other = path.with_stem("y")
    os.link(path, other)
    words = ("predict", path, "--checkpoint", networks["rgb"], option, other)
    assert exit_code(*words) == 2
    assert "that is the video itself" in capsys.readouterr().err
    assert path.read_bytes() == Path(video).read_bytes()


def test_standard_input_is_no_output(networks, video, tmp_path):
    path = tmp_path / "x.mp4"
    shutil.copy(video, path)
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "i3d", "predict", "-", "--map", path,
             "--checkpoint", networks["rgb"]],
            stdin=file, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and b"that is the video itself" in done.stderr
    assert path.read_bytes() == Path(video).read_bytes()


def test_standard_input_is_read_once(networks, capsys):
    assert exit_code("predict", "-", "-", "--checkpoint", networks["rgb"]) == 2
    assert "can be read once" in capsys.readouterr().err


def test_servers_say_what_is_wrong(networks, capsys):
    with WebServer() as server:
        server.files["/page.mp4"] = b"\n<!DOCTYPE html>\n<html><body>sign in</body></html>"
        for name, words in (
            ("none.mp4", "no such file (HTTP 404 Not Found)"),
            ("page.mp4", "page.mp4 is a web page, not a video; give the address of the video's"),
        ):
            words_given = ("predict", f"{server.url}/{name}", "--checkpoint", networks["rgb"])
            assert exit_code(*words_given) == 1
            err = capsys.readouterr().err
            assert words in err and len(err.splitlines()) == 1


# --- what is printed ------------------------------------------------------------------------------


def test_the_first_line_says_what_was_not_looked_at(predictor, tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, noise_images(300, 64, 48))
    first = str(predictor(path)).splitlines()[0]
    assert first == f"{path}  (the first 10.0 of 12.0 s; --every 2.56 looks at all of it)"
    assert predictor(path).duration == 12.0
    assert str(predictor(path, every_seconds=4)).startswith(f"{path}  (12.0 s, 3 windows)\n")


def test_windows_appear_as_they_are_computed(networks, video, capsys):
    words = ("predict", video, "--checkpoint", networks["rgb"], "--every", "0.6", "--mean")
    assert exit_code(*words) == 0
    out, err = capsys.readouterr()
    spans = [line.split(" s ")[0].split() for line in err.splitlines() if " s  " in line]
    assert spans == [["0.00", "-", "0.60"], ["0.60", "-", "1.20"], ["1.20", "-", "1.60"]]
    assert "mean of the windows:" in out
    assert exit_code(*words[:-1]) == 0
    assert "mean of the windows:" not in capsys.readouterr().out


def test_results_go_to_their_file_while_a_bar_is_on_the_terminal(networks, video):
    terminal, side = pty.openpty()
    drawn = []

    def draw():
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(terminal, 4096):
                drawn.append(data)

    thread = threading.Thread(target=draw)
    thread.start()
    done = subprocess.run(
        [sys.executable, "-m", "i3d", "predict", video, video, "--checkpoint", networks["rgb"]],
        stdout=subprocess.PIPE,
        stderr=side,
        check=True,
    )
    os.close(side)
    thread.join()
    os.close(terminal)
    assert done.stdout.decode().count(f"{video}  (40 frames, 1.6 s)") == 2
    assert b"predict" in b"".join(drawn) and b"40 frames" not in b"".join(drawn)


def test_the_mean_is_of_windows(networks, video, capsys):
    assert exit_code("predict", video, "--checkpoint", networks["rgb"], "--mean") == 2
    assert "give every_seconds as well" in capsys.readouterr().err


def test_csv_has_a_row_a_segment(networks, video, predictor, tmp_path, capsys):
    named = tmp_path / "=1+1, x.mp4"
    shutil.copy(video, named)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    words = ("predict", named, tmp_path / "bad.mp4", "--checkpoint", networks["rgb"])
    assert exit_code(*words, "--every", "0.6", "--csv") == 1
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    columns = "video start_seconds end_seconds class index probability error"
    assert header == columns.split()
    segments = predictor(named, every_seconds=0.6).segments
    for row, segment in zip(rows, segments, strict=False):
        assert row[0] == str(named)
        assert (float(row[1]), float(row[2])) == (segment.start_seconds, segment.end_seconds)
        assert row[3] == (segment.name or "") and row[6] == ""
        assert row[4] == ("" if segment.index is None else str(segment.index))
    (failed,) = rows[len(segments) :]
    assert failed[0].endswith("bad.mp4") and "not a video" in failed[6] and not any(failed[1:6])
    assert exit_code(*words, "--csv", "--json") == 2


def test_the_secrets_of_an_address_take_no_cell_with_them(networks, video, capsys):
    with WebServer() as server:
        server.files["/x.mp4"] = Path(video).read_bytes()
        name = f"{server.url}/x.mp4?X-Amz-Signature=abc"
        words = ("predict", name, f"{server.url}/y.mp4?token=abc", "--csv")
        assert exit_code(*words, "--checkpoint", networks["rgb"]) == 1
    _, row, failed = csv.reader(io.StringIO(capsys.readouterr().out))
    assert len(row) == len(failed) == 7 and row[1:3] == ["0.0", "1.6"] and row[6] == ""
    assert row[0] == f"{server.url}/x.mp4?X-Amz-Signature=***"
    assert "404" in failed[6] and "abc" not in failed[0] + failed[6]


def test_pictures_that_change_between_windows_are_no_still(predictor):
    """Each of a second, in windows of a second."""
    slides = np.stack(noise_images(3, 64, 48))
    assert not predictor(slides, fps=1, every_seconds=1).still
    assert predictor(slides[:1], fps=0.2, every_seconds=1).still


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.mp4"])
def test_a_still_picture_gets_a_warning(networks, tmp_path, capsys, name):
    path = tmp_path / name
    image = noise_images(1, 64, 48)[0]
    if name == "x.mp4":
        write_video(path, [image] * 12, codec="ffv1", container="matroska", pixel_format="bgr0")
    else:
        cv2.imwrite(str(path), image)
    assert exit_code("predict", path, "--checkpoint", networks["rgb"]) == 0
    assert f"warning: {path}: a still picture" in capsys.readouterr().err
