"""The stages of ``i3d demo``: render, precompute, evaluate, predict, fetch the real network, show.

Every stage but the first is a task of :mod:`i3d.tasks`, called as its command calls it. The command
is printed above its result, so that it can be typed again, and changed.
"""

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from i3d import files
from i3d.console import json_text
from i3d.data.videos import VideoSet
from i3d.demo.actions import ACTIONS
from i3d.demo.folder import Folder, open_folder
from i3d.demo.options import PER_CLASS, SEED, DemoOptions
from i3d.demo.page import write_index
from i3d.demo.render import render_dataset
from i3d.demo.result import Demo, Released, Step
from i3d.demo.sequence import SEQUENCE, Segment, render_sequence
from i3d.errors import I3DError
from i3d.models.download import download
from i3d.models.fetch import FetchError
from i3d.parallel.process import count_cores
from i3d.parallel.world import World
from i3d.presets import STREAMS
from i3d.tasks.evaluate import page as evaluation_page
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.evaluate.result import Evaluation
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute
from i3d.tasks.predict.predictor import Predictor
from i3d.tasks.predict.result import Prediction

SHORT_SIDE = 128  # pixels; the networks' preset crops 112 of them
EVALUATED_FRAMES = 64  # 2.6 seconds, about the length of a video
TOP_K = 3
WINDOWS_PER_ACTION = 2  # of the longer video's timeline
NETWORKS = Path(__file__).parent  # trained; see the package's docstring
RELEASED = "rgb_scratch_kinetics400"  # of the released networks the one that has two sources


def run_demo(
    output: str | os.PathLike[str],
    *,
    seed: int = SEED,
    per_class: int = PER_CLASS,
    workers: int | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Demo:
    """``i3d demo``: run the example and say on standard output what is done.

    Last it fetches a released network into the user's cache, unless it is there; where that fails,
    it says so, and nothing else is lost.

    Args:
        output: folder for all that is made, itself made if need be. What an earlier run of the same
            seed and number left there is used again.
        seed: number that the videos depend on, at least 0; the same one gives the same videos.
        per_class: videos of each action.
        workers: processes that render and precompute; default: the cores.
        checkpoints: folder of ``rgb.safetensors`` and ``flow.safetensors``; default: the package's.

    Raises:
        UsageError: an argument has no meaning, or the folder holds something else.
        CheckpointError: a checkpoint is missing, or is for other classes.
        I3DError: a stage fails, other than the fetching.
    """
    DemoOptions(seed=seed, per_class=per_class, workers=workers)  # checks them
    workers = workers or count_cores(World())
    networks = NETWORKS if checkpoints is None else Path(checkpoints)
    folder = open_folder(Path(output), seed=seed, per_class=per_class, checkpoints=networks)
    journal = _Journal()
    truth = _render(folder, journal, seed=seed, per_class=per_class, workers=workers)
    _precompute(folder, journal, workers=workers)
    evaluation = _evaluate(folder, journal)
    prediction, timeline = _predict(folder, journal, truth)
    demo = Demo(
        folder=folder,
        seed=seed,
        per_class=per_class,
        evaluation=evaluation,
        prediction=prediction,
        timeline=timeline,
        truth=truth,
        released=Released(RELEASED, None, "its download was broken off"),
        steps=tuple(journal.steps),
    )
    write_index(demo)  # stays where the download is broken off
    released = _fetch_released(journal)
    demo = replace(demo, released=released, steps=tuple(journal.steps))
    write_index(demo)
    files.remove_leftovers(folder.files)
    click.echo(f"{folder.page}: open it in a browser ({demo.seconds:.0f} s in all)")
    click.echo(str(released))
    return demo


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
        seed: number that the videos depend on, at least 0.
        per_class: videos of each action.
        workers: processes; default: the cores.
        actions: any of `i3d.demo.actions.ALL_ACTIONS`; default: the twelve that the networks know.

    Raises:
        UsageError: an argument has no meaning.
    """
    actions = ACTIONS if actions is None else actions
    rendered = render_dataset(
        output,
        per_class=per_class,
        seed=seed,
        actions=actions,
        progress=True,
        workers=workers or count_cores(World()),
    )
    click.echo(_count_text(output, rendered, of=len(actions) * per_class))


def _count_text(folder: str | os.PathLike[str], rendered: int, *, of: int) -> str:
    return f"{os.fspath(folder)}: {rendered} videos rendered, {of - rendered} there before"


class _Journal:
    """The steps so far; each is announced, and timed."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, title: str, *command: object) -> Iterator[None]:
        """Run the block as a step; the command is i3d's, without its name."""
        typed = shlex.join(["i3d", *map(str, command)]) if command else None
        click.echo(f"# {title}" if typed is None else f"# {title}\n$ {typed}")
        start = time.monotonic()
        yield
        self.steps.append(Step(title, typed, time.monotonic() - start))
        click.echo(f"({self.steps[-1].seconds:.1f} s)\n")


def _render(
    folder: Folder, journal: _Journal, *, seed: int, per_class: int, workers: int
) -> tuple[Segment, ...]:
    title = f"Render synthetic videos of {len(ACTIONS)} human actions, seed {seed}"
    with journal.step(title):
        rendered = render_dataset(
            folder.videos, per_class=per_class, seed=seed, progress=True, workers=workers
        )
        truth = render_sequence(folder.sequence, seed=seed, windows=WINDOWS_PER_ACTION)
        click.echo(_count_text(folder.videos, rendered, of=len(ACTIONS) * per_class))
    return truth


def _precompute(folder: Folder, journal: _Journal, *, workers: int) -> None:
    with journal.step(
        "Decode them, compute optical flow, and write both to shards",
        *("precompute", folder.videos, folder.shards),
        *("--short-side", SHORT_SIDE, "--classes", folder.classes),
    ):
        precomputed = precompute(
            VideoSet(folder.videos, classes=os.fspath(folder.classes)),
            folder.shards,
            settings=Settings(short_side=SHORT_SIDE),
            work=Work(workers=workers),
            world=World(),
            progress=True,
        )
        click.echo(str(precomputed))
    if not precomputed.complete:
        raise I3DError(f"{folder.shards} is not complete; run the demo again to go on")


def _evaluate(folder: Folder, journal: _Journal) -> Evaluation:
    networks = {stream: folder.checkpoint(stream) for stream in STREAMS}
    with journal.step(
        "Evaluate the two networks, alone and together",
        *("evaluate", folder.shards, "--frames", EVALUATED_FRAMES),
        *("--rgb-checkpoint", networks["rgb"], "--flow-checkpoint", networks["flow"]),
        *("--output", folder.report, "--report", folder.evaluation_page),
    ):
        evaluated = evaluate(
            folder.shards,
            networks,
            options=EvaluateOptions(frames=EVALUATED_FRAMES),
            thumbnails=evaluation_page.MISTAKES_SHOWN,
            world=World(),
            progress=True,
        )
        assert evaluated is not None  # a world of one
        evaluation = evaluated.evaluation
        files.write(folder.report, json_text(evaluation).encode())
        evaluation_page.write_page(
            evaluation, folder.evaluation_page, thumbnails=evaluated.thumbnails
        )
        click.echo(str(evaluation))
    return evaluation


def _predict(
    folder: Folder, journal: _Journal, truth: tuple[Segment, ...]
) -> tuple[Prediction, Prediction]:
    """Predictions for one video of an action, and for the longer one, window by window."""
    checkpoints = [os.fspath(folder.checkpoint(stream)) for stream in STREAMS]
    options = [word for name in checkpoints for word in ("--checkpoint", name)]
    sample = os.fspath(folder.sample(ACTIONS[0]))
    with journal.step(
        "Say what happens in one video", "predict", sample, *options, "--top-k", TOP_K
    ):
        predictor = Predictor(checkpoints)
        prediction = predictor.predict(sample, top_k=TOP_K)
        click.echo(str(prediction))

    video = os.fspath(folder.sequence)
    every_seconds = truth[0].end_seconds / WINDOWS_PER_ACTION
    with journal.step(
        f"Say when it happens, in a video of {', '.join(SEQUENCE)}",
        *("predict", video, *options, "--every", every_seconds, "--top-k", 1),
    ):
        timeline = predictor.predict(video, top_k=1, every_seconds=every_seconds)
        click.echo(str(timeline))
    return prediction, timeline


def _fetch_released(journal: _Journal) -> Released:
    """The real network, in the cache; a machine that reaches no source of it is no failure."""
    with journal.step(
        "Fetch a released network, for real videos", "checkpoints", "download", RELEASED
    ):
        try:
            released = Released(RELEASED, download(RELEASED, progress=True))
        except I3DError as error:
            # The cause is what happened; the message around it adds the ways out.
            cause = error.__cause__
            reason = cause if isinstance(cause, I3DError | FetchError) else error
            released = Released(RELEASED, None, " ".join(str(reason).split()))
        click.echo("not fetched" if released.path is None else str(released.path))
    return released
