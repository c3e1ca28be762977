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
from dataclasses import asdict, dataclass, fields
from typing import Any

import click
import torch

from i3d import files
from i3d.clips import Views
from i3d.console import progress_bar, show
from i3d.data.reading.clips import clip_bytes
from i3d.data.reading.random_clips import Order, TrainingSet, open_labelled, open_training_set
from i3d.errors import DatasetError, UsageError
from i3d.models.i3d import I3D
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import share_cores
from i3d.parallel.world import World, connected, world_from_environment
from i3d.presets import Stream
from i3d.tasks.network import choose_device
from i3d.tasks.train.loop import Plan, Run
from i3d.tasks.train.recipe import ORIGINAL_CLIPS_PER_STEP, Options
from i3d.tasks.train.start import SCRATCH, Start, initial_network, is_empty, stop_requests
from i3d.tasks.train.state import (
    BEST,
    CURVES,
    LAST,
    History,
    LogRow,
    ValidationRow,
    check_settings,
    has_state,
    read_state,
)

# PyTorch's gradient of a 3x3x3 filter in bf16 on a CPU is garbage where its input has two time
# steps, as those of Mixed_5b and 5c have for such clips (torch 2.13 on AVX-512: all 49 sizes of
# pictures with two time steps were wrong, none with 1, 3, 4, 5 or 8; float32 is right).
WRONG_BF16_FRAMES = 16
# May change when a run goes on; those that divide a step into parts only if their product stays.
FREE = frozenset(
    ["batch_size", "accumulate", "workers", "device", "save_steps", "val_every", "compile"]
)
LENGTH = frozenset(["epochs", "steps"])  # stored as total_steps


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        output: its folder.
        stream: of the network.
        classes: number of classes.
        videos: that were trained on.
        steps: of the optimizer, those before a resume counted.
        epochs: begun.
        clips_per_step: of all processes.
        log: the last row of the log.
        validation: the last validation; None without one.
        best: the validation of ``best.safetensors``; None without one.
        seconds: of this process's steps, validation and saving not counted.
        clips_per_second: over them, all processes together.
        device: of each process.
        processes: how many.
    """

    output: str
    stream: Stream
    classes: int
    videos: int
    steps: int
    epochs: int
    clips_per_step: int
    log: LogRow | None
    validation: ValidationRow | None
    best: ValidationRow | None
    seconds: float
    clips_per_second: float
    device: str
    processes: int

    @property
    def last_checkpoint(self) -> str:
        """Path or URL of the network after the last step."""
        return files.join(self.output, LAST)

    @property
    def best_checkpoint(self) -> str | None:
        """Path or URL of the network of the best validation."""
        return None if self.best is None else files.join(self.output, BEST)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; shares are in 0..1."""
        rows = {"log": self.log, "validation": self.validation, "best": self.best}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in rows}
        return {
            **plain,
            **{name: None if row is None else row._asdict() for name, row in rows.items()},
            "last_checkpoint": self.last_checkpoint,
            "best_checkpoint": self.best_checkpoint,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps of {self.clips_per_step} clips, {self.epochs} epochs of "
            f"{self.videos} videos, {self.classes} classes"
        ]
        if self.log is not None:
            lines.append(f"training: loss {self.log.loss:.4f}, top-1 {100 * self.log.top1:.2f} %")
        for name, row, path in (
            ("last", self.validation, self.last_checkpoint),
            ("best", self.best, self.best_checkpoint),
        ):
            measured = ""
            if row is not None:
                measured = (
                    f"  validation after epoch {row.epoch}: loss {row.loss:.4f}, "
                    f"top-1 {100 * row.top1:.2f} %, top-5 {100 * row.top5:.2f} % "
                    f"of {row.videos} videos"
                )
            if path is not None:
                lines.append(f"{name}: {path}{measured}")
        lines.append(
            f"{self.clips_per_second:.3g} clips/s over {self.seconds:.1f} s: {self.device}, "
            f"processes: {self.processes}"
        )
        return "\n".join(lines)


def train(
    shards: files.Location,
    *,
    stream: Stream,
    output: files.Location,
    init: str = SCRATCH,
    val: files.Location | None = None,
    options: Options | None = None,
    resume: bool = False,
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
        options: how; default: the original recipe.
        resume: go on from the state in ``output``; where there is none, begin.
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
    first = world.first

    def say(line: str) -> None:
        if progress and first:
            click.echo(line, err=True)

    options = Options() if options is None else options
    plan = _plan(shards, stream, val, output, init, options, world)
    if not resume and not is_empty(output):
        raise UsageError(
            f"{os.fspath(output)} is not empty; --resume goes on with the run in it, or name "
            "another --output"
        )
    state = read_state(output) if resume and has_state(output) else None
    say(str(plan.data))
    if state is not None:
        check_settings(state["settings"], plan.settings, output)
        say(f"going on after step {state['position']['step']}")
        say(_division_changed(state["division"], plan.division))
        start = Start(I3D(**state["config"]), bool(state["new_head"]), ())
    else:
        if resume:
            say(f"{os.fspath(output)} holds no state to go on from; the run begins")
        start = initial_network(
            init, plan.data, width=options.width, seed=options.seed, progress=progress and first
        )
    for line in (*start.notes, *_notes(plan)):
        say(line)
    with connected(world) as group, stop_requests() as stop:
        run = Run(plan, start, state, group, say)
        title = world.title("train")
        with progress_bar(
            title if progress and first else None,
            total=plan.schedule.total_steps * plan.order.clips_per_step,
            unit="clips",
        ) as bar:
            run.train(stop, bar)
    if not first:
        return None
    _plot(run.history, plan, say)
    return _outcome(run, plan)


def _plan(
    shards: files.Location,
    stream: Stream,
    val: files.Location | None,
    output: files.Location,
    init: str,
    options: Options,
    world: World,
) -> Plan:
    """Everything that can be known, and refused, before work begins."""
    device = choose_device(options.device, local_rank=world.local_rank)
    if options.precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 trains on CUDA alone; bf16 runs everywhere")
    if options.precision == "bf16" and device == "cpu" and options.frames <= WRONG_BF16_FRAMES:
        raise UsageError(
            f"--precision bf16 with --frames {options.frames} on a CPU: PyTorch's gradients are "
            f"wrong there; use fp32, or more than {WRONG_BF16_FRAMES} frames"
        )
    share = share_cores(device, world)
    workers = options.workers
    if workers is None:
        # On a CPU the network needs the cores itself: of two, 15.7 clips/s without workers and 12.8
        # with two were measured.
        workers = share if device != "cpu" else 2 if share > 2 else 0
    data = open_training_set(shards, stream)
    val_seal = None if val is None else _check_validation(val, data)
    recipe = options.chosen_recipe()
    order = Order(
        len(data), recipe.batch_size, options.accumulate, world.rank, world.size, options.seed
    )
    schedule = options.schedule(stream, steps_per_epoch=order.steps_per_epoch)
    # What a worker hands over at a time is a batch of clips.
    size = recipe.batch_size * clip_bytes(Views(options.frames), data.preset)
    check_shared_memory(size, workers=workers, processes=world.local_size)
    numbers = {name: value for name, value in asdict(options).items() if name not in FREE | LENGTH}
    settings = {
        "shards": data.dataset.manifest.seal,
        "val": val_seal,
        "stream": stream,
        "init": init,
        "videos": len(data),
        "clips_per_step": order.clips_per_step,
        "total_steps": schedule.total_steps,
        **numbers,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "momentum": recipe.momentum,
        "warmup_steps": schedule.warmup_steps,
    }
    division = {
        "batch_size": recipe.batch_size,
        "accumulate": options.accumulate,
        "processes": world.size,
        "device": device.partition(":")[0],
        "threads": torch.get_num_threads(),
        "compile": options.compile,
        "torch": str(torch.__version__),
    }
    return Plan(
        data=data,
        val=val,
        output=os.fspath(output),
        options=options,
        recipe=recipe,
        order=order,
        schedule=schedule,
        device=device,
        workers=workers,
        world=world,
        settings=settings,
        division=division,
    )


def _check_validation(val: files.Location, data: TrainingSet) -> str:
    """The seal of the validation shards, which must fit the training ones."""
    manifest = open_labelled(val, data.stream).manifest
    assert manifest.classes is not None
    theirs = manifest.classes.names
    if theirs != data.classes:
        where = "" if len(theirs) != len(data.classes) else _first_difference(data.classes, theirs)
        raise DatasetError(
            f"{val} is labelled with {len(theirs)} classes and {data.dataset.folder} with "
            f"{len(data.classes)}{where}; prepare both with the same --classes"
        )
    if manifest.preset != data.preset.name:
        raise DatasetError(
            f"{val} was made for preset {manifest.preset}, and {data.dataset.folder} for "
            f"{data.preset.name}"
        )
    return manifest.seal


def _first_difference(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    i, name, other = next(
        (i, a, b) for i, (a, b) in enumerate(zip(names, others, strict=True)) if a != b
    )
    return f" others (class {i} is {other!r} there and {name!r} here)"


def _division_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [f"{k} {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if not changed:
        return "on the same terms: the curve goes on to the digit on a CPU"
    return f"{', '.join(changed)}: the same course to rounding, not to the digit"


def _notes(plan: Plan) -> list[str]:
    """What is about to be done."""
    order, schedule, recipe, options = plan.order, plan.schedule, plan.recipe, plan.options
    epochs = schedule.total_steps / order.steps_per_epoch
    notes = [
        f"{schedule.total_steps} steps ({epochs:.4g} epochs) of {order.clips_per_step} clips: "
        f"batch {order.batch_size} x accumulate {order.accumulate} x {order.processes} processes; "
        f"recipe {recipe.name}, learning rate {recipe.learning_rate:g}"
    ]
    if recipe.name == "original" and order.clips_per_step != ORIGINAL_CLIPS_PER_STEP:
        notes.append(
            f"the authors' steps had {ORIGINAL_CLIPS_PER_STEP} clips, {order.clips_per_step} here; "
            "the learning rate is not scaled: --learning-rate and --accumulate are yours to set"
        )
    if plan.world.size > 1 and not options.sync_batch_norm:
        notes.append(
            "BatchNorm normalises each process's clips on their own, and process 0's statistics "
            "are kept; --sync-batch-norm joins them"
        )
    return notes


def _plot(history: History, plan: Plan, say: Callable[[str], None]) -> None:
    try:
        from i3d.tasks.train.curves import plot_curves
    except ImportError:
        say(f"no {CURVES}: it needs matplotlib: pip install 'i3d[plot]'")
        return
    title = f"{plan.data.dataset.manifest.dataset}, {plan.data.stream}"
    plot_curves(
        history,
        files.join(plan.output, CURVES),
        steps_per_epoch=plan.order.steps_per_epoch,
        title=title,
    )


def _outcome(run: Run, plan: Plan) -> Trained:
    history = run.history
    return Trained(
        output=plan.output,
        stream=plan.data.stream,
        classes=len(plan.data.classes),
        videos=len(plan.data),
        steps=run.step,
        epochs=-(-run.step // plan.order.steps_per_epoch),
        clips_per_step=plan.order.clips_per_step,
        log=history.log[-1] if history.log else None,
        validation=history.validation[-1] if history.validation else None,
        best=history.best,
        seconds=run.seconds,
        clips_per_second=run.clips / run.seconds if run.seconds else 0.0,
        device=plan.device,
        processes=plan.world.size,
    )


def run(
    shards: str,
    *,
    stream: Stream,
    init: str,
    val: str | None,
    output: str,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """``i3d train``: the exit code; 130 after Ctrl-C or SIGTERM, the state saved."""
    result = train(
        shards,
        stream=stream,
        output=output,
        init=init,
        val=val,
        options=Options(**options),
        resume=resume,
        progress=True,
    )
    if result is not None:
        show(result, as_json=as_json)
    return 0
