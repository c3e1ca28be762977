"""A longer video: one person, in one room, does several actions one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from i3d import files
from i3d.demo.actions import ACTIONS
from i3d.demo.render import encode_mp4, render_video
from i3d.demo.scene import FPS, draw_scene

# Two pairs of them are each other's reversal.
SEQUENCE = (
    "waving hand", "sitting down", "standing up", "jumping jacks", "lying down", "getting up",
)  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """What is done in a part of a video."""

    action: str
    start_seconds: float
    end_seconds: float


def render_sequence(path: Path, *, seed: int, windows: int) -> tuple[Segment, ...]:
    """Write the video unless it is there, and say what is done when.

    Args:
        path: the ``.mp4`` file.
        seed: number as `render_dataset`'s, whose videos show other scenes.
        windows: number that divides the frames of each action.
    """
    # Every action is rendered with the same number, which is all that a scene depends on.
    first = int(np.random.SeedSequence([seed, len(ACTIONS)]).generate_state(1)[0])
    for number in count(first):
        scene = draw_scene(number)
        if scene.stool is not None and scene.frames % windows == 0:
            break
    if not path.exists():
        frames = np.concatenate([render_video(a, number) for a in SEQUENCE])
        files.write(path, encode_mp4(frames))
    seconds = scene.frames / FPS
    return tuple(Segment(a, i * seconds, (i + 1) * seconds) for i, a in enumerate(SEQUENCE))


def action_at(segments: Sequence[Segment], seconds: float) -> str:
    """What is done at a time."""
    return next(s.action for s in segments if s.start_seconds <= seconds < s.end_seconds)
