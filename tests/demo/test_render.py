"""Synthetic actions: the play, the scene that does not know it, the pictures and the files."""

import pickle

import numpy as np
import pytest

import i3d
from i3d.data.kinetics import read_dataset
from i3d.demo import scene
from i3d.demo.actions import ACTIONS, ALL_ACTIONS, JOINT, NEW_ACTIONS, REVERSED, Body, perform
from i3d.demo.render import render_dataset, render_video, stage, write_video
from i3d.demo.scene import draw_scene
from i3d.errors import UsageError

PAIRS = sorted(REVERSED.items())
PHASES = (np.arange(64) + 0.5) / 64
SECONDS = 64 / scene.FPS
BODY = Body()


def play(action, seed=0):
    return perform(action, np.random.default_rng(seed), PHASES, seconds=SECONDS, body=BODY)


def height_of(joints, *names):
    """Of the named joints, averaged: (frames,)."""
    return joints[:, [JOINT[name] for name in names], 1].mean(1)


def test_there_are_twelve_actions():
    assert len(ACTIONS) == len(set(ACTIONS)) == 12
    assert list(ACTIONS) == sorted(ACTIONS)
    assert set(REVERSED) | set(REVERSED.values()) <= set(ACTIONS)
    assert not set(NEW_ACTIONS) & set(ACTIONS)
    assert len(NEW_ACTIONS) == 4


@pytest.mark.parametrize(("action", "original"), PAIRS)
def test_a_reversed_action_is_the_other_one_played_backwards(action, original):
    for seed in range(8):
        forwards, backwards = play(original, seed), play(action, seed)
        np.testing.assert_allclose(backwards.joints, forwards.joints[::-1], atol=1e-9)
        assert np.abs(backwards.joints - forwards.joints).max() > 0.15  # heights
        if forwards.seat is not None:
            np.testing.assert_allclose(backwards.seat, forwards.seat, atol=1e-9)


@pytest.mark.parametrize(
    ("action", "joint", "least"),
    [("lying down", "head", 0.5), ("sitting down", "pelvis", 0.3)],  # measured 0.61 and 0.39
)
def test_one_way_actions_last_most_of_the_clip(action, joint, least):
    for seed in range(20):
        height = height_of(play(action, seed).joints, joint)
        share = (height - height[-1]) / (height[0] - height[-1])
        assert height[0] - height[-1] > 0.15
        assert ((share > 0.03) & (share < 0.97)).mean() > least  # is on its way
        assert share[:2].mean() > 0.95  # it begins and ends at rest, as its reversal does
        assert abs(share[-2:].mean()) < 0.05


@pytest.mark.parametrize("action", ALL_ACTIONS)
def test_figure_holds_together(action):
    """Limbs keep their lengths, nothing jumps, and something is always on the floor."""
    limbs = {"shoulder": ("elbow", BODY.upper_arm), "elbow": ("wrist", BODY.forearm),
             "hip": ("knee", BODY.thigh), "knee": ("ankle", BODY.shin)}  # fmt: skip
    for seed in range(10):
        joints = play(action, seed).joints
        for start, (end, length) in limbs.items():
            for side in ("left", "right"):
                limb = joints[:, JOINT[f"{side} {end}"]] - joints[:, JOINT[f"{side} {start}"]]
                np.testing.assert_allclose(np.linalg.norm(limb, axis=1), length, atol=1e-9)
        steps = np.linalg.norm(np.diff(joints, axis=0), axis=2)
        assert steps.max() < 0.3  # heights a frame; measured 0.23, a cartwheel's feet
        lowest = joints[..., 1].min(1)
        assert lowest.min() > 0  # joints are inside the limbs
        assert lowest.max() < 0.12  # measured 0.085, a jump


def test_feet_do_not_slide():
    for seed in range(10):
        joints = play("sitting down", seed).joints
        feet = joints[:, [JOINT["left ankle"], JOINT["right ankle"]]].mean(1)
        # Measured 0.04 heights; 0.2 and more where the figure hangs by the pelvis.
        assert np.ptp(feet[:, [0, 2]], axis=0).max() < 0.08


def test_both_sides_are_played():
    raised = set()
    for seed in range(12):
        joints = play("waving hand", seed).joints
        hands = height_of(joints, "left fingers") - height_of(joints, "right fingers")
        # The mirror image keeps the joint's name but moves it to the other side.
        side = np.sign(joints[:, JOINT["left shoulder"], 0].mean())
        raised.add(side * np.sign(hands.mean()))
    assert raised == {-1, 1}


def test_unknown_action():
    with pytest.raises(UsageError, match="no action 'flying'; choose from cartwheel, getting up"):
        render_video("flying", 0)
    with pytest.raises(UsageError, match="no action 'flying'"):
        play("flying")


def test_scene_does_not_depend_on_the_action():
    for seed in range(3):
        scenes = {pickle.dumps(stage(action, seed).scene) for action in ALL_ACTIONS}
        assert len(scenes) == 1
    assert pickle.dumps(draw_scene(0)) != pickle.dumps(draw_scene(1))


def test_pictures_differ_in_the_figure_alone():
    """What no figure comes near has the same pixels in all actions, noise and clutter included."""
    seed = next(s for s in range(100) if len(draw_scene(s).clutter) > 2)
    videos = [render_video(action, seed) for action in ("squat", "walking", "lying down")]
    far = [video[:, :24, :16] for video in videos]  # the upper left corner
    assert np.ptp(far[0].astype(int), axis=0).max() > 0
    np.testing.assert_array_equal(far[0], far[1])
    np.testing.assert_array_equal(far[0], far[2])
    assert (videos[0] != videos[1]).any()


def test_a_seat_is_as_likely_in_every_action():
    for seed in range(4):
        stools = {stage(action, seed).stool is not None for action in ACTIONS}
        assert stools == {draw_scene(seed).stool is not None}
    assert 8 < sum(draw_scene(seed).stool is not None for seed in range(32)) < 24


@pytest.mark.parametrize("action", ALL_ACTIONS)
def test_figure_is_inside_the_central_square(action):
    """7/8 of the square is what a crop of 112 from a short side of 128 leaves."""
    inside, outside, tall = [], [], []
    for seed in range(20):
        shot = stage(action, seed)
        scene = shot.scene
        reach = np.abs(shot.points - np.array([scene.width, scene.height]) / 2) / scene.height
        inside.append((reach.max(-1) < 7 / 16).mean())
        outside.append((reach.max((1, 2)) > 0.5).mean())
        tall.append(scene.camera.scale.mean() / scene.height)
    assert min(inside) > 0.88  # share of the joints; measured 0.93, a cartwheel
    assert np.mean(outside) < 0.1  # share of the frames; measured 0.05, a cartwheel
    assert min(tall) > 0.55
    assert max(tall) < 0.85


def test_frames():
    sizes, lengths = set(), set()
    for seed, action in enumerate(ACTIONS):
        frames = render_video(action, seed)
        count, height, width, channels = frames.shape
        assert frames.dtype == np.uint8
        assert channels == 3
        assert scene.FRAMES[0] <= count <= scene.FRAMES[1]
        assert scene.HEIGHT[0] <= height <= scene.HEIGHT[1]
        assert 1.15 < width / height < 1.45
        assert height % 2 == width % 2 == 0
        assert frames.std() > 5
        assert np.abs(np.diff(frames.astype(int), axis=0)).max((1, 2, 3)).min() > 20  # all move
        sizes.add((height, width))
        lengths.add(count)
    assert len(sizes) > 6
    assert len(lengths) > 6


def test_same_seed_same_video():
    first = render_video("punching", 7)
    np.testing.assert_array_equal(render_video("punching", 7), first)
    for other in (render_video("punching", 8), render_video("side kick", 7)):
        assert other.shape != first.shape or (other != first).mean() > 0.01


def test_written_video_is_read_back(tmp_path):
    frames = render_video("squat", 5)
    path = tmp_path / "new folder" / "squat.mp4"
    write_video(path, frames)
    read = i3d.read_video(path, short_side=frames.shape[1])
    assert read.shape == frames.shape
    error = np.abs(read.astype(int) - frames)
    assert error.mean() < 8  # gray levels; measured 3.6: crf 20, half the colour resolution
    again = tmp_path / "again.mp4"
    write_video(again, frames)
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["squat.mp4"]


def test_frames_that_cannot_be_written(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(UsageError, match=r"17x16 pixels: .* takes even sizes"):
        write_video(path, np.zeros((2, 16, 17, 3), np.uint8))
    with pytest.raises(UsageError, match=r"must be uint8 \(T, H, W, 3\), not float64 \(2, 16, 16"):
        write_video(path, np.zeros((2, 16, 16, 3)))
    assert not list(tmp_path.iterdir())


def test_dataset(tmp_path, monkeypatch):
    """The layout is our reader's, what is there stays, and each seed has videos of its own."""
    monkeypatch.setattr(scene, "FRAMES", (4, 6))
    assert render_dataset(tmp_path / "a", per_class=2, seed=1) == 24
    dataset = read_dataset(tmp_path / "a", classes="folders")
    assert dataset.classes.names == ACTIONS
    assert [v.class_name for v in dataset.videos] == [a for a in ACTIONS for _ in range(2)]
    files = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*.mp4")}
    assert len(set(files.values())) == 24

    broken = tmp_path / "a" / "push up" / "push-up-0001.mp4"
    kept = tmp_path / "a" / "push up" / "push-up-0000.mp4"
    broken.unlink()
    kept.write_bytes(b"kept")
    assert render_dataset(tmp_path / "a", per_class=2, seed=1) == 1
    assert broken.read_bytes() == files[broken]
    assert kept.read_bytes() == b"kept"

    assert render_dataset(tmp_path / "b", per_class=1, seed=2) == 12
    others = {path.read_bytes() for path in (tmp_path / "b").rglob("*.mp4")}
    assert not others & set(files.values())


def test_dataset_of_chosen_actions(tmp_path, monkeypatch):
    """The others change nothing in it."""
    monkeypatch.setattr(scene, "FRAMES", (4, 6))
    render_dataset(tmp_path / "all", per_class=1, seed=4, actions=ALL_ACTIONS)
    assert render_dataset(tmp_path / "two", per_class=1, seed=4, actions=("squat", "bowing")) == 2
    files = sorted((tmp_path / "two").rglob("*.mp4"))
    assert [path.name for path in files] == ["bowing-0000.mp4", "squat-0000.mp4"]
    for path in files:
        everyones = tmp_path / "all" / path.relative_to(tmp_path / "two")
        assert everyones.read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="no action 'flying'"):
        render_dataset(tmp_path / "none", per_class=1, seed=4, actions=("squat", "flying"))
    assert not (tmp_path / "none").exists()


def test_workers_render_the_same_files(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, workers in ((alone, 1), (together, 2)):
        for action in ACTIONS[:-2]:  # there already
            path = folder / action / f"{action.replace(' ', '-')}-0000.mp4"
            path.parent.mkdir(parents=True)
            path.touch()
        assert render_dataset(folder, per_class=1, seed=3, workers=workers) == 2
    for path in alone.rglob("*.mp4"):
        assert (together / path.relative_to(alone)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"workers": 0}, {"seed": -1}])
def test_dataset_of_nothing(tmp_path, wrong):
    with pytest.raises(UsageError, match="must be at least"):
        render_dataset(tmp_path, **{"per_class": 1, "seed": 0, **wrong})


def test_progress_is_shown_on_request(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scene, "FRAMES", (2, 2))
    monkeypatch.setattr("i3d.console.LOG_SECONDS", 0)
    render_dataset(tmp_path / "quiet", per_class=1, seed=0)
    assert capsys.readouterr() == ("", "")
    render_dataset(tmp_path / "told", per_class=1, seed=0, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "12/12 videos" in err
