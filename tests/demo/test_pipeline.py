"""The embedded example: every step runs, and says what it found.

The fast tests run it on videos of a second with small random networks; the slow one as it is.
"""

import json
import shlex
import shutil

import av
import pytest
from support.bundles import small_model
from support.pages import read

import i3d
from i3d import demo
from i3d.cli import main
from i3d.data.shards import open_dataset
from i3d.demo import pipeline
from i3d.demo.actions import ACTIONS
from i3d.demo.sequence import SEQUENCE, action_at
from i3d.errors import CheckpointError, UsageError

# --- what is made ---------------------------------------------------------------------------------


def test_all_files_are_there(made, place, preset):
    names = sorted(p.name for p in (place / "demo").iterdir())
    assert names == [
        "classes.txt", "demo.json", "evaluation.html", "evaluation.json", "flow.safetensors",
        "index.html", "rgb.safetensors", "sequence.mp4", "shards", "videos",
    ]  # fmt: skip
    videos = [*(place / "demo" / "videos").rglob("*.mp4"), place / "demo" / "sequence.mp4"]
    assert len(videos) == 13
    for video in videos:
        with av.open(str(video)) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    manifest = open_dataset(place / "demo" / "shards").manifest
    assert manifest.classes.names == ACTIONS
    assert (manifest.preset, manifest.found) == (preset, 12)


def test_output_has_every_command_above_its_result(made, place):
    found, printed = made
    assert printed.startswith("# Render synthetic videos of 12 human actions")
    commands = [step.command for step in found.steps if step.command]
    assert [c.split()[1] for c in commands] == [
        "precompute", "evaluate", "predict", "predict", "checkpoints"
    ]  # fmt: skip
    results = (None, found.evaluation, found.prediction, found.timeline, "not fetched")
    rest = printed
    for command, result in zip(commands, results, strict=True):
        before, found_it, rest = rest.partition(f"\n$ {command}\n")
        assert found_it, f"{command} is not printed after {before}"
        if result is not None:
            assert str(result) in rest
    assert "demo/index.html: open it in a browser" in rest


def test_report_is_the_table(made, place):
    found, _ = made
    report = json.loads((place / "demo" / "evaluation.json").read_text())
    assert (report["found"], report["evaluated"], report["skipped"]) == (12, 12, [])
    assert report["protocol"]["frames"] == 12
    for row, scores in found.evaluation.scores.items():
        assert report[row] == json.loads(json.dumps(scores.as_dict()))


def test_commands_do_the_same_when_they_are_typed(made, place, capsys, monkeypatch):
    found, _ = made
    monkeypatch.chdir(place)
    before = json.loads((place / "demo" / "evaluation.json").read_text())
    outputs = []
    for step in found.steps:
        if step.command and step.command != found.released.fetch_command:
            with pytest.raises(SystemExit) as caught:
                main(shlex.split(step.command)[1:])
            assert caught.value.code == 0
            outputs.append(capsys.readouterr().out.rstrip("\n"))
    precomputed, evaluated, *predicted = outputs
    assert "0 made, 1 there before, of 1; all complete" in precomputed
    table = str(found.evaluation).split("versions:")[0]
    assert evaluated.startswith(table)
    assert predicted == [str(found.prediction), str(found.timeline)]
    after = json.loads((place / "demo" / "evaluation.json").read_text())
    timed = ("seconds", "videos_per_second", "workers")
    assert {k: v for k, v in after.items() if k not in timed} == {
        k: v for k, v in before.items() if k not in timed
    }


def test_longer_video_is_what_it_is_said_to_be(made, place):
    found, _ = made
    frames = i3d.read_video(place / "demo" / "sequence.mp4", short_side=48)
    (length,) = {round(25 * (s.end_seconds - s.start_seconds)) for s in found.truth}
    assert [s.action for s in found.truth] == list(SEQUENCE)
    assert len(frames) == len(SEQUENCE) * length == found.timeline.frames
    assert len(found.timeline.windows) == 2 * len(SEQUENCE)
    for window in found.timeline.windows:  # none looks at two actions
        last = window.end_seconds - 0.04
        assert action_at(found.truth, window.start_seconds) == action_at(found.truth, last)


# --- the released network -------------------------------------------------------------------------


def run_again(networks, place, folder, capsys, monkeypatch):
    """The command on a copy of what is made: the lines it prints, and its page."""
    shutil.copytree(place / "demo", folder / "demo")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pipeline, "NETWORKS", networks)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "demo", "--per-class", "1", "--workers", "1"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    return out.splitlines(), read(folder / "demo" / "index.html")


def test_without_a_source_it_says_so(made):
    _, printed = made
    *_, page, last = printed.splitlines()
    assert page.startswith("demo/index.html: open it in a browser")
    assert last.startswith("rgb_scratch_kinetics400 was not fetched (")
    assert last.endswith("no such file); later: i3d checkpoints download rgb_scratch_kinetics400")


def test_released_network_is_fetched_once(
    quick, made, networks, place, released, cache, tmp_path, capsys, monkeypatch
):
    command = "i3d predict VIDEO --checkpoint rgb_scratch_kinetics400"
    path = cache / "rgb_scratch_kinetics400.safetensors"
    for attempt, mirror in (("first", released), ("second", tmp_path / "no-mirror")):
        monkeypatch.setenv("I3D_CHECKPOINT_URL", str(mirror))
        lines, page = run_again(networks, place, tmp_path / attempt, capsys, monkeypatch)
        fetched = lines.index("$ i3d checkpoints download rgb_scratch_kinetics400")
        assert lines[fetched + 1] == str(path)
        assert lines[-1] == f"on a video of your own: {command}"
        section = page.one(id="released")
        assert "figures above are from synthetic videos and two small networks" in section.text
        assert "not fetched" not in section.text
        assert section.one("pre").text == command
    assert i3d.load("rgb_scratch_kinetics400").classes[0] == "abseiling"


def test_page_is_there_when_the_download_is_broken_off(
    quick, made, networks, place, tmp_path, monkeypatch
):
    def break_off(*_, **__):
        raise KeyboardInterrupt

    shutil.copytree(place / "demo", tmp_path / "demo")
    (tmp_path / "demo" / "index.html").unlink()
    monkeypatch.setattr(pipeline, "download", break_off)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", per_class=1, workers=1, checkpoints=networks)
    section = read(tmp_path / "demo" / "index.html").one(id="released")
    assert "It was not fetched: its download was broken off." in section.text


# --- again, and what goes wrong -------------------------------------------------------------------


def test_second_run_makes_no_video_again(quick, made, networks, place, capsys, monkeypatch):
    def times():
        kept = ("*.mp4", "*.tar", "manifest.json", "shard-*.json")
        return {p: p.stat().st_mtime_ns for k in kept for p in (place / "demo").rglob(k)}

    before = times()
    assert len(before) == 13 + 3
    monkeypatch.chdir(place)
    monkeypatch.setattr(pipeline, "NETWORKS", networks)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "demo", "--per-class", "1", "--workers", "1"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    assert times() == before
    assert "0 videos rendered, 12 there before" in out
    scores = str(made[0].evaluation).split("\n\n")[1]
    assert scores in out


def test_missing_networks_are_one_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "NETWORKS", tmp_path / "package")
    with pytest.raises(SystemExit) as caught:
        main(["demo", str(tmp_path / "demo")])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (1, "")
    assert err.count("\n") == 1
    assert "package/rgb.safetensors: the demo's trained network is missing; install" in err
    assert not list(tmp_path.iterdir())


def test_networks_of_other_classes_are_refused(quick, made, networks, place, preset, tmp_path):
    for stream in ("rgb", "flow"):
        model = small_model(0, stream=stream, num_classes=5, preset=preset)
        i3d.save(model, tmp_path / f"{stream}.safetensors")
    root = place / "demo"
    try:
        with pytest.raises(CheckpointError, match="tells 5 classes apart"):
            demo.run_demo(root, per_class=1, workers=1, checkpoints=tmp_path)
    finally:
        for stream in ("rgb", "flow"):  # the other tests' folder
            name = f"{stream}.safetensors"
            (root / name).write_bytes((networks / name).read_bytes())


def test_folder_of_something_else_is_refused(networks, tmp_path):
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(UsageError, match=r"something else \(holiday.mp4, and no demo.json\)"):
        demo.run_demo(tmp_path, checkpoints=networks)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.mp4"]


def test_folder_of_other_videos_is_refused(made, networks, place):
    with pytest.raises(UsageError, match=r'"per_class": 1}, not .*"seed": 3, "per_class": 1}; use'):
        demo.run_demo(place / "demo", seed=3, per_class=1, checkpoints=networks)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"per_class": 0}, {"workers": 0}])
def test_numbers_that_mean_nothing(networks, tmp_path, wrong):
    with pytest.raises(UsageError, match="at least"):
        demo.run_demo(tmp_path / "demo", checkpoints=networks, **wrong)
    assert not list(tmp_path.iterdir())


def test_videos_alone(quick, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["demo", str(tmp_path / "new"), "--per-class", "1", "--workers", "1", *arguments])
        return caught.value.code, *capsys.readouterr()

    wanted = ("--videos-only", "--action", "bowing", "--action", "running")
    assert run(*wanted)[:2] == (0, f"{tmp_path / 'new'}: 2 videos rendered, 0 there before\n")
    assert run(*wanted)[:2] == (0, f"{tmp_path / 'new'}: 0 videos rendered, 2 there before\n")
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.mp4"))
    assert files == ["new/bowing/bowing-0000.mp4", "new/running/running-0000.mp4"]
    code, _, err = run("--videos-only", "--action", "flying")
    assert (code, "no action 'flying'; choose from" in err) == (2, True)
    code, _, err = run("--action", "bowing")
    assert (code, "--action is for --videos-only" in err) == (2, True)


# --- as it is -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_streams_are_better_than_one(tmp_path):
    """On new videos, of two seeds."""
    right = dict.fromkeys(("rgb", "flow", "two_stream"), 0)
    for seed in (20_001, 20_002):
        found = demo.run_demo(tmp_path / str(seed), seed=seed, per_class=8)
        top1 = {row: scores.top1.value for row, scores in found.evaluation.scores.items()}
        assert top1["two_stream"] >= 0.9
        assert top1["two_stream"] >= max(top1["rgb"], top1["flow"])
        targets = found.evaluation.predictions.targets
        for row, logits in found.evaluation.logits.items():
            right[row] += int((logits.argmax(1) == targets).sum())
    assert right["two_stream"] > max(right["rgb"], right["flow"])
