"""Feature files: the network's numbers, whatever the format, the process and the interruption."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from urllib.parse import quote

import cv2
import fsspec
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import save_pair, small_model
from support.golden import golden
from support.videos import noise_images, write_video

import i3d
from i3d import files
from i3d.cli import main
from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.errors import CheckpointError, DatasetError, UsageError
from i3d.parallel.world import World
from i3d.records import seal_archive
from i3d.tasks.features import extraction
from i3d.tasks.features.extraction import extract
from i3d.tasks.features.files import FAILURE_KIND, MAX_NAME_BYTES, FeatureFolder, file_names
from i3d.tasks.features.options import FeatureOptions
from i3d.tasks.network import compute
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute

PRESET = "kinetics-i3d-48"  # short side 48, crop 42
FAST = FeatureOptions(window="16", step="8", workers=0, device="cpu")
# Batches of one against batches of several, another order of sums; measured 3.6e-7 of ±1.3.
NOISE = 3e-6
LENGTHS = {"a.b": 41, "long #1": 70, "short": 11}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos, names with a dot, a space and a hash; one is shorter than a window."""
    root = tmp_path_factory.mktemp("videos") / "clips"
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        images = [cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(frames, 80, 56, seed)]
        write_video(root / f"{name}.mp4", images)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return list(save_pair(folder, num_classes=3, preset=PRESET).values())


@pytest.fixture(scope="module")
def clips(videos):
    """name -> stream -> float32 (C, T, 42, 42): the whole video by the formulas, in NumPy."""
    found = {}
    for name in LENGTHS:
        frames = i3d.read_video(videos / f"{name}.mp4", short_side=48)
        top, left = (frames.shape[1] - 42) // 2, (frames.shape[2] - 42) // 2
        flow = np.clip(i3d.optical_flow(frames), -20, 20)
        stored = np.rint(flow * np.float32(127) / np.float32(20))
        both = {"rgb": frames / 127.5 - 1, "flow": stored / 127}
        found[name] = {
            s: x[:, top : top + 42, left : left + 42].transpose(3, 0, 1, 2).astype(np.float32)
            for s, x in both.items()
        }
    return found


@pytest.fixture(scope="module")
def reference(videos, checkpoints, tmp_path_factory):
    """A finished folder of both streams."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    assert extract(videos, folder, checkpoints, options=FAST).done == 3
    return folder


def read(path):
    with np.load(path, allow_pickle=False) as z:
        return dict(z) | {"about": json.loads(str(z["about"]))}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def direct(model, clip, start, window):
    """The features (T', C) of a slice, looped where the video has no more."""
    part = clip[:, start : start + window]
    part = part[:, np.arange(window) % part.shape[1]]
    return model.features(torch.from_numpy(part[None]))[0].T.numpy()


@pytest.fixture
def run(capsys):
    """Function: arguments -> (exit code, standard output, standard error)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


def command(videos, output, checkpoints, *options):
    named = [part for c in checkpoints for part in ("--checkpoint", c)]
    fixed = ("--window", "16", "--step", "8", "--workers", "0", "--device", "cpu")
    return [str(a) for a in ("features", videos, output, *named, *fixed, *options)]


# --- the numbers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_video(tmp_path_factory):
    """The original graph's input in the middle of a lossless video of 256 x 256."""
    clip = golden("rgb400", "rgb16a").clip[0].permute(1, 2, 3, 0)  # (T, H, W, C)
    frames = np.rint((clip.numpy() + 1) * 127.5).astype(np.uint8)
    path = tmp_path_factory.mktemp("golden") / "golden.mkv"
    padded = np.pad(frames, ((0, 0), (16, 16), (16, 16), (0, 0)))
    write_video(path, padded, codec="ffv1", pixel_format="bgr0")
    assert (i3d.read_video(path)[:, 16:-16, 16:-16] == frames).all()
    return path


@pytest.mark.parametrize("endpoint", ["Mixed_5c", "Logits", "clip"])
def test_files_hold_the_original_graphs_numbers(golden_video, bundle_folder, tmp_path, endpoint):
    options = replace(FAST, window="16", step=None, endpoint=endpoint)
    extract(golden_video, tmp_path / "out", [bundle_folder("rgb400")], options=options)
    rows = read(tmp_path / "out" / "golden.npz")["rgb"]
    outputs = golden("rgb400", "rgb16a").outputs
    if endpoint == "Mixed_5c":
        assert rows.shape == (1, 1024, 2, 7, 7)
        flat = rows.transpose(0, 2, 3, 4, 1).reshape(-1)[outputs["Mixed_5c/flat"]]
        np.testing.assert_allclose(flat, outputs["Mixed_5c/values"], atol=2e-4)  # measured 6.0e-5
        return
    if endpoint == "clip":  # what the original's classifier makes of them
        assert rows.shape == (1, 1024)
        classifier = i3d.load(bundle_folder("rgb400")).Logits.Conv3d_0c_1x1
        rows = rows @ classifier.weight[:, :, 0, 0, 0].numpy().T + classifier.bias.numpy()
    np.testing.assert_allclose(rows, outputs["logits"], atol=5e-4)  # as in test_i3d


def test_flow_has_the_original_graphs_numbers(bundle_folder):
    g = golden("flow400", "flow16a")
    rows = compute(i3d.load(bundle_folder("flow400")), g.clip, "Mixed_5c").numpy()
    flat = rows.transpose(0, 2, 3, 4, 1).reshape(-1)[g.outputs["Mixed_5c/flat"]]
    np.testing.assert_allclose(flat, g.outputs["Mixed_5c/values"], atol=2e-4)  # as in test_i3d


@pytest.mark.parametrize(
    ("window", "step", "rest", "length", "starts"),
    [
        ("16", "4", "drop", 16, {"a.b": range(0, 26, 4), "long #1": range(0, 55, 4)}),
        ("16", None, "drop", 16, {"a.b": [0, 16], "long #1": [0, 16, 32, 48]}),
        ("16", "16", "keep", 16, {"a.b": [0, 16, 25], "long #1": [0, 16, 32, 48, 54]}),
        ("10", "35", "keep", 10, {"a.b": [0, 31], "long #1": [0, 35, 60]}),
        # 0.7 s are 17.5 frames; window k begins at the frame nearest to 17.5 k, halves up
        ("1s", "0.7s", "drop", 25, {"a.b": [0], "long #1": [0, 18, 35]}),
        ("70", "1", "keep", 70, {"a.b": [0], "long #1": [0]}),
    ],
)
def test_windows_are_slices_of_the_video(
    videos, checkpoints, clips, tmp_path, window, step, rest, length, starts
):
    batch_size = 3 if step == "4" else 1
    options = replace(FAST, window=window, step=step, rest=rest, batch_size=batch_size)
    extract(videos, tmp_path / "out", checkpoints, options=options)
    for name, expected in starts.items():
        stored = read(tmp_path / "out" / f"{name}.npz")
        if LENGTHS[name] >= length:
            np.testing.assert_allclose(stored["start_seconds"], np.array(expected) / 25)
            np.testing.assert_allclose(stored["end_seconds"], (np.array(expected) + length) / 25)
        for stream, path in zip(("rgb", "flow"), checkpoints, strict=True):
            model = i3d.load(path)
            rows = [direct(model, clips[name][stream], s, length).mean(0) for s in expected]
            np.testing.assert_allclose(stored[stream], rows, rtol=0, atol=NOISE)


def test_steps_are_rows_with_their_own_times(videos, checkpoints, clips, tmp_path):
    options = replace(FAST, window="30", step="20", endpoint="steps")
    extract(videos, tmp_path / "out", checkpoints, options=options)
    stored = read(tmp_path / "out" / "long #1.npz")
    for stream, path in zip(("rgb", "flow"), checkpoints, strict=True):
        model = i3d.load(path)
        rows = [direct(model, clips["long #1"][stream], s, 30) for s in (0, 20, 40)]
        assert rows[0].shape == (3, 128)  # ceil(30 / 8) - 1
        np.testing.assert_allclose(stored[stream], np.concatenate(rows), rtol=0, atol=NOISE)
    begin = np.add.outer([0, 20, 40], [0, 8, 16]).ravel()
    end = np.add.outer([0, 20, 40], [16, 24, 30]).ravel()
    np.testing.assert_allclose(stored["start_seconds"] * 25, begin)
    np.testing.assert_allclose(stored["end_seconds"] * 25, end)


def test_a_step_sees_as_many_frames_as_the_page_says():
    """The receptive field of Mixed_5c in time is 99 frames, so two positions see 107."""
    torch.manual_seed(0)
    model = small_model(0, stream="rgb", num_classes=3)
    clip = torch.randn(1, 3, 256, 32, 32, requires_grad=True)
    model.features(clip)[0, :, 15].abs().sum().backward()
    seen = clip.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten()
    assert (len(seen), int(seen[-1] - seen[0])) == (107, 106)
    middle = (float(seen[0]) + float(seen[-1]) + 1) / 2
    assert abs(middle - (15 * 8 + 8)) <= 1.5  # of the span that is stored: 15 * 8 to 15 * 8 + 16


@pytest.mark.parametrize("endpoint", ["Conv3d_2c_3x3", "Logits", "Predictions"])
def test_any_endpoint(videos, checkpoints, clips, tmp_path, endpoint):
    options = replace(FAST, endpoint=endpoint)
    extract(videos, tmp_path / "out", checkpoints[:1], options=options)
    stored = read(tmp_path / "out" / "a.b.npz")
    part = torch.from_numpy(np.stack([clips["a.b"]["rgb"][:, s : s + 16] for s in range(0, 26, 8)]))
    expected = i3d.load(checkpoints[0]).endpoints(part, [endpoint])[endpoint]
    assert "flow" not in stored and stored["rgb"].shape == tuple(expected.shape)
    np.testing.assert_allclose(stored["rgb"], expected, rtol=0, atol=NOISE)
    assert len(stored["about"]["classes"]) == (0 if endpoint.startswith("Conv") else 3)


def test_the_authors_test_clip_is_what_evaluate_sees(videos, checkpoints, tmp_path):
    """250 frames of a shorter video: the streams are looped each by itself."""
    options = replace(FAST, window="250", step=None, endpoint="Logits")
    extract(videos / "short.mp4", tmp_path / "out", checkpoints, options=options)
    stored = read(tmp_path / "out" / "short.npz")
    prediction = i3d.predict(videos / "short.mp4", checkpoints=checkpoints, top_k=3, device="cpu")
    summed = stored["rgb"][0] + stored["flow"][0]
    for score in prediction.predictions:
        assert score.logit == pytest.approx(float(summed[score.index]), abs=NOISE)


# measured: 6.8e-3 and 6.3e-4, where features reach 1.3
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.003)])
def test_autocast_is_near(videos, checkpoints, reference, tmp_path, precision, tolerance):
    extract(videos, tmp_path / "out", checkpoints, options=replace(FAST, precision=precision))
    ours, full = read(tmp_path / "out" / "a.b.npz"), read(reference / "a.b.npz")
    assert 0 < np.abs(ours["rgb"] - full["rgb"]).max() < tolerance
    assert ours["about"]["precision"] == precision


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    """Whole videos, one of them longer than what is read at a time."""
    root = tmp_path_factory.mktemp("more") / "clips"
    root.mkdir()
    for path in videos.iterdir():
        (root / path.name).symlink_to(path)
    write_video(root / "longest.mp4", noise_images(300, 64, 48))
    (root / "broken.mp4").write_bytes(b"no video")
    folder = tmp_path_factory.mktemp("shards")
    settings = Settings(short_side=48, clips_per_shard=3, max_seconds=0)
    precompute(VideoSet(root, layout="flat"), folder, settings=settings, work=Work(workers=2))
    return root, folder


def test_shards_give_the_videos_features(shards, checkpoints, tmp_path):
    root, folder = shards
    extract(root, tmp_path / "videos", checkpoints, options=FAST)
    result = extract(folder, tmp_path / "shards", checkpoints, options=FAST)
    assert (result.found, result.done) == (5, 4)
    assert "not a video" in dict(result.skipped)["broken"]
    for name in (*LENGTHS, "longest"):
        a, b = (read(tmp_path / kind / f"{name}.npz") for kind in ("videos", "shards"))
        np.testing.assert_array_equal(a["flow"], b["flow"])  # stored without loss
        assert 0 < np.abs(a["rgb"] - b["rgb"]).max() < 0.1  # JPEG
        frames = open_dataset(folder).read_sample(b["about"]["video"]).frames()
        top, left = (frames.shape[1] - 42) // 2, (frames.shape[2] - 42) // 2
        clip = (frames[:, top : top + 42, left : left + 42] / 127.5 - 1).transpose(3, 0, 1, 2)
        last = round(float(b["start_seconds"][-1]) * 25)
        row = direct(i3d.load(checkpoints[0]), clip.astype(np.float32), last, 16).mean(0)
        np.testing.assert_allclose(b["rgb"][-1], row, rtol=0, atol=NOISE)
        assert b["about"]["frames"] == a["about"]["frames"] == len(frames)
    assert any(name.startswith("shards: ") for name in b["about"]["versions"])


def test_one_stream_of_shards(shards, checkpoints, tmp_path):
    extract(shards[1], tmp_path / "both", checkpoints, options=FAST)
    extract(shards[1], tmp_path / "flow", checkpoints[1:], options=FAST)
    for path in (tmp_path / "flow").glob("*.npz"):
        one, both = read(path), read(tmp_path / "both" / path.name)
        np.testing.assert_array_equal(one["flow"], both["flow"])
        assert one["about"]["frames"] == both["about"]["frames"]


# --- short and damaged videos ---------------------------------------------------------------------


def test_a_short_video_loops(reference, checkpoints, clips):
    stored = read(reference / "short.npz")
    for stream, path in zip(("rgb", "flow"), checkpoints, strict=True):
        looped = np.take(clips["short"][stream], range(16), axis=1, mode="wrap")
        row = direct(i3d.load(path), looped, 0, 16).mean(0)
        np.testing.assert_allclose(stored[stream], row[None], rtol=0, atol=NOISE)
    assert (stored["start_seconds"], stored["end_seconds"]) == (0, 11 / 25)
    assert stored["about"]["looped"] and not read(reference / "a.b.npz")["about"]["looped"]


def test_a_short_video_is_refused(videos, checkpoints, tmp_path, run):
    arguments = command(videos, tmp_path / "out", checkpoints, "--short", "error", "--json")
    code, out, _ = run(*arguments)
    report = json.loads(out)
    assert (code, report["found"], report["done"]) == (0, 3, 2)
    (skipped,) = report["skipped"]
    assert skipped["video"] == "short" and "11 frames are fewer than" in skipped["reason"]
    assert not (tmp_path / "out" / "short.npz").exists()
    with (tmp_path / "out" / "failures.csv").open() as file:
        assert list(csv.reader(file)) == [["video", "reason"], list(skipped.values())]
    assert run(*arguments, "--strict")[0] == 1


def test_a_damaged_video_is_recorded_and_tried_again(videos, checkpoints, tmp_path, run):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "good.mp4").symlink_to(videos / "short.mp4")
    (folder / "bad.mp4").write_bytes(b"no video")
    write_video(folder / "one.mp4", 1, width=80, height=56)
    code, out, _ = run(*command(folder, tmp_path / "out", checkpoints))
    assert code == 0 and "1 of 3 videos done" in out and "2 skipped" in out
    records = {
        p.name: json.loads(p.read_text())["reason"] for p in (tmp_path / "out").glob("*.error.json")
    }
    assert "not a video" in records["bad.error.json"]
    assert records["one.error.json"] == "a video of one frame has no flow"
    assert str(tmp_path) not in "".join(records.values())

    (folder / "bad.mp4").unlink()
    (folder / "bad.mp4").symlink_to(videos / "a.b.mp4")
    code, out, _ = run(*command(folder, tmp_path / "out", checkpoints, "--json"))
    report = json.loads(out)
    assert (report["found"], report["done"], report["already"]) == (3, 2, 1)
    assert not (tmp_path / "out" / "bad.error.json").exists()
    assert (tmp_path / "out" / "failures.csv").read_text().count("\n") == 2


def test_nothing_at_all_is_a_failure(checkpoints, tmp_path, run):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no video")
    code, out, err = run(*command(tmp_path / "clips", tmp_path / "out", checkpoints, "--json"))
    assert (code, out) == (1, "")
    assert "none of 1 videos has features" in err and "bad.mp4" in err


def test_a_video_of_which_a_part_is_lost_says_so(checkpoints, tmp_path):
    data = write_video(tmp_path / "whole.mp4", noise_images(60, 80, 56)).read_bytes()
    middle = len(data) * 2 // 3
    (tmp_path / "cut.mp4").write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
    extract(tmp_path / "cut.mp4", tmp_path / "out", checkpoints[:1], options=FAST)
    about = read(tmp_path / "out" / "cut.npz")["about"]
    assert about["damage"].startswith("cut.mp4: ") and "could not be decoded" in about["damage"]
    assert 0 < about["frames"] <= 60


# --- formats --------------------------------------------------------------------------------------


def test_an_npz_says_what_it_is(reference, checkpoints):
    stored = read(reference / "long #1.npz")
    about = stored["about"]
    assert about["video"] == "long %231" and about["source"] == "long #1.mp4"
    assert (about["frames"], about["seconds"]) == (70, 2.8)
    assert (about["preset"], about["endpoint"], about["window_frames"]) == (PRESET, "clip", 16)
    assert about["versions"]["torch"] == torch.__version__
    for stream, path in zip(("rgb", "flow"), checkpoints, strict=True):
        used = about["checkpoints"][stream]
        assert used["name"] == path.name and len(used["weights_sha256"]) == 64
        assert stored[stream].dtype == np.float32 and stored[stream].shape == (7, 128)
    everything = b"".join(contents(reference).values())
    assert str(checkpoints[0].parent).encode() not in everything
    assert str(reference.parent).encode() not in everything


def test_npy_is_rgb_beside_flow(videos, checkpoints, reference, tmp_path):
    extract(videos, tmp_path / "out", checkpoints, options=replace(FAST, format="npy"))
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"features.json", "failures.csv"} | {
        f"{name}{suffix}" for name in LENGTHS for suffix in (".npy", ".npy.json")
    }
    for name in LENGTHS:
        joined, stored = np.load(tmp_path / "out" / f"{name}.npy"), read(reference / f"{name}.npz")
        np.testing.assert_array_equal(joined, np.hstack([stored["rgb"], stored["flow"]]))
        beside = json.loads((tmp_path / "out" / f"{name}.npy.json").read_text())
        assert beside["start_seconds"] == stored["start_seconds"].tolist()
        assert beside["checkpoints"] == stored["about"]["checkpoints"]


@pytest.mark.parametrize("suffix", ["parquet", "h5"])
@pytest.mark.parametrize("endpoint", ["clip", "MaxPool3d_5a_2x2"])
def test_one_file_holds_what_the_folder_holds(videos, checkpoints, tmp_path, suffix, endpoint):
    (tmp_path / "clips").mkdir()
    for path in videos.iterdir():
        (tmp_path / "clips" / path.name).symlink_to(path)
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no video")
    options = replace(FAST, endpoint=endpoint)
    extract(tmp_path / "clips", tmp_path / "out", checkpoints, options=options)
    target = tmp_path / f"out.{suffix}"
    result = extract(tmp_path / "clips", target, checkpoints, options=options)
    assert (result.found, result.done, len(result.skipped)) == (4, 3, 1)
    assert not (tmp_path / f"out.{suffix}.parts").exists()
    found = {}
    if suffix == "parquet":
        table = pq.read_table(target)
        about = json.loads(table.schema.metadata[b"i3d"])
        columns = table.to_pydict()
        for name in LENGTHS:
            key = quote(name).replace("%20", " ").replace(".", "%2E")
            places = [i for i, video in enumerate(columns["video"]) if video == key]
            found[name] = {c: np.array([columns[c][i] for i in places]) for c in table.column_names}
    else:
        with h5py.File(target) as file:
            about = json.loads(file["about"][()])
            for name in LENGTHS:
                key = quote(name).replace("%20", " ").replace(".", "%2E")
                found[name] = {c: array[()] for c, array in file["videos"][key].items()}
    assert about["found"] == 4 and about["skipped"][0]["video"] == "bad"
    assert about["looped"] == ["short"]
    for name, arrays in found.items():
        stored = read(tmp_path / "out" / f"{name}.npz")
        for column in ("rgb", "flow", "start_seconds", "end_seconds"):
            shape = stored[column].shape
            np.testing.assert_array_equal(arrays[column].reshape(shape), stored[column])
            assert list(shape[1:]) == about["row_shapes"].get(column, [])
    before = target.read_bytes()
    again = extract(tmp_path / "clips", target, checkpoints, options=options)
    assert (again.found, again.done, again.already, again.rows) == (4, 3, 3, 0)
    target.unlink()
    extract(tmp_path / "clips", target, checkpoints, options=options)
    assert target.read_bytes() == before
    with pytest.raises(UsageError, match="window_frames: 16, now 20"):
        extract(tmp_path / "clips", target, checkpoints, options=replace(options, window="20"))


def test_purposes_are_what_their_programs_load(videos, checkpoints, tmp_path, run):
    """T x 2048 of 16 frames every 4, T x 1024 of 16 every 16 (here 256 and 128 channels)."""
    named = [part for c in checkpoints for part in ("--checkpoint", c)]
    assert run("features", videos, tmp_path / "l", *named, "--for", "localization")[0] == 0
    rgb = ("--checkpoint", checkpoints[0])
    assert run("features", videos, tmp_path / "a", *rgb, "--for", "anomaly")[0] == 0
    assert np.load(tmp_path / "l" / "long #1.npy").shape == ((70 - 16) // 4 + 1, 256)
    assert np.load(tmp_path / "a" / "long #1.npy").shape == (70 // 16, 128)
    code, _, err = run("features", videos, tmp_path / "x", *rgb, "--for", "localization")
    assert code == 2 and "RGB beside flow" in err


def test_a_url_is_a_folder_too(videos, checkpoints, reference):
    extract(videos, "memory://features-test/out", checkpoints, options=FAST)
    fs = fsspec.filesystem("memory")
    names = {path.rsplit("/", 1)[-1] for path in fs.find("/features-test/out")}
    assert "long %231.npz" in names and "a%2Eb.npz" in names
    with fs.open("/features-test/out/short.npz") as file:
        assert file.read() == (reference / "short.npz").read_bytes()
    again = extract(videos, "memory://features-test/out", checkpoints, options=FAST)
    assert (again.already, again.rows) == (3, 0)


# --- processes and interruptions ------------------------------------------------------------------


def test_workers_change_nothing(videos, checkpoints, reference, tmp_path):
    extract(videos, tmp_path / "out", checkpoints, options=replace(FAST, workers=2))
    assert contents(tmp_path / "out") == contents(reference)


def environment():
    """So many threads as each of two processes takes for its network."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    return os.environ | {"OMP_NUM_THREADS": threads}


@pytest.mark.parametrize("output", ["out", pytest.param("out.parquet", marks=pytest.mark.slow)])
def test_torchrun_gives_the_same_bytes(videos, checkpoints, tmp_path, output):
    results = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        arguments = command(videos, folder / output, checkpoints)
        program = [sys.executable, *(launch if size > 1 else ()), "-m", "i3d", *arguments]
        done = subprocess.run(program, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(contents(folder))
    assert results[0] == results[1]
    assert len(results[0]) == (5 if output == "out" else 1)


def test_every_video_belongs_to_one_process(videos, checkpoints, reference, tmp_path):
    """Three processes, one after the other: the last one finishes, and the first speaks for all."""

    def run_rank(rank, patience_seconds=60.0):
        return extract(
            videos,
            tmp_path / "out",
            checkpoints,
            options=FAST,
            world=World(rank, 3, 3),
            patience_seconds=patience_seconds,
        )

    early = run_rank(0, patience_seconds=0.1)  # the others have not begun
    assert (early.found, early.done, early.complete) == (3, 1, False)
    others = [run_rank(rank) for rank in (1, 2)]
    assert [o.found for o in others] == [o.done for o in others] == [1, 1]
    assert [o.complete for o in others] == [False, True]
    (tmp_path / "out" / "a.b.npz").unlink()
    whole = run_rank(0)
    assert (whole.found, whole.done, whole.already, whole.complete) == (3, 3, 2, True)
    with np.load(reference / "a.b.npz") as z:
        assert (whole.rows, whole.frames) == (len(z["rgb"]), json.loads(str(z["about"]))["frames"])
    for name, data in contents(reference).items():
        if name.endswith(".npz"):
            one, other = read(tmp_path / "out" / name), read(reference / name)
            np.testing.assert_allclose(one["rgb"], other["rgb"], rtol=0, atol=NOISE)
        else:
            assert (tmp_path / "out" / name).read_bytes() == data


STUCK = """
import pathlib, sys, time
from i3d.data.reading import chunks
read = chunks.VideoChunks.read
def stuck(self, i, *arguments, **options):
    for number, pixels in enumerate(read(self, i, *arguments, **options)):
        yield pixels
        if i == 1:
            pathlib.Path({marker!r}).touch()
            time.sleep(1000)
chunks.VideoChunks.read = stuck
from i3d.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("output", "sent"),
    [
        ("out", signal.SIGKILL),
        ("out", signal.SIGTERM),
        pytest.param("out.parquet", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again(videos, checkpoints, tmp_path, output, sent, run):
    whole, folder, marker = tmp_path / "whole", tmp_path / "killed", tmp_path / "marker"
    code, _, error = run(*command(videos, whole / output, checkpoints))
    assert code == 0, error
    arguments = command(videos, folder / output, checkpoints)
    script = STUCK.format(marker=str(marker))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 143)
    assert "Traceback" not in error
    parts = folder / (output if output == "out" else f"{output}.parts")
    assert {p.name for p in parts.iterdir()} == {"features.json", "a.b.npz"}
    (parts / ".short.0123456789ab.tmp.npz").touch()  # as a kill in the middle of writing leaves it
    code, out, _ = run(*arguments)
    assert code == 0 and "3 of 3 videos done, 1 of them before" in out
    ours, expected = contents(folder), contents(whole)
    assert ours.keys() == expected.keys()
    if output == "out":  # the first was another process, perhaps of another number of threads
        for name in LENGTHS:
            one, other = read(folder / output / f"{name}.npz"), read(whole / output / f"{name}.npz")
            np.testing.assert_allclose(one["flow"], other["flow"], rtol=0, atol=NOISE)


FEW = replace(FAST, step="64")  # rows


def at_the_first(monkeypatch, holder, name, do):
    """Do something before the first call of a function, which then is itself again."""
    real = getattr(holder, name)

    def wrapped(*arguments, **options):
        monkeypatch.setattr(holder, name, real)
        do()
        return real(*arguments, **options)

    monkeypatch.setattr(holder, name, wrapped)


@pytest.mark.parametrize(
    ("output", "holder", "moment"),
    [
        ("out", FeatureFolder, "write"),
        ("out", FeatureFolder, "finish"),
        ("out.parquet", FeatureFolder, "write"),
        ("out.parquet", FeatureFolder, "find_outcomes"),
        ("out.parquet", extraction, "merge"),
    ],
)
def test_of_two_runs_at_once_both_end_with_the_whole(
    videos, checkpoints, tmp_path, monkeypatch, output, holder, moment
):
    """The other one begins, ends and tidies up while the first one is there."""

    def other():
        assert extract(videos, tmp_path / output, checkpoints[:1], options=FEW).complete

    extract(videos, tmp_path / "whole" / output, checkpoints[:1], options=FEW)
    at_the_first(monkeypatch, holder, moment, other)
    result = extract(videos, tmp_path / output, checkpoints[:1], options=FEW)
    assert (result.found, result.done, result.complete) == (3, 3, True)
    shutil.move(tmp_path / "whole", tmp_path.parent / f"{tmp_path.name}-whole")
    assert contents(tmp_path) == contents(tmp_path.parent / f"{tmp_path.name}-whole")


def test_parts_beside_a_finished_file_go(videos, checkpoints, tmp_path):
    """As a run leaves them that was killed after another one had made the file."""
    target = tmp_path / "out.parquet"
    extract(videos, target, checkpoints[:1], options=FEW)
    (tmp_path / "out.parquet.parts").mkdir()
    (tmp_path / "out.parquet.parts" / "short.npz").write_bytes(b"half")
    (tmp_path / ".out.0123456789ab.tmp.parquet").touch()
    assert extract(videos, target, checkpoints[:1], options=FEW).already == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def edit_nan(arrays):
    arrays["rgb"][0] = np.nan


def edit_rows(arrays):
    arrays["rgb"] = np.concatenate([arrays["rgb"], arrays["rgb"][-1:]])


def edit_times(arrays):
    arrays["start_seconds"][0] = -1


def edit_video(arrays):
    about = json.loads(str(arrays["about"]))
    arrays["about"] = np.array(json.dumps({**about, "video": "short"}))


@pytest.mark.parametrize(
    ("edit", "sealed", "words"),
    [
        (edit_nan, False, "its seal does not match"),
        (edit_rows, True, "different lengths"),
        (edit_times, True, "times make no sense"),
        (edit_video, True, "it is of 'short'"),
    ],
)
def test_an_edited_part_is_named(videos, checkpoints, tmp_path, edit, sealed, words):
    target, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    extract(videos, target, checkpoints[:1], options=FEW, world=World(1, 2, 2))
    (part,) = parts.glob("*.npz")
    with np.load(part) as stored:
        arrays = dict(stored)
    edit(arrays)
    np.savez(part, **arrays)
    if sealed:
        with part.open("r+b") as file:
            seal_archive(file)
    with pytest.raises(DatasetError, match=rf"{part.name} is damaged .*{words}.*delete it and run"):
        extract(videos, target, checkpoints[:1], options=FEW)
    assert not target.exists()
    part.unlink()
    assert extract(videos, target, checkpoints[:1], options=FEW).complete
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_a_reason_that_holds_no_more_goes(videos, checkpoints, tmp_path):
    """Another run has failed over a video after this one had made its features."""
    extract(videos, tmp_path / "out", checkpoints[:1], options=FEW)
    before = contents(tmp_path)
    document = {"format": FAILURE_KIND, "video": "short", "reason": "no room"}
    (tmp_path / "out" / "short.error.json").write_text(json.dumps(document))
    extract(videos, tmp_path / "out", checkpoints[:1], options=FEW)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"window": "20"}, "window_frames: 16, now 20"),
        ({"step": "0.1s"}, "step_frames: 8.0, now 2.5"),
        ({"endpoint": "steps"}, 'endpoint: "clip", now "steps"'),
        ({"short": "error"}, 'short: "loop", now "error"'),
        ({"format": "npy"}, 'container: "npz", now "npy"'),
    ],
)
def test_other_settings_are_refused(videos, checkpoints, reference, changed, words):
    before = contents(reference)
    with pytest.raises(UsageError, match=words):
        extract(videos, reference, checkpoints, options=replace(FAST, **changed))
    assert contents(reference) == before


def test_other_weights_are_refused(videos, checkpoints, reference, tmp_path):
    i3d.save(small_model(9, stream="rgb", num_classes=3, preset=PRESET), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"weights of rgb: \"[0-9a-f]{12}\.\.\.\", now"):
        extract(videos, reference, [tmp_path / "x.safetensors", checkpoints[1]], options=FAST)
    # The same weights under another name are the same.
    (tmp_path / "renamed.safetensors").symlink_to(checkpoints[0])
    renamed = [tmp_path / "renamed.safetensors", checkpoints[1]]
    assert extract(videos, reference, renamed, options=FAST).already == 3


def test_features_without_their_settings_say_themselves_what_they_are(
    videos, checkpoints, reference, tmp_path
):
    """As after somebody has removed the folder while a job wrote there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.b.npz").write_bytes((reference / "a.b.npz").read_bytes())
    with pytest.raises(UsageError, match=r"a\.b\.npz.*window_frames"):
        extract(videos, out, checkpoints, options=replace(FAST, window="24"))
    assert [p.name for p in out.iterdir()] == ["a.b.npz"]
    assert extract(videos, out, checkpoints, options=FAST).already == 1
    assert contents(out) == contents(reference)
    (out / "features.json").write_text("{}")
    with pytest.raises(DatasetError, match="seal"):
        extract(videos, out, checkpoints, options=FAST)


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_features_of_other_programs_are_refused(videos, checkpoints, tmp_path, form):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / f"short.{form}").open("wb") as file:
        (np.savez if form == "npz" else np.save)(file, np.zeros(3))
    with pytest.raises(UsageError, match="name another folder"):
        extract(videos, tmp_path / "out", checkpoints, options=replace(FAST, format=form))


def test_what_is_removed_meanwhile_fails_the_job(videos, checkpoints, tmp_path, run, monkeypatch):
    """Exit code 0 is for a whole folder."""
    write = FeatureFolder.write

    def write_and_lose_the_first(folder, i, *rest):
        write(folder, i, *rest)
        files.remove(tmp_path / "out" / "a.b.npz")

    monkeypatch.setattr(FeatureFolder, "write", write_and_lose_the_first)
    words = command(videos, tmp_path / "out", checkpoints)
    code, _, err = run(*words)
    assert code == 1 and "run again" in err
    monkeypatch.undo()
    assert run(*words)[0] == 0


# --- mistakes and hostile input -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "8"], "at least 9"),
        (["--window", "x"], "give frames, as 64, or seconds"),
        (["--step", "0"], "at least one frame"),
        (["--step", "0.01s"], "at least one frame"),
        (["--endpoint", "Mixed_9z"], "Mixed_5c"),
        (["--format", "parquet"], "let it end in .parquet"),
        (["--batch-size", "0"], "at least 1"),
        (["--partial"], "is for shards"),
    ],
)
def test_mistakes_name_value_and_remedy(videos, checkpoints, tmp_path, run, options, words):
    code, out, err = run(*command(videos, tmp_path / "out", checkpoints, *options))
    assert (code, out) == (2, "") and words in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_checkpoints_must_fit(videos, checkpoints, tmp_path, run):
    rgb, _ = checkpoints
    code, _, err = run(*command(videos, tmp_path / "out", [rgb, rgb]))
    assert code == 2 and "both for rgb" in err
    code, _, err = run("features", videos, tmp_path / "out")
    assert code == 2 and "--checkpoint" in err
    other = tmp_path / "flow.safetensors"
    i3d.save(small_model(1, stream="flow", num_classes=3), other)
    with pytest.raises(CheckpointError, match="kinetics-i3d-48"):
        extract(videos, tmp_path / "out", [rgb, other], options=FAST)


@given(st.lists(st.text(max_size=300).filter(bool), min_size=1, max_size=6, unique=True))
def test_names_stay_in_the_folder(names):
    keys = [quote(name, safe=" /_-~'()", errors="surrogateescape") for name in names]
    keys = [k.replace(".", "%2E") for k in keys if all(k.split("/"))]
    try:
        found = file_names(keys, url=False)
    except DatasetError:
        assert any("/" in key for key in keys)  # a folder and a file of one name
        return
    assert len(set(found)) == len(keys)
    for name in found:
        for part in name.split("/"):
            assert part and not part.startswith(".") and part.isprintable()
            assert len(part.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("%2E%2E/%2E%2E/etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),  # a manifest from elsewhere
        ("a%2Fb", "a%2Fb"),
        ("%2Ehidden", "%2Ehidden"),
        ("a%0Ab", "a%0Ab"),
        ("A%2EBeautiful%2EMind%2E2001__%2300-01-45", "A.Beautiful.Mind.2001__#00-01-45"),
        ("%FF", "%FF"),
    ],
)
def test_hostile_names(key, name):
    assert file_names([key], url=False) == [name]
    assert file_names([key], url=True) == [key]


def test_names_that_would_meet_are_refused():
    with pytest.raises(DatasetError, match="share"):
        file_names(["%2E%2E", "%252E%252E"], url=False)
    with pytest.raises(DatasetError, match="share"):
        file_names(["x", "x%2Enpz/y"], url=False)


def test_odd_names_on_disk(videos, checkpoints, tmp_path):
    odd = ["a\nb", "..b", "ü ☃", "features", "x.error", "x", "n" * 240, "failures"]
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in odd:
        (folder / f"{name}.mp4").symlink_to(videos / "short.mp4")
    options = replace(FAST, format="npy")
    result = extract(folder, tmp_path / "out", checkpoints[:1], options=options)
    # A name that begins with a dot is hidden, and no video.
    assert (result.found, result.done) == (7, 7)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 7
    assert extract(folder, tmp_path / "out", checkpoints[:1], options=options).already == 7


MEASURE = """
import resource, sys
from i3d.cli import main
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.slow
def test_two_hours_take_the_memory_of_two_minutes(checkpoints, tmp_path):
    """180,000 frames (one a second, each shown 25 times): 950 MB of pixels, 630 MB of rows."""
    peaks = {}
    for seconds in (120, 7200):
        path = write_video(tmp_path / f"{seconds}.mp4", seconds, rate=1, width=64, height=48)
        arguments = ["features", path, tmp_path / f"out{seconds}", "--checkpoint", checkpoints[0]]
        arguments += ["--endpoint", "Conv3d_1a_7x7", "--window", "16", "--step", "32"]
        program = [sys.executable, "-c", MEASURE, *map(str, arguments)]
        done = subprocess.run(
            [*program, "--workers", "0", "--device", "cpu"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks[seconds] = int(done.stderr.split()[-1]) // 1024
        with np.load(tmp_path / f"out{seconds}" / f"{seconds}.npz") as z:
            assert len(z["start_seconds"]) == (seconds * 25 - 16) // 32 + 1
    # MiB; measured 69: freed memory that is kept (i3d.memory) falls into pieces.
    assert peaks[7200] - peaks[120] < 110, peaks
