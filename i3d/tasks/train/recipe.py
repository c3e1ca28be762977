"""How weights are learnt: the options, two recipes, and the learning rate of every step."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from i3d.errors import UsageError
from i3d.models.format import MAX_WIDTH
from i3d.models.i3d import I3D, TABLE
from i3d.presets import MIN_FRAMES, Stream
from i3d.tasks.network import Precision, check_precision

RecipeName = Literal["original", "finetune"]

# (before this step, factor of the peak learning rate), as the authors of "Quo Vadis" describe
# their runs; flow starts again at the peak after 115,000 steps.
ORIGINAL_STEPS: dict[Stream, tuple[tuple[int, float], ...]] = {
    "rgb": ((97_000, 1.0), (108_000, 0.1), (115_000, 0.01)),
    "flow": (
        (97_000, 1.0),
        (104_500, 0.1),
        (115_000, 0.01),
        (140_000, 1.0),
        (150_000, 0.1),
        (155_000, 0.01),
    ),
}
ORIGINAL_CLIPS_PER_STEP = 64 * 6  # replicas x clips, synchronous


@dataclass(frozen=True)
class Recipe:
    """The numbers of a way to train; every one of them can be overridden.

    Attributes:
        name: what ``--recipe`` takes.
        learning_rate: the peak.
        weight_decay: of convolution weights; never of offsets and biases.
        momentum: of SGD; None for AdamW.
        batch_size: clips of a process at a time.
        warmup_share: of all steps, over which the learning rate rises from 0.
        new_head_factor: of the learning rate, for a classifier that starts from nothing.
        epochs: of a run that does not say how long it is; None: the original's number of steps.
    """

    name: RecipeName
    learning_rate: float
    weight_decay: float
    momentum: float | None
    batch_size: int
    warmup_share: float
    new_head_factor: float
    epochs: int | None


RECIPES: dict[str, Recipe] = {
    # The authors' account: synchronous SGD, momentum 0.9, weight decay 1e-7, 64 replicas of 6.
    "original": Recipe("original", 0.1, 1e-7, 0.9, 6, 0.0, 1.0, None),
    # Ours: what fine-tuning convolutional networks with AdamW commonly starts from.
    "finetune": Recipe("finetune", 1e-4, 0.05, None, 6, 0.05, 10.0, 30),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r}: there are {' and '.join(RECIPES)}")
    return RECIPES[name]


@dataclass(frozen=True)
class Options:
    """How to train; None stands for the recipe's number where it has one.

    Attributes:
        recipe: ``original`` (SGD, the authors' steps) or ``finetune`` (AdamW, cosine).
        epochs: length of the run; or
        steps: of the optimizer.
        learning_rate: the peak; it is not scaled with the batch.
        weight_decay: of convolution weights.
        momentum: of SGD.
        warmup_steps: over which the learning rate rises.
        batch_size: clips at a time, of each process.
        accumulate: micro-batches whose gradients make one step.
        precision: ``fp32``, or autocast to ``bf16``, or (CUDA alone) ``fp16``.
        clip_gradients: largest norm of all gradients together; None: no bound.
        ema: decay of the moving average of the weights; None: no average.
        label_smoothing: share of a target that is spread over all classes.
        dropout: probability of dropping a feature before the classifier.
        freeze: name of the last endpoint that stays as it is.
        frames: of a training clip.
        width: of a network from scratch; None: 1.
        flip: mirror half of the clips.
        bn_momentum: weight of a batch in BatchNorm's moving statistics; None: a growing window.
        sync_batch_norm: normalise over all processes' clips.
        compile: ``torch.compile``.
        seed: of all that is random, 0 to 2^32 - 1.
        workers: processes that read and decode, of each process; None: its share of the cores; on a
            CPU two, or none if the share is two or less.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        save_steps: save the state so often, besides the end of every epoch.
        log_steps: steps in a row of the log.
        val_every: epochs from one validation to the next; the last epoch always has one.
        val_frames: of a validation clip; None: as in training.

    Raises:
        UsageError: an option has no meaning.
    """

    recipe: str = "original"
    epochs: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    warmup_steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    precision: Precision = "fp32"
    clip_gradients: float | None = None
    ema: float | None = None
    label_smoothing: float = 0.0
    dropout: float = 0.5
    freeze: str | None = None
    frames: int = 64
    width: float | None = None
    flip: bool = True
    bn_momentum: float | None = None
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    save_steps: int = 500
    log_steps: int = 10
    val_every: int = 1
    val_frames: int | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if find_recipe(self.recipe).momentum is None and self.momentum is not None:
            raise UsageError("--momentum is for SGD; --recipe finetune uses AdamW")
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps both say how long to train; give one of them")
        for name in ("epochs", "steps", "batch_size", "accumulate", "save_steps", "log_steps"):
            self._at_least(name, 1)
        self._at_least("val_every", 1)
        for name in ("warmup_steps", "workers", "weight_decay"):
            self._at_least(name, 0)
        for name in ("frames", "val_frames"):
            value = getattr(self, name)
            if value is not None and value < MIN_FRAMES:
                raise UsageError(
                    f"{_spoken(name)} {value}: the network needs at least {MIN_FRAMES}"
                )
        for name in ("momentum", "ema", "label_smoothing", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{_spoken(name)} {value}: it must be 0 or more, and below 1")
        for name, most in (
            ("learning_rate", math.inf),
            ("clip_gradients", math.inf),
            ("bn_momentum", 1.0),
            ("width", MAX_WIDTH),
        ):
            value = getattr(self, name)
            if value is not None and not (0 < value <= most and math.isfinite(value)):
                bound = "" if most == math.inf else f" and at most {most:g}"
                raise UsageError(f"{_spoken(name)} {value}: it must be above 0{bound}")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"seed {self.seed}: it must be 0 to {(1 << 32) - 1}")
        rows = [name for name, _ in TABLE]
        if self.freeze is not None and self.freeze not in rows:
            raise UsageError(f"freeze {self.freeze!r}: the endpoints are {', '.join(rows)}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{_spoken(name)} {value}: it must be at least {least}")

    def chosen_recipe(self) -> Recipe:
        """The recipe with the user's numbers in it."""
        names = ("learning_rate", "weight_decay", "momentum", "batch_size", "epochs")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(find_recipe(self.recipe), **given)

    def schedule(self, stream: Stream, *, steps_per_epoch: int) -> "Schedule":
        """The learning rate's course.

        Raises:
            UsageError: the warm-up takes all of it.
        """
        recipe = self.chosen_recipe()
        total = self.steps or original_steps(stream)
        if self.steps is None and recipe.epochs is not None:
            total = recipe.epochs * steps_per_epoch
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(recipe.warmup_share * total)
        if warmup >= total:
            raise UsageError(f"warmup-steps {warmup}: the run has {total} steps")
        return Schedule(recipe.name, stream, total, warmup)


def _spoken(name: str) -> str:
    """As the command line has it."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor at every step: a function of the step alone.

    Attributes:
        recipe: its name.
        stream: the original's two differ.
        total_steps: of the run; the original's milestones are scaled to it.
        warmup_steps: over which the factor rises linearly, ending at its full value.
    """

    recipe: RecipeName
    stream: Stream
    total_steps: int
    warmup_steps: int

    def factor(self, step: int) -> float:
        """Of the peak learning rate, at a step from 0."""
        if step < self.warmup_steps:
            return self._plain(self.warmup_steps) * (step + 1) / (self.warmup_steps + 1)
        return self._plain(step)

    def _plain(self, step: int) -> float:
        if self.recipe == "finetune":
            length = max(self.total_steps - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / length))
        table = ORIGINAL_STEPS[self.stream]
        scale = self.total_steps / table[-1][0]
        return next((f for before, f in table if step < round(before * scale)), table[-1][1])

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "recipe": self.recipe,
            "stream": self.stream,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
        }


def original_steps(stream: Stream) -> int:
    """How many steps the authors took."""
    return ORIGINAL_STEPS[stream][-1][0]


def make_optimizer(
    network: I3D,
    *,
    momentum: float | None,
    weight_decay: float,
    head_factor: float,
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW where momentum is None; learning rates are set at every step.

    Each group has a ``factor`` of the learning rate. Frozen parameters are in none.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = head_factor if name.startswith("Logits.") else 1.0
            decay = weight_decay if name.endswith("weight") else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    described = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if momentum is None:
        return torch.optim.AdamW(described, lr=0.0)
    return torch.optim.SGD(described, lr=0.0, momentum=momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]
