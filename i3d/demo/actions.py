"""Human actions, played by a jointed figure: joint angles over time -> joints in space.

    key poses (degrees) -> smooth angles + the player's own manner -> forward kinematics -> floor

Lengths are in heights of the standing figure. Axes of the figure: x to its left, y up, z to where
it faces; the floor is y = 0.

An action is a short table of key poses. Two of them have no table: standing up is sitting down and
getting up is lying down, played backwards, pauses and all. So each of their poses is as likely in
the one as in the other, and only the order of the frames tells them apart.

The networks that come with the package know twelve of the actions; four more are there to learn.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from i3d.errors import UsageError

SIDES = ("left", "right")
JOINTS = (
    "pelvis", "waist", "neck", "head", "hair",
    *(f"{side} {joint}" for side in SIDES for joint in (
        "shoulder", "elbow", "wrist", "fingers", "hip", "knee", "ankle", "heel", "toe",
    )),
)  # fmt: skip
JOINT = {name: i for i, name in enumerate(JOINTS)}

Pose = Mapping[str, float]  # channel -> degrees; a channel that is not named is 0

# What an angle turns, all 0 in a figure that stands at attention. Positive is: the whole body
# pitched forwards, rolled to its right, turned to its left; the trunk and head bent forwards,
# leant to the right, turned to the left; arm or thigh raised forwards, spread to the side, twisted
# inwards; elbow and knee bent. A foot stays level with the body unless its toes point down. `lift`
# is no angle: hundredths of a height off the floor.
_TRUNK = ("pitch", "roll", "yaw", "lift", "spine", "lean", "turn", "nod", "look")
_LIMBS = ("arm raise", "arm spread", "arm twist", "elbow",
          "thigh raise", "thigh spread", "thigh twist", "knee", "foot")  # fmt: skip
CHANNELS = (*_TRUNK, *(f"{side} {limb}" for side in SIDES for limb in _LIMBS))
_CHANNEL = {name: i for i, name in enumerate(CHANNELS)}


@dataclass(frozen=True)
class Body:
    """Lengths of the limbs, in heights of the figure."""

    thigh: float = 0.245
    shin: float = 0.24
    foot: float = 0.115
    sole: float = 0.035  # from the floor to the ankle
    hips: float = 0.06  # from the middle to one hip joint
    abdomen: float = 0.12
    chest: float = 0.18
    shoulders: float = 0.115  # from the middle to one shoulder joint
    neck: float = 0.095  # to the middle of the head
    upper_arm: float = 0.165
    forearm: float = 0.145
    hand: float = 0.055


def random_body(rng: np.random.Generator) -> Body:
    """Draw the proportions of a figure: each length within 8 percent of the average."""
    lengths = asdict(Body())
    return Body(**{name: length * rng.uniform(0.92, 1.08) for name, length in lengths.items()})


@dataclass(frozen=True)
class Motion:
    """An action as key poses between which the figure moves.

    ``keys`` are (phase, pose) from phase 0 to 1. Where the last pose is not the first one, as in a
    cartwheel, the next cycle goes on from there.
    """

    keys: tuple[tuple[float, Pose], ...]
    cycle_seconds: tuple[float, float] | None  # range; None: once, over most of the clip
    ease: float = 0.1  # phase by which a key pose is blurred into its neighbours
    level: bool = False  # hands and toes are both on the floor


def _pose(base: Pose | None = None, /, **angles: float) -> Pose:
    """A pose that differs from ``base`` (by default, standing) in some angles.

    ``arm_raise`` sets both arms, ``left_arm_raise`` one.
    """
    pose = dict(_STAND if base is None else base)
    for name, value in angles.items():
        channel = name.replace("_", " ")
        both = [f"{side} {channel}" for side in SIDES]
        pose.update(dict.fromkeys([channel] if channel in _CHANNEL else both, value))
    return pose


def _swap(pose: Pose) -> Pose:
    """The pose with left and right exchanged."""
    other = {"left": "right", "right": "left"}
    swapped = {}
    for channel, value in pose.items():
        side, _, limb = channel.partition(" ")
        name = f"{other[side]} {limb}" if side in other else channel
        swapped[name] = -value if channel in ("roll", "yaw", "lean", "turn", "look") else value
    return swapped


_STAND: Pose = {}
_STAND = _pose(arm_spread=9, arm_raise=4, elbow=14, thigh_spread=4, thigh_raise=2, knee=4)

_SEATED = _pose(
    pitch=-4, spine=8, thigh_raise=84, knee=84, thigh_spread=9, arm_raise=28, elbow=50
)  # fmt: skip
_SITTING_DOWN = (
    (0.0, _STAND),
    (0.35, _pose(pitch=26, spine=18, thigh_raise=66, knee=58, thigh_spread=8, arm_raise=30, nod=-18,
                 elbow=22)),
    (0.75, _pose(pitch=27, spine=20, thigh_raise=112, knee=92, thigh_spread=9, arm_raise=45,
                 elbow=35, nod=-18)),
    (1.0, _SEATED),
)  # fmt: skip

_LYING = _pose(pitch=-90, thigh_raise=3, knee=6, foot=-70, thigh_spread=8, arm_spread=22, elbow=12)
_LYING_DOWN = (
    (0.0, _STAND),
    (0.25, _pose(pitch=26, spine=22, thigh_raise=128, knee=128, thigh_spread=10, arm_raise=10,
                 arm_spread=20, foot=8)),
    (0.45, _pose(pitch=-14, spine=22, thigh_raise=112, knee=96, thigh_spread=12, arm_raise=-38,
                 arm_spread=20, elbow=12, foot=-5)),
    (0.72, _pose(pitch=-52, spine=16, thigh_raise=66, knee=62, thigh_spread=10, arm_raise=-32,
                 arm_spread=24, elbow=60, nod=14, foot=-35)),
    (1.0, _LYING),
)  # fmt: skip

_CARTWHEEL = (
    (0.0, _pose(arm_spread=150, elbow=8, thigh_spread=10)),
    (0.18, _pose(roll=-50, lean=-14, arm_spread=156, elbow=6, right_thigh_spread=42,
                 left_thigh_spread=22, left_knee=28, left_thigh_raise=18, foot=20)),
    (0.36, _pose(roll=-128, arm_spread=160, elbow=6, thigh_spread=50, foot=45)),
    (0.5, _pose(roll=-180, arm_spread=162, elbow=4, thigh_spread=55, foot=50)),
    (0.64, _pose(roll=-232, arm_spread=160, elbow=6, thigh_spread=50, foot=45)),
    (0.82, _pose(roll=-310, lean=14, arm_spread=156, elbow=6, left_thigh_spread=42,
                 right_thigh_spread=22, right_knee=28, right_thigh_raise=18, foot=20)),
    (1.0, _pose(roll=-360, arm_spread=150, elbow=8, thigh_spread=10)),
)  # fmt: skip

_JACK_IN = _pose(thigh_spread=1, knee=14, thigh_raise=7, arm_spread=10, elbow=14)
_JACK_OUT = _pose(thigh_spread=25, knee=12, thigh_raise=6, arm_spread=164, elbow=16)
_JACK_AIR = _pose(thigh_spread=13, lift=6, foot=24, arm_spread=88, elbow=14)
_JUMPING_JACKS = (
    (0.0, _JACK_IN),
    (0.25, _JACK_AIR),
    (0.5, _JACK_OUT),
    (0.75, _JACK_AIR),
    (1.0, _JACK_IN),
)

_FISTS_UP = _pose(
    arm_raise=38, arm_spread=6, arm_twist=22, elbow=128, thigh_spread=8, nod=6, spine=6,
    left_thigh_raise=20, left_knee=18, right_thigh_raise=-10, right_knee=14, right_foot=10,
)  # fmt: skip
_JAB = _pose(_FISTS_UP, left_arm_raise=94, left_elbow=4, turn=-24, yaw=-8, spine=10)
_CROSS = _pose(_FISTS_UP, right_arm_raise=94, right_elbow=4, turn=30, yaw=12, spine=10)
_PUNCHING = (
    (0.0, _FISTS_UP),
    (0.12, _FISTS_UP),
    (0.27, _JAB),
    (0.42, _FISTS_UP),
    (0.57, _FISTS_UP),
    (0.74, _CROSS),
    (0.9, _FISTS_UP),
    (1.0, _FISTS_UP),
)

_PLANK = _pose(pitch=68, arm_raise=68, arm_spread=6, elbow=6, foot=62, nod=-20, thigh_spread=4,
               thigh_raise=0, knee=2)  # fmt: skip
_PUSH_UP = (
    (0.0, _PLANK),
    (0.45, _pose(_PLANK, pitch=82, arm_raise=28, arm_spread=38, arm_twist=-10, elbow=104)),
    (0.55, _pose(_PLANK, pitch=82, arm_raise=28, arm_spread=38, arm_twist=-10, elbow=104)),
    (1.0, _PLANK),
)

_GUARD = _pose(
    arm_raise=34, arm_spread=10, arm_twist=18, elbow=112, thigh_spread=10, knee=14, thigh_raise=8
)
_CHAMBER = _pose(_GUARD, roll=12, lean=6, left_thigh_raise=66, left_thigh_spread=34, left_knee=118,
                 right_thigh_spread=12, left_foot=10)  # fmt: skip
_KICK = _pose(_GUARD, roll=30, lean=8, left_thigh_raise=6, left_thigh_spread=68, left_knee=4,
              right_thigh_spread=28, left_arm_spread=40, left_elbow=60, left_foot=-5)  # fmt: skip
_SIDE_KICK = (
    (0.0, _GUARD),
    (0.2, _GUARD),
    (0.38, _CHAMBER),
    (0.52, _KICK),
    (0.58, _KICK),
    (0.74, _CHAMBER),
    (0.92, _GUARD),
    (1.0, _GUARD),
)

_SQUAT_UP = _pose(thigh_spread=11, arm_raise=12, elbow=14, knee=6, thigh_raise=4)
_SQUAT_DOWN = _pose(
    pitch=24, spine=12, thigh_raise=112, knee=116, thigh_spread=20, arm_raise=122, arm_spread=4,
    elbow=8, nod=-20,
)  # fmt: skip
_SQUAT = ((0.0, _SQUAT_UP), (0.12, _SQUAT_UP), (0.5, _SQUAT_DOWN), (0.6, _SQUAT_DOWN),
          (1.0, _SQUAT_UP))  # fmt: skip

# Half a cycle; the other half is the same of the other leg.
_STRIKE = _pose(left_thigh_raise=27, left_knee=6, left_foot=-16, right_thigh_raise=-17,
                right_knee=16, right_foot=26, left_arm_raise=-24, right_arm_raise=26, elbow=20,
                turn=-8, spine=3, thigh_spread=1)  # fmt: skip
_PASS = _pose(left_thigh_raise=5, left_knee=9, right_thigh_raise=18, right_knee=62, right_foot=14,
              left_arm_raise=-2, right_arm_raise=4, elbow=18, spine=3, thigh_spread=1)  # fmt: skip
_WALKING = ((0.0, _STRIKE), (0.25, _PASS), (0.5, _swap(_STRIKE)), (0.75, _swap(_PASS)),
            (1.0, _STRIKE))  # fmt: skip

_WAVE_OUT = _pose(right_arm_raise=45, right_arm_spread=84, right_arm_twist=-48, right_elbow=38,
                  lean=-2)  # fmt: skip
_WAVE_IN = _pose(right_arm_raise=45, right_arm_spread=90, right_arm_twist=-48, right_elbow=112,
                 lean=3, look=-4)  # fmt: skip
_WAVING_HAND = ((0.0, _WAVE_OUT), (0.5, _WAVE_IN), (1.0, _WAVE_OUT))

_BOW = _pose(pitch=52, spine=34, thigh_raise=52, arm_raise=34, elbow=10, nod=14)
_BOWING = ((0.0, _STAND), (0.15, _STAND), (0.5, _BOW), (0.62, _BOW), (1.0, _STAND))

_HANDS_APART = _pose(arm_raise=44, arm_spread=24, arm_twist=4, elbow=78)
_HANDS_TOGETHER = _pose(arm_raise=54, arm_spread=5, arm_twist=27, elbow=78)
_CLAPPING = ((0.0, _HANDS_APART), (0.45, _HANDS_TOGETHER), (0.55, _HANDS_TOGETHER),
             (1.0, _HANDS_APART))  # fmt: skip

_STRIDE = _pose(left_thigh_raise=52, left_knee=62, right_thigh_raise=-24, right_knee=40,
                right_foot=40, left_arm_raise=-46, right_arm_raise=44, elbow=94, turn=-14,
                pitch=8, spine=6, thigh_spread=1, lift=3)  # fmt: skip
_LANDING = _pose(left_thigh_raise=16, left_knee=24, right_thigh_raise=12, right_knee=112,
                 right_foot=30, left_arm_raise=-4, right_arm_raise=6, elbow=94, pitch=8, spine=6,
                 thigh_spread=1)  # fmt: skip
_RUNNING = ((0.0, _STRIDE), (0.25, _LANDING), (0.5, _swap(_STRIDE)),
            (0.75, _swap(_LANDING)), (1.0, _STRIDE))  # fmt: skip

_BEND = _pose(lean=52, roll=5, right_arm_spread=14, left_arm_spread=158, elbow=10, thigh_spread=15)
_SIDE_BENDS = ((0.0, _BEND), (0.1, _BEND), (0.5, _swap(_BEND)), (0.6, _swap(_BEND)),
               (1.0, _BEND))  # fmt: skip

_MOTIONS = {
    "bowing": Motion(_BOWING, (1.5, 2.2), ease=0.1),
    "cartwheel": Motion(_CARTWHEEL, (1.3, 1.9), ease=0.06),
    "clapping": Motion(_CLAPPING, (0.4, 0.65), ease=0.12),
    "jumping jacks": Motion(_JUMPING_JACKS, (0.85, 1.25), ease=0.1),
    "lying down": Motion(_LYING_DOWN, None, ease=0.1),
    "punching": Motion(_PUNCHING, (0.9, 1.4), ease=0.05),
    "push up": Motion(_PUSH_UP, (1.1, 1.8), ease=0.1, level=True),
    "running": Motion(_RUNNING, (0.5, 0.75), ease=0.08),
    "side bends": Motion(_SIDE_BENDS, (1.5, 2.2), ease=0.1),
    "side kick": Motion(_SIDE_KICK, (1.1, 1.6), ease=0.06),
    "sitting down": Motion(_SITTING_DOWN, None, ease=0.12),
    "squat": Motion(_SQUAT, (1.2, 1.9), ease=0.1),
    "walking": Motion(_WALKING, (0.9, 1.25), ease=0.08),
    "waving hand": Motion(_WAVING_HAND, (0.5, 0.85), ease=0.12),
}
REVERSED = {"getting up": "lying down", "standing up": "sitting down"}
NEW_ACTIONS = ("bowing", "clapping", "running", "side bends")  # unknown to the networks
ACTIONS = tuple(sorted({*_MOTIONS, *REVERSED} - {*NEW_ACTIONS}))
ALL_ACTIONS = (*ACTIONS, *NEW_ACTIONS)  # a number in this order goes into the random draws


def check_action(action: str) -> None:
    """Raise a `UsageError` unless there is such an action."""
    if action not in ALL_ACTIONS:
        raise UsageError(f"there is no action {action!r}; choose from {', '.join(ALL_ACTIONS)}")


@dataclass(frozen=True)
class Performance:
    """One play of an action.

    Attributes:
        joints: float64 (N, len(JOINTS), 3), heights of the figure; the figure faces +z and is
            around x = z = 0.
        seat: float64 (3,), the middle of the pelvis when seated; None where nobody sits.
    """

    joints: np.ndarray
    seat: np.ndarray | None


def perform(
    action: str, rng: np.random.Generator, phases: np.ndarray, *, seconds: float, body: Body
) -> Performance:
    """Play an action in a manner of its own: tempo, phase, side, amplitude, posture and sway.

    Args:
        action: one of `ALL_ACTIONS`.
        rng: source of the manner. The same draws make a reversed action the exact reversal of the
            other one.
        phases: (N,) increasing times within the clip, from 0 (its start) to 1 (its end).
        seconds: duration of the clip.
        body: lengths of the limbs.

    Raises:
        UsageError: no such action.
    """
    check_action(action)
    motion = _MOTIONS[REVERSED.get(action, action)]
    if action in REVERSED:
        phases = 1 - phases
    progress = _progress(motion, rng, phases, seconds)
    angles = _angles(motion, rng, progress) + _manner(rng, phases, seconds)
    joints = forward_kinematics(angles, body)
    if motion.level:
        _level(joints)
    _stand_on_floor(joints, angles[:, _CHANNEL["lift"]] / 100)
    _follow(joints, phases)
    if rng.random() < 0.5:
        joints[..., 0] *= -1  # the mirror image: left-handed
    sits = motion is _MOTIONS["sitting down"]
    seated = progress == progress.max()
    seat = joints[seated, JOINT["pelvis"]].mean(0) if sits else None
    return Performance(joints, seat)


def _progress(
    motion: Motion, rng: np.random.Generator, phases: np.ndarray, seconds: float
) -> np.ndarray:
    """Time within the clip -> phase of the motion, which grows beyond 1 in later cycles."""
    start, before, after, haste, hurry = rng.random(5)
    warp = 0.25 * (2 * haste - 1)  # of the even tempo; smooth, and monotone below 1
    wave = np.sin(2 * np.pi * (phases + hurry)) - np.sin(2 * np.pi * hurry)
    if motion.cycle_seconds is not None:
        cycle = rng.uniform(*motion.cycle_seconds)
        return start + seconds / cycle * (phases + 0.5 * warp / (2 * np.pi) * wave)
    before, after = 0.02 + 0.16 * before, 0.02 + 0.16 * after  # pauses, in clips
    once = np.clip((phases - before) / (1 - before - after), 0, 1)
    return once + warp / (2 * np.pi) * np.sin(2 * np.pi * once)


def _angles(motion: Motion, rng: np.random.Generator, progress: np.ndarray) -> np.ndarray:
    """The key poses at the phases ``progress`` (N,), with random amplitudes: (N, channels)."""
    at = np.array([phase for phase, _ in motion.keys])
    keys = np.array([[pose.get(c, 0.0) for c in CHANNELS] for _, pose in motion.keys])
    middle = (keys.max(0) + keys.min(0)) / 2
    amplitude = np.clip(rng.normal(1, 0.07, len(CHANNELS)) * rng.uniform(0.9, 1.08), 0.75, 1.2)
    for whole in ("pitch", "roll"):
        amplitude[_CHANNEL[whole]] = 1  # a cartwheel comes full circle, who lies lies flat
    keys = middle + amplitude * (keys - middle)
    # Straight lines from key to key, blurred: smooth in time, and the same in both directions.
    taps = np.linspace(-1, 1, 11)
    window = 1 + np.cos(np.pi * taps)
    weights = np.zeros((len(progress), len(at)))
    cycles = np.zeros(len(progress))
    for tap, share in zip(taps, window / window.sum(), strict=True):
        moved = progress + tap * motion.ease
        moved = np.clip(moved, 0, 1) if motion.cycle_seconds is None else moved
        whole_cycles = np.floor(moved) if motion.cycle_seconds else np.zeros_like(moved)
        cycles += share * whole_cycles
        for k, unit in enumerate(np.eye(len(at))):
            weights[:, k] += share * np.interp(moved - whole_cycles, at, unit)
    angles: np.ndarray = weights @ keys + cycles[:, None] * (keys[-1] - keys[0])
    return angles


def _manner(rng: np.random.Generator, phases: np.ndarray, seconds: float) -> np.ndarray:
    """Posture and restlessness of this player in degrees, to add to the angles: (N, channels)."""
    posture = np.full(len(CHANNELS), 3.5)
    sway = np.full(len(CHANNELS), 1.2)
    for channel, i in _CHANNEL.items():
        if "arm" in channel or "elbow" in channel:
            posture[i], sway[i] = 6, 2.5
        elif channel in ("nod", "look"):
            posture[i], sway[i] = 8, 3
        elif channel in ("pitch", "roll"):
            posture[i], sway[i] = 1, 0.6
        elif channel == "lift":
            posture[i] = sway[i] = 0
    offset = posture * rng.normal(0, 1, len(CHANNELS)).clip(-2, 2)
    return offset + sway * wander(rng, phases * seconds, len(CHANNELS))


def wander(rng: np.random.Generator, seconds: np.ndarray, count: int) -> np.ndarray:
    """Slow smooth noise around 0, of standard deviation about 1: times (N,) -> (N, count)."""
    hertz = rng.uniform(0.15, 1.3, (3, 1, count))
    turns = rng.random((3, 1, count))
    waves = np.sin(2 * np.pi * (hertz * seconds[:, None] + turns))
    noise: np.ndarray = waves.sum(0) * np.sqrt(2 / 3)
    return noise


def forward_kinematics(angles: np.ndarray, body: Body) -> np.ndarray:
    """Angles (N, channels) in degrees -> joints (N, joints, 3), the pelvis at the origin."""
    radians = np.deg2rad(angles)

    def turn(axis: str, channel: str, factor: float = 1.0) -> np.ndarray:
        return _rotation(axis, factor * radians[:, _CHANNEL[channel]])

    joints = np.zeros((len(angles), len(JOINTS), 3))

    def put(name: str, parent: str, rotation: np.ndarray, *offset: float) -> None:
        joints[:, JOINT[name]] = joints[:, JOINT[parent]] + rotation @ np.array(offset)

    pelvis = turn("y", "yaw") @ turn("z", "roll") @ turn("x", "pitch")
    # The spine bends in two places, half the angles each.
    bend = turn("y", "turn", 0.5) @ turn("z", "lean", 0.5) @ turn("x", "spine", 0.5)
    waist = pelvis @ bend
    chest = waist @ bend
    head = chest @ turn("y", "look") @ turn("x", "nod")
    put("waist", "pelvis", waist, 0, body.abdomen, 0)
    put("neck", "waist", chest, 0, body.chest, 0)
    put("head", "neck", head, 0, body.neck, 0.012)
    put("hair", "head", head, 0, 0.026, -0.028)
    for side, sign in zip(SIDES, (1, -1), strict=True):
        arm = chest @ turn("x", f"{side} arm raise", -1)
        arm = arm @ turn("z", f"{side} arm spread", sign) @ turn("y", f"{side} arm twist", -sign)
        forearm = arm @ turn("x", f"{side} elbow", -1)
        put(f"{side} shoulder", "neck", chest, sign * body.shoulders, -0.03, 0)
        put(f"{side} elbow", f"{side} shoulder", arm, 0, -body.upper_arm, 0)
        put(f"{side} wrist", f"{side} elbow", forearm, 0, -body.forearm, 0)
        put(f"{side} fingers", f"{side} wrist", forearm, 0, -body.hand, 0)

        thigh = pelvis @ turn("x", f"{side} thigh raise", -1)
        thigh = thigh @ turn("z", f"{side} thigh spread", sign)
        thigh = thigh @ turn("y", f"{side} thigh twist", -sign)
        shin = thigh @ turn("x", f"{side} knee")
        level = turn("x", f"{side} thigh raise") @ turn("x", f"{side} knee", -1)
        foot = shin @ level @ turn("x", "pitch", -1) @ turn("x", f"{side} foot")
        put(f"{side} hip", "pelvis", pelvis, sign * body.hips, 0, 0)
        put(f"{side} knee", f"{side} hip", thigh, 0, -body.thigh, 0)
        put(f"{side} ankle", f"{side} knee", shin, 0, -body.shin, 0)
        put(f"{side} heel", f"{side} ankle", foot, 0, -body.sole / 2, -0.02)
        put(f"{side} toe", f"{side} heel", foot, 0, 0, body.foot)
    return joints


def _rotation(axis: str, radians: np.ndarray) -> np.ndarray:
    """Right-handed rotations (N, 3, 3) about a coordinate axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotation = np.zeros((len(radians), 3, 3))
    rotation[:] = np.eye(3)
    rotation[:, i, i] = rotation[:, j, j] = np.cos(radians)
    rotation[:, j, i] = np.sin(radians)
    rotation[:, i, j] = -rotation[:, j, i]
    return rotation


# What may touch the floor -> half its thickness, in heights.
_CONTACTS = {
    "pelvis": 0.07, "waist": 0.06, "neck": 0.04, "head": 0.065,
    **{f"{side} {joint}": radius for side in SIDES for joint, radius in (
        ("shoulder", 0.045), ("elbow", 0.03), ("fingers", 0.018), ("hip", 0.06),
        ("knee", 0.04), ("heel", 0.02), ("toe", 0.018),
    )},
}  # fmt: skip
_TOUCHING = [JOINT[name] for name in _CONTACTS]
_RADII = np.array(list(_CONTACTS.values()))


def _level(joints: np.ndarray) -> None:
    """Rotate each pose about x so that hands and toes are at one height; in place."""
    ends = [[JOINT[f"{side} {end}"] for side in SIDES] for end in ("fingers", "toe")]
    hands, toes = (joints[:, end].mean(1) for end in ends)  # (N, 3) each
    _, rise, reach = (hands - toes).T
    joints[:] = joints @ _rotation("x", np.arctan2(rise, reach)).transpose(0, 2, 1)


def _stand_on_floor(joints: np.ndarray, lift: np.ndarray) -> None:
    """Move the figure so that its lowest point is on the floor and does not slide; in place.

    What touches the floor stays where it is from one pose to the next: so a walker gets ahead, and
    who lies down does so behind the feet.
    """
    soft = 0.015  # heights: a foot is lifted, not snatched, from the floor
    heights = joints[:, _TOUCHING, 1] - _RADII
    lowest = heights.min(1, keepdims=True)
    load = np.exp((lowest - heights) / soft)  # (N, contacts), the lowest one's is 1
    floor = lowest[:, 0] - soft * np.log(load.sum(1))
    joints[..., 1] += (lift - floor)[:, None]
    both = np.sqrt(load[:-1] * load[1:])[..., None]
    steps = np.diff(joints[:, _TOUCHING][..., [0, 2]], axis=0)  # (N - 1, contacts, 2)
    slide = (both * steps).sum(1) / both.sum(1)
    joints[1:, :, 0::2] -= np.cumsum(slide, axis=0)[:, None]


def _follow(joints: np.ndarray, phases: np.ndarray) -> None:
    """Centre the figure, in place; the camera follows what of its way is beyond 0.3 heights."""
    way = joints[-1, 0, 0::2] - joints[0, 0, 0::2]
    followed = max(0, 1 - 0.3 / max(float(np.hypot(*way)), 1e-9)) * way
    share = (phases - phases[0]) / (phases[-1] - phases[0]) if len(phases) > 1 else phases
    joints[..., 0::2] -= share[:, None, None] * followed
    flat = joints[..., 0::2].reshape(-1, 2)
    joints[..., 0::2] -= (flat.min(0) + flat.max(0)) / 2
