"""Synthetic actions as a play of joints: limbs, floor, sides, and reversals."""

import numpy as np
import pytest

from i3d.demo import scene
from i3d.demo.actions import ACTIONS, ALL_ACTIONS, JOINT, NEW_ACTIONS, REVERSED, Body, perform
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
        play("flying")
