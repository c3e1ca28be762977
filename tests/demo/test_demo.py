"""The embedded example: every step runs, and says what it found; its videos need more than a frame.

The fast tests run it on videos of a second with small random networks; the slow ones as it is.
"""

import base64
import contextlib
import hashlib
import io
import json
import shlex
import subprocess
import sys
from urllib.parse import unquote

import av
import cv2
import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from support.bundles import small_model
from support.html import read

import i3d
from i3d import demo
from i3d.cli import main
from i3d.data.shards import open_dataset
from i3d.demo import pipeline, scene
from i3d.demo.actions import ACTIONS, REVERSED
from i3d.demo.render import render_video
from i3d.demo.sequence import SEQUENCE, action_at
from i3d.errors import CheckpointError, UsageError
from i3d.metrics import probabilities

PRESET = "kinetics-i3d-48"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    for seed, stream in enumerate(("rgb", "flow")):
        model = small_model(seed, stream=stream, classes=ACTIONS, num_classes=12, preset=PRESET)
        i3d.save(model, folder / f"{stream}.safetensors")
    return folder


@pytest.fixture(scope="module")
def quick():
    """Small videos of a second, and networks that see half of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHORT_SIDE", 48)
        patch.setattr(scene, "FRAMES", (20, 24))
        patch.setattr(pipeline, "EVALUATED_FRAMES", 12)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where it is run; what is made is in the folder ``demo`` in it."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def made(quick, networks, place):
    """(what was found, what was printed)"""
    printed = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed):
        found = demo.run("demo", per_class=1, workers=1, checkpoints=networks)
    return found, printed.getvalue()


@pytest.fixture
def page(made, place):
    return read(place / "demo" / "index.html")


# --- what is made ---------------------------------------------------------------------------------


def test_all_files_are_there(made, place):
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
    assert (manifest.preset, manifest.found) == (PRESET, 12)


def test_output_has_every_command_above_its_result(made, place):
    found, printed = made
    assert printed.startswith("# Render synthetic videos of 12 human actions")
    commands = [step.command for step in found.steps if step.command]
    assert [c.split()[1] for c in commands] == ["precompute", "evaluate", "predict", "predict"]
    results = (None, found.evaluation, found.prediction, found.timeline)
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
        if step.command:
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


# --- the page -------------------------------------------------------------------------------------


def test_page_says_that_the_videos_are_synthetic(page):
    text = page.one("header").text
    assert "videos of this page are synthetic" in text
    assert "trained on other videos drawn by the same program" in text
    assert "nothing about real videos" in text


def test_page_has_the_table(page, made):
    found, _ = made
    rows = {tr.attributes["data-row"]: tr for tr in page.one(id="accuracy").all("tr") if "data-row"
            in tr.attributes}  # fmt: skip
    assert list(rows) == ["rgb", "flow", "two_stream"]
    for row, s in found.evaluation.scores.items():
        values = [f"{100 * v:.2f}" for v in (s.top1.value, s.top5.value, s.mean_class)]
        assert [v.text for v in rows[row].all(class_="value")] == values
        ranges = [f"{100 * p.low:.2f}–{100 * p.high:.2f}" for p in (s.top1, s.top5)]
        assert [r.text for r in rows[row].all(class_="range")] == ranges


def test_page_shows_a_sample_of_every_action(page, made, place):
    found, _ = made
    about = found.evaluation.predictions
    cards = list(page.one("ol", class_="samples").all("li"))
    assert [card.one("h3").text for card in cards] == list(ACTIONS)
    for action, card in zip(ACTIONS, cards, strict=True):
        video = card.one("video").attributes
        assert {"muted", "loop", "playsinline", "controls"} <= set(video)
        assert (video["preload"], video["aria-label"]) == ("metadata", action)
        source = f"videos/{action}/{action.replace(' ', '-')}-0000"
        assert unquote(video["src"]) == f"{source}.mp4"
        size = picture(video["poster"]).shape[:2]
        assert size == (int(video["height"]), int(video["width"]))
        flows = [picture(i.attributes["src"]) for i in card.all("img")]
        assert [f.shape[:2] for f in flows] == [size] * 3
        index = about.videos.index(source.removeprefix("videos/"))
        for row, logits in found.evaluation.logits.items():
            shares = probabilities(logits[index])
            answer = ACTIONS[shares.argmax()]
            _, said, sureness = (c.text for c in card.one("tr", **{"data-row": row}).all()
                                 if c.tag in ("th", "td"))  # fmt: skip
            assert said == (
                "right" if answer == action else f"wrong:{answer}"
            )  # spaces at the ends of an element are cut
            assert sureness == f"{100 * shares.max():.0f} %"


def picture(source):
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    jpeg = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def test_timeline_lies_where_its_windows_are(page, made):
    found, _ = made
    section = page.one(id="timeline")
    scale = float(section.one("path", id="playhead").attributes["data-scale"])
    (left,) = {float(p.attributes["d"][1:].split()[0]) for p in section.all("path", class_="line")}
    names = {float(t.attributes["y"]): t.text for t in section.all("text", class_="name")}
    rows = [names[y] for y in sorted(names)]
    assert rows[: len(SEQUENCE)] == list(SEQUENCE)
    truths = [t.attributes for t in section.all("rect", class_="truth")]
    for segment, box in zip(found.truth, truths, strict=True):
        assert float(box["x"]) == pytest.approx(left + scale * segment.start_seconds, abs=0.06)
        middle = float(box["y"]) + float(box["height"]) / 2
        assert names[min(names, key=lambda y: abs(y - 4 - middle))] == segment.action
    table = section.one("details").one("table").rows()
    assert len(table) == len(list(section.all("image"))) == len(found.timeline.windows)
    right = 0
    for window, (span, truth, answer, share) in zip(found.timeline.windows, table, strict=True):
        shares = probabilities(window.logits)
        assert span == f"{window.start_seconds:.2f}–{window.end_seconds:.2f}"
        assert truth == action_at(found.truth, window.start_seconds)
        assert (answer, share) == (ACTIONS[shares.argmax()], f"{100 * shares.max():.1f}")
        right += truth == answer
    assert f"right in {right} of {len(table)} windows" in section.text
    opaque = [float(g.one("rect").attributes["fill-opacity"]) for g in section.all("g")]
    best = [probabilities(window.logits).max() for window in found.timeline.windows]
    assert sorted(opaque)[-1] == pytest.approx(max(best), abs=0.001)


def test_page_needs_nothing_but_its_folder(page, place):
    ids = {e.attributes["id"] for e in page.all() if "id" in e.attributes}
    for element in page.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name != "style", f"{element.tag} {name}"
            if name not in ("src", "href", "poster", "srcset", "data", "action", "xlink:href"):
                continue
            if value.startswith("#"):
                assert value[1:] in ids
            elif not value.startswith("data:"):
                assert not value.startswith("/") and ".." not in value and ":" not in value
                assert (place / "demo" / unquote(value)).is_file()
    style = page.one("style").children[0]
    assert "url(" not in style and "@import" not in style
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(" ", 1) for rule in policy.attributes["content"].split("; "))

    def quoted_hash(tag):
        digest = hashlib.sha256(page.one(tag).children[0].encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "style-src": quoted_hash("style"),
        "script-src": quoted_hash("script"),
        "img-src": "data:",
        "media-src": "'self' file:",  # the videos beside it, however it is opened
        "base-uri": "'none'",
        "form-action": "'none'",
    }


# --- again, and what goes wrong -------------------------------------------------------------------


def test_second_run_makes_no_video_again(made, networks, place, capsys, monkeypatch):
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


def test_networks_of_other_classes_are_refused(quick, made, networks, place, tmp_path):
    for stream in ("rgb", "flow"):
        model = small_model(0, stream=stream, num_classes=5, preset=PRESET)
        i3d.save(model, tmp_path / f"{stream}.safetensors")
    root = place / "demo"
    try:
        with pytest.raises(CheckpointError, match="tells 5 classes apart"):
            demo.run(root, per_class=1, workers=1, checkpoints=tmp_path)
    finally:
        for stream in ("rgb", "flow"):  # the other tests' folder
            name = f"{stream}.safetensors"
            (root / name).write_bytes((networks / name).read_bytes())


def test_folder_of_something_else_is_refused(networks, tmp_path):
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(UsageError, match=r"something else \(holiday.mp4, and no demo.json\)"):
        demo.run(tmp_path, checkpoints=networks)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.mp4"]


def test_folder_of_other_videos_is_refused(made, networks, place):
    with pytest.raises(UsageError, match=r'"per_class": 1}, not .*"seed": 3, "per_class": 1}; use'):
        demo.run(place / "demo", seed=3, per_class=1, checkpoints=networks)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"per_class": 0}, {"workers": 0}])
def test_numbers_that_mean_nothing(networks, tmp_path, wrong):
    with pytest.raises(UsageError, match="at least"):
        demo.run(tmp_path / "demo", checkpoints=networks, **wrong)
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


@pytest.mark.parametrize("module", ["i3d.demo", "i3d.demo.render"])
def test_rendering_needs_no_torch(module):
    script = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- as it is -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_streams_are_better_than_one(tmp_path):
    """On new videos, of two seeds."""
    right = dict.fromkeys(("rgb", "flow", "two_stream"), 0)
    for seed in (20_001, 20_002):
        found = demo.run(tmp_path / str(seed), seed=seed, per_class=8)
        top1 = {row: scores.top1.value for row, scores in found.evaluation.scores.items()}
        assert top1["two_stream"] >= 0.9
        assert top1["two_stream"] >= max(top1["rgb"], top1["flow"])
        targets = found.evaluation.predictions.targets
        for row, logits in found.evaluation.logits.items():
            right[row] += int((logits.argmax(1) == targets).sum())
    assert right["two_stream"] > max(right["rgb"], right["flow"])


@pytest.mark.slow
def test_one_frame_is_not_enough(monkeypatch):
    """The same features and learner, from the middle frame or from six frames in their order.

    Measured with six divisions of these videos: the frame 54 to 61 % right, the six 77 to 85 %; of
    the actions that are others played backwards, 42 to 52 % and 83 to 90 %.
    """
    monkeypatch.setattr(scene, "HEIGHT", (64, 64))
    monkeypatch.setattr(scene, "FRAMES", (48, 64))
    gradients = cv2.HOGDescriptor((64, 64), (16, 16), (8, 8), (8, 8), 9)
    trained_on, tested_on, frames_seen = 40, 15, 6
    frame, clip, labels = [], [], []
    for number in range(trained_on + tested_on):
        for label, action in enumerate(ACTIONS):
            video = render_video(action, 10_000 + number * len(ACTIONS) + label)
            left = (video.shape[2] - 64) // 2
            video = video[:, :, left : left + 64]
            at = np.linspace(0.05, 0.95, frames_seen) * len(video)
            grays = [cv2.cvtColor(video[int(i)], cv2.COLOR_RGB2GRAY) for i in (*at, len(video) / 2)]
            *seen, middle = (gradients.compute(gray).ravel() for gray in grays)
            frame.append(middle)
            clip.append(np.concatenate(seen))
            labels.append(label)
    y = np.array(labels)
    split = trained_on * len(ACTIONS)
    pairs = [ACTIONS.index(action) for pair in REVERSED.items() for action in pair]
    of_pairs = np.isin(y[split:], pairs)

    def right(features):
        x = np.stack(features)
        learner = make_pipeline(StandardScaler(), SVC(C=10)).fit(x[:split], y[:split])
        hits = learner.predict(x[split:]) == y[split:]
        return hits.mean(), hits[of_pairs].mean()

    (frame_all, frame_pairs), (clip_all, clip_pairs) = right(frame), right(clip)
    print(f"frame {frame_all:.3f} {frame_pairs:.3f}, clip {clip_all:.3f} {clip_pairs:.3f}")
    # 180 videos, 60 of them of the pairs: the differences' standard errors are 5 and 8 points.
    assert clip_all > frame_all + 0.08
    assert clip_pairs > frame_pairs + 0.2
