"""From shards or videos to accuracies: the same however the work is shared, killed and resumed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from support.bundles import save_pair, small_model
from support.golden import shared
from support.videos import noise_images, write_video

import i3d
from i3d.cli import main
from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.parallel.world import World
from i3d.tasks.evaluate import logits as task
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.evaluate.predictions import read_predictions
from i3d.tasks.network import Batcher, compute
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute

PRESET = "kinetics-i3d-48"
CLASSES = ("archery", "bowling", "clapping")
FAST = EvaluateOptions(frames=16, workers=0, device="cpu")
# Logits of other batches, processes and thread counts; measured: 1.7e-7 of ±0.23.
NOISE = 2e-6


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Seven videos of three classes, one of them broken."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    for i in range(6):
        images = [cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(14 + 3 * i, 80, 56, i)]
        write_video(root / CLASSES[i % 3] / f"{i}.mp4", images)
    (root / "archery" / "broken.mp4").write_bytes(b"not a video")
    return root


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    """Three shards; of the sixth video's sample a byte is wrong."""
    folder = tmp_path_factory.mktemp("shards")
    settings = Settings(short_side=48, clips_per_shard=3)
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        precompute(
            VideoSet(videos, classes="folders"), folder, settings=settings, work=Work(workers=2)
        )
    dataset = open_dataset(folder)
    record = dataset.index(1).samples[0]
    tar = folder / "shard-00001.tar"
    data = bytearray(tar.read_bytes())
    data[record.member("rgb.mjpeg").offset + 99] ^= 1
    tar.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return save_pair(folder, classes=CLASSES, num_classes=3, preset=PRESET)


@pytest.fixture(scope="module")
def reference(shards, checkpoints):
    return evaluate(shards, checkpoints, options=FAST).evaluation


def close(one, other, tolerance=NOISE):
    assert one.videos == other.videos
    np.testing.assert_array_equal(one.targets, other.targets)
    for stream, logits in one.logits.items():
        np.testing.assert_allclose(other.logits[stream], logits, rtol=0, atol=tolerance)


def samples_of(folder):
    """Suffix -> contents of every sample, as any reader of tar files sees them."""
    for path in sorted(folder.glob("*.tar")):
        samples = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        yield from samples.values()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(shards, checkpoints, *options):
    return [
        *(sys.executable, "-m", "i3d", "evaluate", str(shards)),
        *("--rgb-checkpoint", str(checkpoints["rgb"])),
        *("--flow-checkpoint", str(checkpoints["flow"])),
        *("--frames", "16", "--workers", "0", "--device", "cpu"),
        *map(str, options),
    ]


def started(arguments, size, **environment):
    """As a launcher starts ``size`` processes."""
    port = str(free_port())
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": port}
    world |= {"MASTER_ADDR": "127.0.0.1"} | environment
    return [
        subprocess.Popen(
            arguments,
            env=os.environ | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


# --- the numbers ----------------------------------------------------------------------------------


def test_logits_are_the_networks_on_the_stored_pictures(shards, checkpoints, reference):
    """tarfile and cv2 read the shards, NumPy makes the clips, the network is asked directly."""
    models = {s: i3d.load(path) for s, path in checkpoints.items()}
    table = reference.predictions
    rows = {video: i for i, video in enumerate(table.videos)}
    compared = 0
    for sample in samples_of(shards):
        info = json.loads(sample["json"])
        if info["key"] not in rows:
            continue
        top, left = (info["height"] - 42) // 2, (info["width"] - 42) // 2
        pictures = {}
        for stream, suffix in (("rgb", "rgb.mjpeg"), ("flow", "flow.mpng")):
            ends = np.cumsum(info[stream]["sizes"])
            data = np.frombuffer(sample[suffix], np.uint8)
            flag = cv2.IMREAD_COLOR_RGB if stream == "rgb" else cv2.IMREAD_GRAYSCALE
            pictures[stream] = [cv2.imdecode(p, flag) for p in np.split(data, ends[:-1])]
        height = info["height"]
        flow = [np.stack([p[:height], p[height:]], -1) for p in pictures["flow"]]
        clips = {
            "rgb": np.stack(pictures["rgb"]) / 127.5 - 1,
            "flow": (np.stack(flow) - 128.0) / 127,
        }
        for stream, clip in clips.items():
            looped = np.resize(clip, (16, *clip.shape[1:])) if len(clip) < 16 else clip[:16]
            crop = looped[:, top : top + 42, left : left + 42].transpose(3, 0, 1, 2)
            logits = models[stream](torch.from_numpy(crop[None].astype(np.float32)))[0].numpy()
            ours = table.logits[stream][rows[info["key"]]]
            # cv2 and simplejpeg round colours differently; flow is stored without loss.
            np.testing.assert_allclose(
                ours, logits, rtol=0, atol=1e-5 if stream == "flow" else 0.02
            )
            compared += 1
    assert compared == 2 * len(table) == 10


def test_the_report_is_scikit_learns(reference, tmp_path):
    task.write_predictions(tmp_path / "p.parquet", reference.predictions)
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    targets = table["index"]
    logits = {s: np.array(table[f"{s}_logits"], np.float32) for s in ("rgb", "flow")}
    logits["two_stream"] = logits["rgb"] + logits["flow"]
    report = reference.as_dict()
    for row, values in logits.items():
        labels = range(3)
        assert report[row]["top1"] == top_k_accuracy_score(targets, values, k=1, labels=labels)
        assert report[row]["top5"] == 1
        balanced = balanced_accuracy_score(targets, values.argmax(1))
        assert report[row]["mean_class"] == pytest.approx(balanced)
    assert table["class"] == [CLASSES[t] for t in targets]


def test_every_video_is_accounted_for(reference):
    report = reference.as_dict()
    assert (report["found"], report["evaluated"], len(report["skipped"])) == (7, 5, 2)
    reasons = {s["video"]: s["reason"] for s in report["skipped"]}
    assert "not a video" in reasons.pop("archery/broken")
    ((damaged, reason),) = reasons.items()
    assert "CRC32C" in reason and damaged in reason
    assert report["preset"] == PRESET
    assert report["versions"]["torch"] == torch.__version__
    assert "published" in report and not report["published"]


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_batch_size_changes_noise_alone(shards, checkpoints, reference, batch_size):
    for workers in (0, 2) if batch_size == 2 else (0,):
        options = replace(FAST, batch_size=batch_size, workers=workers)
        close(
            reference.predictions,
            evaluate(shards, checkpoints, options=options).evaluation.predictions,
        )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_views_are_averaged(videos, shards, checkpoints, batch_size):
    """Three clips of three crops by slicing, through `predict`'s own functions."""
    options = replace(FAST, frames=12, clips=3, crops=3, batch_size=batch_size)
    found = evaluate(shards, {"rgb": checkpoints["rgb"]}, options=options).evaluation.predictions
    model = i3d.load(checkpoints["rgb"])
    for video, logits in zip(found.videos, found.logits["rgb"], strict=True):
        frames = open_dataset(shards).read_sample(video).frames()
        room = len(frames) - 12
        starts = [0, room // 2, room] if room > 0 else [0]
        rows = []
        for start in starts:
            for left in (0, (frames.shape[2] - 42) // 2, frames.shape[2] - 42):
                part = frames[start : start + 12, 3:45, left : left + 42]
                rows.append(model(i3d.rgb_clip(part, crop=42)[None])[0].numpy())
        np.testing.assert_allclose(logits, np.mean(rows, axis=0), rtol=0, atol=NOISE)


def test_a_folder_of_videos_needs_no_shards(videos, checkpoints, reference):
    """Frames lose nothing to JPEG; flow is the same to the bit."""
    with pytest.warns(UserWarning, match="sorted list of these folders"):
        result = evaluate(VideoSet(videos, classes="folders"), checkpoints, options=FAST)
    table = result.evaluation.predictions
    assert (table.about.found, len(table)) == (7, 6)  # the damage was the shard's
    rows = [table.videos.index(video) for video in reference.predictions.videos]
    flow = table.logits["flow"][rows]
    np.testing.assert_allclose(flow, reference.predictions.logits["flow"], rtol=0, atol=NOISE)
    difference = table.logits["rgb"][rows] - reference.predictions.logits["rgb"]
    assert 0 < np.abs(difference).max() < 0.2


def test_predict_gives_the_same_logits(videos, checkpoints):
    """One video, both commands: the default clip is looped to 250 frames."""
    path = videos / "bowling" / "4.mp4"
    prediction = i3d.predict(path, checkpoints=list(checkpoints.values()), top_k=3, device="cpu")
    options = replace(FAST, frames=250)
    with pytest.warns(UserWarning):
        result = evaluate(VideoSet(videos, classes="folders"), checkpoints, options=options)
    table = result.evaluation.predictions
    row = table.videos.index("bowling/4")
    summed = table.logits["rgb"][row] + table.logits["flow"][row]
    for score in prediction.predictions:
        assert score.logit == pytest.approx(float(summed[score.index]), abs=NOISE)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_autocast_is_near(shards, checkpoints, reference, precision, tolerance):
    options = replace(FAST, precision=precision)
    result = evaluate(shards, {"rgb": checkpoints["rgb"]}, options=options).evaluation
    logits, expected = result.predictions.logits["rgb"], reference.predictions.logits["rgb"]
    assert 0 < np.abs(logits - expected).max() < tolerance
    assert result.as_dict()["precision"] == precision


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_processes(shards, checkpoints, tmp_path_factory):
    """Reports and logits of 1, 2 and 3 processes."""
    outcomes = {}
    for size in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"world-{size}")
        files = ("--output", folder / "r.json", "--predictions", folder / "p.parquet")
        processes = started(command(shards, checkpoints, *files), size)
        texts = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0] * size, texts
        assert all(not out for out, _ in texts[1:]), "only the first process reports"
        assert "two-stream" in texts[0][0]
        assert {p.name for p in folder.iterdir()} == {"r.json", "p.parquet"}
        report = json.loads((folder / "r.json").read_text())
        outcomes[size] = report, read_predictions(folder / "p.parquet")
    return outcomes


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_report(by_processes, reference, size):
    report, table = by_processes[size]
    close(reference.predictions, table)
    expected = reference.as_dict()
    assert report["processes"] == size
    of_the_run = "seconds", "videos_per_second", "processes", "workers", "batch_size", "device"
    for name in set(expected) - set(of_the_run):
        if name in ("rgb", "flow", "two_stream"):
            for figure in ("top1", "top5", "mean_class", "top1_interval"):
                assert report[name][figure] == expected[name][figure]
        else:
            assert report[name] == expected[name], name


def test_shares_are_equal_and_cover_everything():
    for count in range(12):
        for size in range(1, 6):
            shares = [World(rank, size).share(count) for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


STUCK = """
import pathlib, sys, time
from i3d.data.reading import clips as loader
from i3d.tasks.evaluate import logits as evaluate
evaluate.PART_SECONDS = {part_seconds}
read = loader.ShardClips.read
def stuck_at_the_last(self, i, **how):
    if i == len(self.keys) - 1:
        pathlib.Path({marker!r}).touch()
        time.sleep(1000)
    return read(self, i, **how)
loader.ShardClips.read = stuck_at_the_last
from i3d.cli import main
main(sys.argv[1:])
"""


def stuck(arguments, marker, *, part_seconds):
    """The command, which never gets past the plan's last video, where it makes the marker."""
    script = STUCK.format(marker=str(marker), part_seconds=part_seconds)
    return [sys.executable, "-c", script, *arguments[3:]]


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_a_dead_process_fails_the_job_and_resume_goes_on(
    shards, checkpoints, reference, tmp_path, capsys
):
    target, report = tmp_path / "p.parquet", tmp_path / "r.json"
    arguments = command(shards, checkpoints, "--predictions", target, "--output", report)
    marker = tmp_path / "stuck"
    first, second = started(stuck(arguments, marker, part_seconds=0), 2)
    wait_for(marker)
    second.kill()
    second.communicate()
    _, error = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "lost another one" in error and "Traceback" not in error
    assert not target.exists() and not report.exists()
    parts = tmp_path / "p.parquet.parts"
    kept = {p.name for p in parts.iterdir()}
    assert kept

    with pytest.raises(SystemExit) as done:
        main([*arguments[3:], "--no-resume"])  # nothing is mixed or lost
    assert done.value.code == 2
    assert {p.name for p in parts.iterdir()} == kept
    capsys.readouterr()

    with pytest.raises(SystemExit) as done:
        main(arguments[3:])  # the same command goes on
    assert done.value.code == 0
    close(reference.predictions, read_predictions(target))
    outcome = json.loads(report.read_text())
    assert (outcome["found"], outcome["evaluated"]) == (7, 5)
    # What the parts held was not computed again.
    assert "5 of 7 videos" in (out := capsys.readouterr().out)
    assert re.search(r"^[1-4] videos in ", out, re.MULTILINE)
    assert not parts.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done(shards, checkpoints, tmp_path, sent):
    target, marker = tmp_path / "p.csv", tmp_path / "stuck"
    arguments = command(shards, checkpoints, "--predictions", target)
    script = stuck(arguments, marker, part_seconds=1e9)
    process = subprocess.Popen(
        script,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # whoever runs the tests in the background has SIGINT ignored, which is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(marker)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert process.returncode == (130 if sent == signal.SIGINT else 143), error
    assert "Traceback" not in error
    assert list((tmp_path / "p.csv.parts").iterdir())
    assert not target.exists()


def test_processes_on_several_nodes_must_be_told_where_the_first_is(
    shards, checkpoints, monkeypatch
):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        evaluate(shards, checkpoints, options=FAST, world=World(0, 4, local_size=2))


# --- files ----------------------------------------------------------------------------------------


def test_streams_of_different_days_are_fused(shards, checkpoints, reference, tmp_path, capsys):
    for stream, suffix in (("rgb", "parquet"), ("flow", "csv")):
        arguments = ["evaluate", str(shards), f"--{stream}-checkpoint", str(checkpoints[stream])]
        arguments += ["--frames", "16", "--workers", "0", "--device", "cpu"]
        with pytest.raises(SystemExit) as done:
            main([*arguments, "--predictions", str(tmp_path / f"{stream}.{suffix}")])
        assert done.value.code == 0
    capsys.readouterr()
    files = [str(tmp_path / "rgb.parquet"), str(tmp_path / "flow.csv")]
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "--fuse", *files, "--json"])
    assert done.value.code == 0
    report = json.loads(capsys.readouterr().out)
    expected = reference.as_dict()
    for name in ("found", "evaluated", "two_stream", "rgb", "flow", "checkpoints", "skipped"):
        if name in ("found", "evaluated", "checkpoints", "skipped"):
            assert report[name] == expected[name]
        else:
            assert report[name]["top1"] == expected[name]["top1"]
            error = expected[name]["calibration_error"]
            assert report[name]["calibration_error"] == pytest.approx(error, abs=1e-5)
    assert "seconds" not in report


def test_streams_alone(shards, checkpoints, reference):
    flow = evaluate(shards, {"flow": checkpoints["flow"]}, options=FAST).evaluation
    assert list(flow.scores) == ["flow"]
    found = flow.predictions
    # RGB's damage does not matter to it
    assert len(found) == 6
    rows = [found.videos.index(v) for v in reference.predictions.videos]
    np.testing.assert_allclose(
        found.logits["flow"][rows], reference.predictions.logits["flow"], rtol=0, atol=NOISE
    )


# --- what is refused ------------------------------------------------------------------------------


def refused(capsys, *arguments, code):
    with pytest.raises(SystemExit) as done:
        main(["evaluate", *map(str, arguments)])
    output = capsys.readouterr()
    assert done.value.code == code, output.err
    assert "Traceback" not in output.err and not output.out
    return output.err


def test_a_checkpoint_of_other_classes(shards, tmp_path, capsys):
    i3d.save(small_model(classes="kinetics600", num_classes=600), tmp_path / "k600.safetensors")
    error = refused(capsys, shards, "--rgb-checkpoint", tmp_path / "k600.safetensors", code=1)
    assert "600 classes" in error and "labelled with 3 others" in error
    assert len(error.strip().splitlines()) == 1


def test_a_checkpoint_of_another_preset(shards, tmp_path):
    model = small_model(classes=CLASSES, num_classes=3)
    i3d.save(model, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"preset kinetics-i3d, and the shards for .*-48"):
        evaluate(shards, {"rgb": tmp_path / "other.safetensors"}, options=FAST)


def test_a_checkpoint_of_the_other_stream(shards, checkpoints):
    with pytest.raises(CheckpointError, match=r"network for flow.*--flow-checkpoint"):
        evaluate(shards, {"rgb": checkpoints["flow"]}, options=FAST)


def test_a_pickle_in_an_npz(shards, tmp_path, capsys):
    path = tmp_path / "evil.npz"
    np.savez(path, **{"conv3d_1a_7x7/conv3d/conv/W": np.array([print], dtype=object)})
    with zipfile.ZipFile(path) as archive:
        assert b"builtins" in archive.read(archive.namelist()[0])
    error = refused(capsys, shards, "--rgb-checkpoint", path, code=1)
    assert "evil.npz" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no checkpoint"),
        (["--resume", "--rgb-checkpoint", "x"], "--predictions"),
        (["--rgb-checkpoint", "x", "--predictions", "p.txt"], ".parquet or .csv"),
        (["--rgb-checkpoint", "x", "--frames", "8"], "at least 9"),
        (["--rgb-checkpoint", "x", "--batch-size", "0"], "batch size 0"),
        (["--rgb-checkpoint", "x", "--batch-size", "many"], "many"),
        (["--rgb-checkpoint", "x", "--crops", "2"], "crops 2"),
        (["--rgb-checkpoint", "x", "--workers", "-1"], "workers -1"),
        (["--rgb-checkpoint", "x", "--classes", "kinetics400"], "know their labels"),
        (["--rgb-checkpoint", "no/such.npz"], "no such checkpoint"),
        (["--fuse"], "two or more"),
    ],
)
def test_mistakes_in_the_call(shards, capsys, options, message):
    assert message in refused(capsys, shards, *options, code=2)


def test_missing_streams_shards_and_labels(videos, shards, checkpoints, tmp_path):
    rgb_only = tmp_path / "rgb-only"
    settings = Settings(short_side=48, clips_per_shard=3, flow=False)
    with pytest.warns(UserWarning):
        precompute(
            VideoSet(videos, classes="folders"), rgb_only, settings=settings, work=Work(workers=1)
        )
    with pytest.raises(UsageError, match="made without flow"):
        evaluate(rgb_only, checkpoints, options=FAST)
    (rgb_only / "shard-00001.json").unlink()
    rgb = {"rgb": checkpoints["rgb"]}
    with pytest.raises(DatasetError, match=r"1 of 3 shards are not complete.*--partial"):
        evaluate(rgb_only, rgb, options=FAST)
    some = VideoSet(rgb_only, partial=True)
    result = evaluate(some, rgb, options=FAST).evaluation
    about = result.predictions.about
    assert about.found == 7 == len(result.predictions) + len(about.skipped)
    assert sum("shard is missing" in s.reason for s in about.skipped) == 3
    unlabelled = tmp_path / "unlabelled"
    precompute(VideoSet(videos / "bowling", layout="flat"), unlabelled, settings=settings)
    with pytest.raises(DatasetError, match="no labels"):
        evaluate(unlabelled, rgb, options=FAST)


def test_nothing_to_evaluate_is_a_failure(tmp_path, checkpoints):
    for name in ("archery/a", "bowling/b", "clapping/c"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"no video")
    with pytest.warns(UserWarning), pytest.raises(DatasetError, match="none of 3 videos"):
        evaluate(
            VideoSet(tmp_path / "videos", classes="folders"),
            {"rgb": checkpoints["rgb"]},
            options=FAST,
        )


def test_strict_fails_over_skipped_videos(shards, checkpoints, capsys):
    arguments = command(shards, checkpoints, "--strict")[3:]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 1
    assert "5 of 7 videos evaluated, 2 skipped" in capsys.readouterr().out


def test_too_large_a_batch_is_halved(shards, checkpoints, reference, monkeypatch):
    sizes = []

    def small_memory(model, clips, *how):
        if len(clips) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        sizes.append(len(clips))
        return compute(model, clips, *how)

    monkeypatch.setattr("i3d.tasks.network.compute", small_memory)
    result = evaluate(shards, checkpoints, options=replace(FAST, batch_size=5)).evaluation
    assert max(sizes) == 2 and result.cost.batch_size == 2
    close(reference.predictions, result.predictions)
    monkeypatch.setattr(
        "i3d.tasks.network.compute",
        lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("out of memory")),
    )
    with pytest.raises(I3DError, match="one clip of 16 frames does not fit"):
        evaluate(shards, checkpoints, options=replace(FAST, batch_size=1))


@pytest.mark.parametrize(
    ("device", "frames", "asked", "size"),
    [("cpu", 16, None, 1), ("cuda:0", 64, None, 8), ("cuda:0", 1000, None, 1), ("cpu", 16, 3, 3)],
)
def test_batch_size_is_a_constant(device, frames, asked, size):
    """Not timed: runs would differ from day to day."""
    options = EvaluateOptions(batch_size=asked)
    assert Batcher(lambda clips: clips, options, device=device, frames=frames).batch_size == size


# --- Kinetics -------------------------------------------------------------------------------------


def test_published_figures_stand_beside_released_networks(shards, reference):
    about = reference.predictions.about
    names = i3d.classes.class_list("kinetics400").names
    released = {
        s: replace(used, name=f"{s}_imagenet_kinetics400") for s, used in about.checkpoints.items()
    }
    predictions = replace(
        reference.predictions,
        about=replace(about, classes=names, checkpoints=released),
        logits={s: np.pad(v, ((0, 0), (0, 397))) for s, v in reference.predictions.logits.items()},
    )
    evaluation = replace(reference, predictions=predictions)
    rows = {(p["row"], p["top1"], p["top5"]) for p in evaluation.as_dict()["published"]}
    assert {("two_stream", 0.742, 0.913), ("two_stream", 0.73, None), ("rgb", 0.711, 0.893)} <= rows
    assert not any(top1 == 0.684 for _, top1, _ in rows)  # of another network
    text = str(evaluation)
    assert "test set" in text and "5 videos" in text and "16 frames" in text


@pytest.mark.slow
def test_real_clips_and_a_tensorflow_checkpoint(tmp_path, bundle_folder):
    """The whole way at full size: real clips to shards to logits, against the network asked."""
    root = tmp_path / "videos"
    for i, clip in enumerate(sorted(shared("clips").iterdir())):
        target = root / ("archery", "arm wrestling", "bowling")[i] / clip.name
        target.parent.mkdir(parents=True)
        target.symlink_to(clip)
    folder = tmp_path / "shards"
    precompute(VideoSet(root, classes="kinetics400"), folder, settings=Settings(flow=False))
    prefix = bundle_folder("rgb400") / "model.ckpt"
    options = EvaluateOptions(frames=64, workers=1, device="cpu")
    result = evaluate(folder, {"rgb": prefix}, options=options).evaluation
    model = i3d.load(prefix)
    table = result.predictions
    assert len(table) == 3
    for video, logits in zip(table.videos, table.logits["rgb"], strict=True):
        frames = open_dataset(folder).read_sample(video).frames(0, 64)
        expected = model(i3d.rgb_clip(frames)[None])[0].numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)


def test_a_missing_dataset_is_said(tmp_path, checkpoints):
    with pytest.raises(DatasetError):
        evaluate(tmp_path / "nothing", checkpoints, options=FAST)
