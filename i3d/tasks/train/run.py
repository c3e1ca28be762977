"""Train a network on shards, from nothing, from a checkpoint or from inflated 2D weights.

    shards --workers: random clips, uint8--> device: scale --> network --> loss --> optimizer step
      ^ which clips: by (seed, epoch) alone      |               | every epoch
      +-- state.pt: go on from here              v               v
                                   all processes' gradients    evaluate(): best.safetensors

A run is a function of its settings: a step's clips, their crops and dropout are drawn by (seed,
epoch, video), so a run that was killed and goes on continues the same curve, and several processes
do together what one does with as many times the clips.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from i3d import console, files
from i3d.console import progress_bar, show
from i3d.errors import UsageError
from i3d.models.format import NetworkConfig
from i3d.models.i3d import I3D
from i3d.parallel.world import World, connect, world_from_environment
from i3d.presets import Stream
from i3d.records import differences, pick, plain, refuse_other_settings
from i3d.tasks.train.interrupts import stop_requests
from i3d.tasks.train.loop import Loop
from i3d.tasks.train.options import SCRATCH, RunOptions, TrainOptions
from i3d.tasks.train.outcome import Trained
from i3d.tasks.train.plan import Plan, describe_change, describe_plan, make_plan
from i3d.tasks.train.start import Start, initial_network
from i3d.tasks.train.state import (
    CURVES,
    FILES,
    History,
    has_state,
    read_state,
    refuse_odd_state,
)


def train(
    shards: files.Location,
    *,
    stream: Stream,
    output: files.Location,
    init: str = SCRATCH,
    val: files.Location | None = None,
    classes: str | None = None,
    options: TrainOptions | None = None,
    resume: bool | None = None,
    world: World | None = None,
    progress: bool = False,
) -> Trained | None:
    """Train a network.

    Args:
        shards: folder that precompute wrote; path or URL.
        stream: ``"rgb"`` or ``"flow"``.
        output: folder for the run, which all processes see; path or URL (TensorBoard's events and
            the log between two saves: paths alone).
        init: ``scratch``; a checkpoint's name, path or URL; or ``inflate:`` and the path or URL of
            a 2D Inception-v1.
        val: shards to validate on, of the same classes.
        classes: names of the labels of the Chainer program's folders, which hold numbers:
            ``kinetics400``, ``kinetics600`` or a file; default: those of the checkpoint ``init``.
        options: how; default: the original recipe.
        resume: True goes on from the state in ``output`` and begins where there is none; None
            begins in an empty folder alone; False never goes on.
        world: this process's part of the work; default: from the launcher's environment.
        progress: draw a progress bar and say what is done, on process 0.

    Returns:
        What came of it, on process 0; None on the others.

    Raises:
        UsageError: an option has no meaning, or ``output`` holds another run.
        DatasetError: the shards cannot be used, or a video in them is damaged.
        CheckpointError: the network to begin with cannot be read or does not fit the shards.
        I3DError: the loss is not finite, the storage fails, or another process or a worker dies.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved.
    """
    world = world_from_environment() if world is None else world
    progress = progress and world.first

    say = console.say if progress else _say_nothing
    val = None if val is None else os.fspath(val)
    run = RunOptions(stream, os.fspath(output), init, val, classes, resume)
    plan = make_plan(shards, run, TrainOptions() if options is None else options, world)
    goes_on = resume is not False and has_state(run.output)
    if not goes_on and not resume and not _is_empty(run.output):
        raise UsageError(
            f"{run.output} is not empty"
            + (", and --no-resume begins anew" if resume is False else " and holds no run")
            + "; name another --output"
        )
    state = read_state(run.output) if goes_on else None
    say(str(plan.data))
    start = _begin(plan, say, progress=progress) if state is None else _go_on(plan, state, say)
    for line in (*start.notes, *describe_plan(plan)):
        say(line)
    with connect(world) as group, stop_requests() as stop:
        loop = Loop(plan, start, state, group, say)
        with progress_bar(
            world.title("train") if progress else None,
            total=plan.schedule.total_steps * plan.order.clips_per_step,
            unit="clips",
        ) as bar:
            loop.train(stop, bar)
    if not world.first:
        return None
    _plot(loop.history, plan, say)
    files.remove_leftovers(files.join(run.output, name) for name in FILES)
    return _sum_up(loop)


def _say_nothing(line: str) -> None:
    """What other processes, and library callers, are told."""


def _is_empty(folder: str) -> bool:
    """Whether nothing is in a folder but what a killed run was about to write, or it is absent."""
    return not files.exists(folder) or all(
        files.final_name(name) in FILES for name in files.names_in(folder)
    )


def _begin(plan: Plan, say: Callable[[str], None], *, progress: bool) -> Start:
    if plan.run.resume:
        say(f"{plan.run.output} holds no state to go on from; the run begins")
    return initial_network(
        plan.run.init,
        plan.data,
        width=plan.options.width,
        seed=plan.options.seed,
        progress=progress,
    )


def _go_on(plan: Plan, state: Mapping[str, Any], say: Callable[[str], None]) -> Start:
    refuse_other_settings(plan.run.output, differences(state["settings"], plan.settings))
    step, config = state["position"]["step"], pick(NetworkConfig, state["config"])
    with refuse_odd_state(plan.run.output):
        if step > plan.schedule.total_steps:
            raise ValueError(f"step {step} of {plan.schedule.total_steps}")
        if config.stream != plan.run.stream or config.num_classes != len(plan.data.classes):
            raise ValueError(f"a {config.stream} network of {config.num_classes} classes")
    say(f"going on after step {step}")
    say(describe_change(state["division"], plan.division))
    return Start(I3D(**plain(config)), state["new_head"], ())


def _plot(history: History, plan: Plan, say: Callable[[str], None]) -> None:
    try:
        from i3d.tasks.train.curves import plot_curves
    except ImportError:
        say(f"no {CURVES}: it needs matplotlib: pip install matplotlib")
        return
    title = f"{plan.data.dataset.manifest.dataset}, {plan.data.stream}"
    plot_curves(
        history,
        files.join(plan.run.output, CURVES),
        steps_per_epoch=plan.order.steps_per_epoch,
        title=title,
    )


def _sum_up(loop: Loop) -> Trained:
    plan, history = loop.plan, loop.history
    return Trained(
        output=plan.run.output,
        stream=plan.run.stream,
        classes=len(plan.data.classes),
        videos=len(plan.data),
        steps=loop.step,
        epochs=-(-loop.step // plan.order.steps_per_epoch),
        clips_per_step=plan.order.clips_per_step,
        log=history.log[-1] if history.log else None,
        validation=history.validation[-1] if history.validation else None,
        best=history.best,
        seconds=loop.seconds,
        clips_per_second=loop.clips / loop.seconds if loop.seconds else 0.0,
        device=plan.device,
        processes=plan.world.size,
    )


def run_train(shards: str, run: RunOptions, options: TrainOptions, *, as_json: bool) -> int:
    """``i3d train``: the exit code; 130 after Ctrl-C or SIGTERM, the state saved."""
    result = train(shards, **asdict(run), options=options, progress=True)
    if result is not None:
        show(result, as_json=as_json)
    return 0
