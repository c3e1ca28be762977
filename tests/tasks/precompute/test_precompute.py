"""From a folder of videos to shards: the same bytes however the work is cut, killed and resumed."""

import csv
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.command import exit_code
from support.golden import shared
from support.paths import EXAMPLES
from support.videos import noise_images, write_video

import i3d
from i3d.cli import main
from i3d.clips import quantize_flow
from i3d.data.shards import open_dataset, write_shard
from i3d.data.videos import VideoSet
from i3d.errors import DatasetError, I3DError, UsageError
from i3d.parallel.pool import Result
from i3d.parallel.world import World
from i3d.tasks.precompute import encode, writing
from i3d.tasks.precompute.dry_run import dry_run
from i3d.tasks.precompute.encode import encode_video
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute

SMALL = Settings(short_side=48, clips_per_shard=3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Eight videos in three class folders, two of them broken."""
    root = tmp_path_factory.mktemp("kinetics") / "val"
    names = ["archery/a", "archery/b", "bowling/c", "bowling/d", "abseiling/e", "abseiling/f"]
    for i, name in enumerate(names):
        images = [cv2.GaussianBlur(x, (0, 0), 2) for x in noise_images(12 + 5 * i, 64, 48, i)]
        write_video(root / f"{name}.mp4", images)
    (root / "archery/empty.mp4").touch()
    (root / "bowling/broken.mp4").write_bytes(b"not a video")
    return root


def run_precompute(videos, output, **options):
    """``options`` of `VideoSet` and `precompute`, over the defaults of these tests."""
    of_set = {f.name for f in dataclasses.fields(VideoSet)}
    dataset = {"classes": "kinetics400"} | {k: v for k, v in options.items() if k in of_set}
    job = {"settings": SMALL, "work": Work(workers=options.pop("workers", 2))}
    job |= {k: v for k, v in options.items() if k not in of_set}
    return precompute(VideoSet(videos, **dataset), output, **job)


@pytest.fixture(scope="module")
def reference(videos, tmp_path_factory) -> Path:
    """The undisturbed run."""
    output = tmp_path_factory.mktemp("reference") / "shards"
    result = run_precompute(videos, output)
    assert result.complete
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def command(videos, output, *options) -> list[str]:
    return [
        *(sys.executable, "-m", "i3d", "precompute", str(videos), str(output)),
        *("--short-side", "48", "--clips-per-shard", "3", "--classes", "kinetics400"),
        *options,
    ]


# --- what is in the shards ------------------------------------------------------------------------


def test_frames_and_flow_are_those_of_the_public_functions(videos, reference):
    dataset = open_dataset(reference)
    for sample in dataset.stream():
        frames = i3d.read_video(videos / f"{sample.key}.mp4", short_side=48)
        stored = sample.stored_flow()
        np.testing.assert_array_equal(stored, quantize_flow(i3d.optical_flow(frames)))
        decoded = sample.frames()
        assert decoded.shape == frames.shape
        # JPEG of quality 95 with halved chroma: measured 2.0 levels on average here
        assert np.abs(decoded.astype(int) - frames).mean() < 3
        np.testing.assert_array_equal(
            i3d.flow_clip(stored, crop=42), i3d.flow_clip(i3d.optical_flow(frames), crop=42)
        )
        name = sample.key.split("/")[0]
        assert sample.info.class_name == name
        assert sample.class_index == {"abseiling": 0, "archery": 5, "bowling": 31}[name]


def test_every_count_adds_up(videos, tmp_path):
    result = run_precompute(videos, tmp_path / "out")
    assert (result.found, result.encoded, len(result.failed)) == (8, 6, 2)
    assert (result.shards, result.made, result.already, result.complete) == (3, 3, 0, True)
    assert result.frames == sum(12 + 5 * i for i in range(6))
    dataset = open_dataset(tmp_path / "out")
    readable = list(dataset.stream())
    assert dataset.found == len(readable) + len(dataset.failures())
    with (tmp_path / "out" / "failures.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [r["video"] for r in rows] == ["archery/empty", "bowling/broken"]
    assert "0 bytes" in rows[0]["reason"]
    everything = b"".join(contents(tmp_path / "out").values())
    assert os.fsencode(tmp_path) not in everything  # no absolute path
    again = run_precompute(videos, tmp_path / "out")
    assert (again.made, again.already, again.encoded, again.complete) == (0, 3, 0, True)
    assert again.failed == result.failed


def test_a_name_that_a_terminal_would_obey(videos, tmp_path):
    """Messages escape it; the shards have the reason without the path all the same."""
    root = tmp_path / "in" / "archery"
    root.mkdir(parents=True)
    (root / "a\x1b[2J.mp4").write_bytes(b"no video")
    write_video(root / "b.mp4", noise_images(3, 64, 48))
    (key, reason), = run_precompute(tmp_path / "in", tmp_path / "out").failed  # fmt: skip
    assert key == "archery/a%1B%5B2J"
    assert str(tmp_path) not in reason and reason.isprintable()


def test_settings_change_what_they_say(videos, tmp_path):
    settings = Settings(flow=False, short_side=24, max_seconds=0.4, rgb_quality=50)
    run_precompute(videos, tmp_path / "out", settings=settings)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest.streams == ("rgb",)
    assert dataset.manifest.preset == "kinetics-i3d-24"
    for sample in dataset.stream():
        assert sample.frames().shape == (10, 24, 32, 3)
        assert sample.flow is None


def test_whole_videos(videos, tmp_path):
    settings = Settings(flow=False, short_side=48, max_seconds=0)
    long = tmp_path / "long" / "archery"
    write_video(long / "a.mp4", noise_images(300, 64, 48))
    run_precompute(tmp_path / "long", tmp_path / "out", settings=settings)
    (sample,) = open_dataset(tmp_path / "out").stream()
    assert len(sample.rgb) == 300
    default = Settings(flow=False, short_side=48)
    run_precompute(tmp_path / "long", tmp_path / "ten", settings=default)
    (sample,) = open_dataset(tmp_path / "ten").stream()
    assert len(sample.rgb) == 250


def test_trimmed_by_the_csv(tmp_path):
    write_video(tmp_path / "val" / "abcdefghijk.mp4", 100, width=64, height=48)
    table = tmp_path / "val.csv"
    table.write_text("label,youtube_id,time_start,time_end\narchery,abcdefghijk,1,3\n")
    settings = Settings(flow=False, short_side=48)
    options = {"settings": settings, "annotations": table, "trim": True, "layout": "cvdf"}
    run_precompute(tmp_path / "val", tmp_path / "out", **options)
    (sample,) = open_dataset(tmp_path / "out").stream()
    expected = i3d.read_video(
        tmp_path / "val" / "abcdefghijk.mp4", start_seconds=1, end_seconds=3, short_side=48
    )
    assert sample.frames().shape == expected.shape == (50, 48, 64, 3)
    assert np.abs(sample.frames().astype(int) - expected).mean() < 3
    assert (sample.info.start_seconds, sample.info.end_seconds) == (1, 3)


# --- the same bytes -------------------------------------------------------------------------------


def test_number_of_workers_does_not_matter(videos, reference, tmp_path):
    run_precompute(videos, tmp_path / "out", work=Work(workers=1))
    assert contents(tmp_path / "out") == contents(reference)


def test_processes_share_the_shards(videos, reference, tmp_path):
    output = tmp_path / "out"
    first = run_precompute(videos, output, world=World(0, 2), patience_seconds=0.0)
    assert (first.made, first.complete) == (2, False)
    with pytest.raises(DatasetError, match="1 of 3 shards are not complete"):
        open_dataset(output)
    second = run_precompute(videos, output, world=World(1, 2))
    assert (second.made, second.already, second.complete) == (1, 0, True)
    assert contents(output) == contents(reference)


def test_process_0_reports_for_all(videos, reference, tmp_path):
    output = tmp_path / "out"
    other = run_precompute(videos, output, world=World(1, 2))
    whole = run_precompute(videos, output, world=World(0, 2))
    assert (other.made, other.complete) == (1, False)
    alone = run_precompute(videos, tmp_path / "alone")
    assert (whole.made, whole.already, whole.complete) == (2, 1, True)
    assert whole.failed == alone.failed
    for name in ("encoded", "frames", "bytes"):
        assert getattr(other, name) + getattr(whole, name) == getattr(alone, name) > 0


def test_two_processes_at_once(videos, reference, tmp_path):
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        options = ["--workers", "1", "--json"]
        arguments = command(videos, tmp_path / "out", *options)
        processes.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE))
    printed = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert printed[1] == b""  # process 0 speaks for both
    result = json.loads(printed[0])
    assert (result["encoded"], result["made"], result["complete"]) == (6, 3, True)
    assert contents(tmp_path / "out") == contents(reference)


def twice_at_once(videos, output) -> None:
    """Two runs of the same command, which know nothing of each other."""
    runs = []
    for _ in range(2):
        arguments = [*command(videos, output), "--no-flow", "--workers", "1", "--json"]
        pipe = subprocess.PIPE
        runs.append(subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True))
    for run in runs:
        out, error = run.communicate()
        assert run.returncode == 0, error
        assert json.loads(out)["complete"]


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_the_same_command_twice_at_once(videos, tmp_path, times):
    run_precompute(videos, tmp_path / "whole", settings=replace(SMALL, flow=False))
    for i in range(times):
        output = tmp_path / f"out-{i}"
        twice_at_once(videos, output)
        assert contents(output) == contents(tmp_path / "whole")


def test_a_video_that_was_replaced_is_named(videos, tmp_path):
    copies = tmp_path / "val"
    shutil.copytree(videos, copies)
    run_precompute(copies, tmp_path / "out", world=World(0, 2), patience_seconds=0.0)
    changed = copies / "archery" / "b.mp4"
    before = changed.stat().st_size
    with changed.open("ab") as file:
        file.write(b"more")
    expected = (
        rf"out was begun with other files: 'archery/b' \(archery/b\.mp4\): {before:,} bytes, now"
        rf" {before + 4:,} bytes\. Use the same files, or another output"
    )
    with pytest.raises(UsageError, match=expected):
        run_precompute(copies, tmp_path / "out", world=World(1, 2))
    shutil.copy(videos / "archery" / "b.mp4", changed)
    assert run_precompute(copies, tmp_path / "out", world=World(1, 2)).complete


def kill_and_resume(videos, output, *options, kills: int, seed: int, longest: float) -> None:
    """Kill the process group at random moments, each time resuming with other workers.

    What is left at the end is whatever the last kill left. A run that gets through is begun anew.
    """
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            command(videos, output, "--workers", str(1 + killed % 3), *options),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.wait(rng.uniform(0.2, longest)) == 0
            shutil.rmtree(output)
        except subprocess.TimeoutExpired:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_killed_and_resumed(videos, reference, tmp_path):
    output = tmp_path / "out"
    kill_and_resume(videos, output, kills=3, seed=1, longest=4)
    subprocess.run(command(videos, output), check=True, capture_output=True)
    assert contents(output) == contents(reference)


@pytest.mark.slow
def test_twenty_kills_on_real_clips(tmp_path):
    root = tmp_path / "val"
    classes = {"arm": "arm wrestling", "mpeg4": "archery", "v_GG": "bowling"}
    for clip in sorted(shared("clips").iterdir()):
        name = next(v for k, v in classes.items() if clip.name.startswith(k))
        for copy in range(2):
            (root / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, root / name / f"{copy}_{clip.name}")
    (root / "archery" / "broken.mp4").write_bytes(b"not a video")
    options = ["--short-side", "256", "--clips-per-shard", "1", "--max-seconds", "2"]
    reference = command(root, tmp_path / "reference", *options)
    subprocess.run(reference, check=True, capture_output=True)
    output = tmp_path / "out"
    kill_and_resume(root, output, *options, kills=20, seed=0, longest=10)
    subprocess.run(command(root, output, *options), check=True, capture_output=True)
    assert contents(output) == contents(tmp_path / "reference")


# --- trouble --------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(videos, reference, tmp_path):
    before = contents(reference)
    with pytest.raises(UsageError, match=r"quality 95.*quality 90"):
        settings = Settings(short_side=48, clips_per_shard=3, rgb_quality=90)
        run_precompute(videos, reference, settings=settings)
    with pytest.raises(UsageError, match='classes: "kinetics400", now "kinetics600"'):
        run_precompute(videos, reference, classes="kinetics600")
    assert contents(reference) == before


def test_class_names_that_could_be_of_either_list_are_refused(videos, tmp_path):
    with pytest.raises(DatasetError, match="--classes kinetics400"):
        run_precompute(videos, tmp_path / "out", classes=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"short_side": 8}, "short side 8"),
        ({"max_seconds": -1}, "max seconds -1"),
        ({"rgb_quality": 101}, "quality 101"),
        ({"clips_per_shard": 0}, "clips_per_shard"),
    ],
)
def test_settings_without_a_meaning(videos, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        run_precompute(videos, tmp_path / "out", settings=Settings(**options))


def dies_over_one_video(video) -> Result:
    """A worker that the kernel kills for lack of memory, always over the same video."""
    if video.location.endswith("/c.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_video(video)


def test_a_killed_worker_costs_its_shard(videos, reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encode, "encode_video", dies_over_one_video)
    result = run_precompute(videos, tmp_path / "out")
    ((shard, reason),) = result.lost
    assert re.search(r"c\.mp4: its worker was ended by SIGKILL", reason)
    assert (result.made, result.complete) == (2, False)
    assert f"shard {shard} is given up" in capsys.readouterr().err
    there = contents(tmp_path / "out")
    assert {f"shard-{shard:05d}.tar", f"shard-{shard:05d}.json", "failures.csv"}.isdisjoint(there)
    monkeypatch.undo()
    assert run_precompute(videos, tmp_path / "out").complete
    assert contents(tmp_path / "out") == contents(reference)


def has_no_room(video) -> Result:
    raise OSError(28, "No space left on device")


def test_full_temporary_folder_is_no_fault_of_the_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "encode_video", has_no_room)
    with pytest.raises(I3DError, match="TMPDIR"):
        run_precompute(videos, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["manifest.json"]


def has_no_memory(video) -> Result:
    raise MemoryError("Unable to allocate 9 GiB")


def test_a_lack_of_memory_is_no_fault_of_the_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "encode_video", has_no_memory)
    with pytest.raises(I3DError, match=r"allocate 9 GiB.*fewer --workers"):
        run_precompute(videos, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["manifest.json"]


def test_what_is_removed_meanwhile_fails_the_job(videos, tmp_path, monkeypatch, capsys):
    """Exit code 0 is for a whole folder."""
    output = tmp_path / "out"

    def write_and_lose_the_first(output, manifest, shard):
        (tmp_path / "out" / "shard-00000.json").unlink(missing_ok=True)
        return write_shard(output, manifest, shard)

    monkeypatch.setattr(writing, "write_shard", write_and_lose_the_first)
    words = [str(word) for word in command(videos, output, "--no-flow")[3:]]
    assert exit_code(*words) == 1
    assert "shards that were written are gone; run again" in capsys.readouterr().err
    monkeypatch.undo()
    assert exit_code(*words) == 0


def test_full_disk_stops_and_loses_nothing(videos, reference, tmp_path):
    output = tmp_path / "out"
    limit = max(p.stat().st_size for p in reference.glob("*.tar")) - 10_000
    code = (
        "import resource, sys; from i3d.cli import main\n"
        "if __name__ == '__main__':\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "    main(sys.argv[1:])"
    )
    full = [sys.executable, "-c", code, *command(videos, output)[3:]]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(output) in done.stderr.splitlines()[-1]
    assert not [p for p in output.iterdir() if ".tmp" in p.name]
    subprocess.run(command(videos, output), check=True, capture_output=True)
    assert contents(output) == contents(reference)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_end_cleanly(videos, tmp_path, how):
    output = tmp_path / "out"
    slow = tmp_path / "slow"
    for i in range(4):
        write_video(slow / "archery" / f"{i}.mp4", noise_images(200, 340, 256))
    arguments = [a for a in command(slow, output) if a not in ("--short-side", "48")]
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # whoever runs the tests in the background has SIGINT ignored, which is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(300):
        if list(output.glob(".shard*")):
            break
        time.sleep(0.05)
    time.sleep(1.5)  # in the middle of the first video
    start = time.monotonic()
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - start < 2
    assert process.returncode == (130 if how == signal.SIGINT else 143)
    assert "Traceback" not in err
    assert [p.name for p in output.iterdir()] == ["manifest.json"]


# --- the command ----------------------------------------------------------------------------------


def test_exit_codes(videos, tmp_path, capsys):
    arguments = command(videos, tmp_path / "out", "--no_flow")[3:]
    for options, code in (([], 0), (["--strict"], 1), (["--json"], 0)):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *options])
        assert caught.value.code == code  # whichever run it was that met the broken videos
    out = capsys.readouterr().out
    result = json.loads(out[out.index("\n{") :])
    assert (result["already"], result["made"], result["encoded"]) == (3, 0, 0)
    assert [f["video"] for f in result["failed"]] == ["archery/empty", "bowling/broken"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--device", "cuda"])
    assert caught.value.code == 2
    assert "sees 0 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_no_workers_are_refused(videos, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as caught:
        main([*command(videos, tmp_path / "out")[3:], "--workers", "0", *option])
    assert caught.value.code == 2
    assert "workers 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_says_what_would_happen_and_writes_nothing(videos, tmp_path, capsys):
    arguments = ["precompute", str(videos), "--classes", "kinetics400", "--short-side", "48"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--dry-run", "--json"])
    assert caught.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["found"] == 8
    assert plan["classes"] == {"archery": 3, "bowling": 3, "abseiling": 2}
    assert [u["video"] for u in plan["unreadable"]] == ["archery/empty", "bowling/broken"]
    assert plan["sampled"] == 3
    assert plan["bytes"] > 10_000
    assert plan["core_seconds"] > 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "--dry-run" in capsys.readouterr().err


def test_historical_script(videos, tmp_path):
    script = EXAMPLES / "precompute_frames_flow.py"
    options = ["--no_compute_flow", "--num_preprocess_workers", "2"]
    # A subset of the classes could be of Kinetics-400 or 600: other options are handed on.
    options += ["--classes", "kinetics400"]
    arguments = [sys.executable, script, videos, tmp_path / "out", *options]
    subprocess.run(arguments, check=True, capture_output=True)
    assert open_dataset(tmp_path / "out").manifest.streams == ("rgb",)


@pytest.mark.slow
def test_memory_of_a_worker_on_a_long_video(tmp_path):
    """Ten minutes of 1080p: all frames; with flow, which takes longer, the first 20 seconds."""
    path = tmp_path / "second.mp4"
    write_video(path, [cv2.GaussianBlur(x, (0, 0), 4) for x in noise_images(25, 1920, 1080)])
    joined = tmp_path / "joined.mp4"
    repeat_packets(path, joined, times=600)
    code = (
        "import re, sys; from i3d.tasks.precompute.encode import *\n"
        "settings = Settings(flow=sys.argv[2] == 'flow', max_seconds=float(sys.argv[3]))\n"
        "result = encode_video(VideoTask(sys.argv[1], None, None, settings))\n"
        "print(len(result.value.rgb))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    for flow, seconds, frames in (("rgb", 0, 15_000), ("flow", 20, 500)):
        arguments = [sys.executable, "-c", code, str(joined), flow, str(seconds)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == frames
        assert peak < 600 * 1024  # KiB; measured 123 MiB, with flow 271 MiB


def repeat_packets(source: Path, target: Path, *, times: int) -> None:
    """The same coded second again and again, with growing time stamps."""
    import av

    with av.open(str(source)) as reader:
        stream = reader.streams.video[0]
        packets = [p for p in reader.demux(stream) if p.size]
        seconds = max(p.pts + p.duration for p in packets)
        with av.open(str(target), "w") as writer:
            copy = writer.add_stream_from_template(stream)
            for i in range(times):
                for packet in packets:
                    pts, dts = packet.pts, packet.dts
                    packet.pts, packet.dts = pts + i * seconds, dts + i * seconds
                    packet.stream = copy
                    writer.mux(packet)
                    packet.stream = stream
                    packet.pts, packet.dts = pts, dts


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_dry_run_takes_every_device(videos, device):
    result = dry_run(VideoSet(videos, classes="kinetics400"), settings=SMALL, work=Work(1, device))
    assert (result.found, len(result.unreadable), result.workers) == (8, 2, 1)
    with pytest.raises(UsageError, match="unknown device"):
        dry_run(VideoSet(videos, classes="kinetics400"), work=Work(device="tpu"))
