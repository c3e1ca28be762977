"""A run before it begins: everything that can be known, and refused, then."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from i3d import files
from i3d.clips import Views
from i3d.data.chainer import is_chainer_folder
from i3d.data.reading.clips import clip_bytes
from i3d.data.reading.random_clips import Order, TrainingSet, open_labelled, open_training_set
from i3d.data.videos import VideoSet
from i3d.errors import DatasetError, UsageError, hide_secrets
from i3d.parallel.ahead import check_shared_memory
from i3d.parallel.process import share_cores
from i3d.parallel.world import World
from i3d.tasks.network import choose_device
from i3d.tasks.train.options import RunOptions, TrainOptions
from i3d.tasks.train.recipe import ORIGINAL_CLIPS_PER_STEP, Recipe, Schedule
from i3d.tasks.train.start import find_class_names

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
class Plan:
    """A run before it begins.

    Attributes:
        run: folder, data and beginning.
        options: what the user gave, before the recipe completes it.
        data: the videos.
        val: shards to validate on; None without them.
        val_seal: their seal.
        recipe: the numbers of the recipe, the user's in place of its own.
        order: the clips of each step.
        schedule: the learning rate's course.
        device: ``cpu`` or ``cuda:N``.
        workers: processes that read for this one.
        world: this process among the others.
    """

    run: RunOptions
    options: TrainOptions
    data: TrainingSet
    val: VideoSet | None
    val_seal: str | None
    recipe: Recipe
    order: Order
    schedule: Schedule
    device: str
    workers: int
    world: World

    @property
    def settings(self) -> dict[str, Any]:
        """What may not change when the run goes on, as JSON values."""
        left_out = FREE | LENGTH
        return {
            "shards": self.data.dataset.manifest.seal,
            "val": self.val_seal,
            "stream": self.run.stream,
            "init": hide_secrets(self.run.init),
            "videos": len(self.data),
            "clips_per_step": self.order.clips_per_step,
            "total_steps": self.schedule.total_steps,
            **{k: value for k, value in asdict(self.options).items() if k not in left_out},
            "learning_rate": self.recipe.learning_rate,
            "weight_decay": self.recipe.weight_decay,
            "momentum": self.recipe.momentum,
            "warmup_steps": self.schedule.warmup_steps,
        }

    @property
    def division(self) -> dict[str, Any]:
        """What may change, but changes the last digits; JSON values."""
        return {
            "batch_size": self.recipe.batch_size,
            "accumulate": self.options.accumulate,
            "processes": self.world.size,
            "device": self.device.partition(":")[0],
            "threads": torch.get_num_threads(),
            "compile": self.options.compile,
            "torch": str(torch.__version__),
        }


def make_plan(shards: files.Location, run: RunOptions, options: TrainOptions, world: World) -> Plan:
    """Open the data and settle all numbers.

    Raises:
        UsageError: an option has no meaning here, or there is too little shared memory.
        DatasetError: the shards cannot be used.
    """
    device = choose_device(options.device, world)
    _check_precision(options, device)
    workers = _count_workers(options.workers, device, world)
    data = open_training_set(shards, run.stream, classes=run.classes)
    if data.has_numbers:
        data = replace(data, classes=find_class_names(run.init, data))
    val, val_seal = None, None
    if run.val is not None:
        val = VideoSet(run.val, classes=run.classes if is_chainer_folder(run.val) else None)
        val_seal = _check_validation(val, data)
    recipe = options.complete_recipe()
    order = Order(
        len(data), recipe.batch_size, options.accumulate, world.rank, world.size, options.seed
    )
    # What a worker hands over at a time is a batch of clips.
    size = recipe.batch_size * clip_bytes(Views(options.frames), data.preset)
    check_shared_memory(size, workers=workers, processes=world.local_size)
    return Plan(
        run=run,
        options=options,
        data=data,
        val=val,
        val_seal=val_seal,
        recipe=recipe,
        order=order,
        schedule=options.schedule(run.stream, steps_per_epoch=order.steps_per_epoch),
        device=device,
        workers=workers,
        world=world,
    )


def _check_precision(options: TrainOptions, device: str) -> None:
    """Refuse arithmetic that is not there, or wrong."""
    if device != "cpu":
        return
    if options.precision == "fp16":
        raise UsageError("--precision fp16 trains on CUDA alone; bf16 runs everywhere")
    if options.precision == "bf16" and options.frames <= WRONG_BF16_FRAMES:
        raise UsageError(
            f"--precision bf16 with --frames {options.frames} on a CPU: PyTorch's gradients are "
            f"wrong there; use fp32, or more than {WRONG_BF16_FRAMES} frames"
        )


def _count_workers(workers: int | None, device: str, world: World) -> int:
    """Processes that read for this one; takes this process's share of the cores."""
    share = share_cores(device, world)
    if workers is not None:
        return workers
    # On a CPU the network needs the cores itself: of two, 15.7 clips/s without workers and 12.8
    # with two were measured.
    return share if device != "cpu" else 2 if share > 2 else 0


def _check_validation(videos: VideoSet, data: TrainingSet) -> str:
    """The seal of the validation shards, which must fit the training ones."""
    val = videos.location
    manifest = open_labelled(val, data.stream, classes=videos.classes).manifest
    assert manifest.classes is not None
    theirs = manifest.classes.names
    if manifest.classes.is_numbered and len(theirs) <= len(data.classes):
        theirs = data.classes
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


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is divided otherwise than before a run was interrupted, as a line."""
    changed = [f"{k} {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if not changed:
        return "on the same terms: the curve goes on to the digit on a CPU"
    return f"{', '.join(changed)}: the same course to rounding, not to the digit"


def describe_plan(plan: Plan) -> list[str]:
    """What is about to be done, a line each."""
    order, schedule, recipe = plan.order, plan.schedule, plan.recipe
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
    if plan.world.size > 1 and not plan.options.sync_batch_norm:
        notes.append(
            "BatchNorm normalises each process's clips on their own, and process 0's statistics "
            "are kept; --sync-batch-norm joins them"
        )
    return notes
