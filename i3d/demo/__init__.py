"""The embedded example: the whole system on videos that it renders itself, without a network.

    seed --render--> .mp4 --precompute--> shards --evaluate--> table
                       |                                         +--> index.html
                       +--predict--> classes over time ----------+

The videos are synthetic: a drawn figure does one of twelve actions (`actions.py`, `render.py`). The
two small networks that come with the package were trained on other videos of the same kind. So the
table says that every step works here, and nothing about real videos.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from i3d.demo.options import PER_CLASS, SEED

if TYPE_CHECKING:  # the processes that render import this package, and need none of it
    from i3d.demo.page import Demo


def run(
    output: str | os.PathLike[str],
    *,
    seed: int = SEED,
    per_class: int = PER_CLASS,
    workers: int | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Demo:
    """``i3d demo``: run the example and say on standard output what is done.

    Args:
        output: folder for all that is made, itself made if need be. What an earlier run of the same
            seed and number left there is used again.
        seed: of the videos, at least 0; the same seed gives the same videos.
        per_class: videos of each action.
        workers: processes that render and precompute; default: the cores.
        checkpoints: folder of ``rgb.safetensors`` and ``flow.safetensors``; default: the package's.

    Raises:
        UsageError: an argument has no meaning, or the folder holds something else.
        CheckpointError: a checkpoint is missing, or is for other classes.
        I3DError: a stage fails.
    """
    from i3d.demo.pipeline import run as run_stages

    return run_stages(
        output, seed=seed, per_class=per_class, workers=workers, checkpoints=checkpoints
    )


def render_videos(
    output: str | os.PathLike[str],
    *,
    seed: int = SEED,
    per_class: int = PER_CLASS,
    workers: int | None = None,
    actions: Sequence[str] | None = None,
) -> None:
    """``i3d demo --videos-only``: render videos to train on, and say how many.

    Args:
        output: folder for a folder of videos for each action. Videos that are there stay.
        seed: of the videos, at least 0.
        per_class: videos of each action.
        workers: processes; default: the cores.
        actions: any of `i3d.demo.actions.ALL_ACTIONS`; default: the twelve that the networks know.

    Raises:
        UsageError: an argument has no meaning.
    """
    from i3d.demo import pipeline

    pipeline.render_videos(output, seed=seed, per_class=per_class, workers=workers, actions=actions)
