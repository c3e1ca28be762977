"""How to train, and which run: what the command and the Python function both take."""

import math
from dataclasses import dataclass, replace
from typing import get_args

from i3d.errors import UsageError
from i3d.presets import MIN_FRAMES, Stream
from i3d.settings import option, required_option
from i3d.tasks.options import Device, Precision, check_choice
from i3d.tasks.train.recipe import Recipe, RecipeName, Schedule, find_recipe, original_steps

SCRATCH = "scratch"

RECIPE = "Recipe"
NETWORK = "Network"
COMPUTING = "Computing"
SAVING = "Saving and validation"


@dataclass(frozen=True)
class RunOptions:
    """Which run: what is learnt, what from, and the folder that keeps it; see `run.train`."""

    stream: Stream = required_option("Of the network.")
    output: str = required_option("Folder of the run.", metavar="DIR")
    init: str = option(
        SCRATCH,
        "What to begin with; FILE is a 2D googlenet's .safetensors.",
        metavar="scratch|CHECKPOINT|inflate:FILE",
    )
    val: str | None = option(None, "Validate on these, of the same classes.", metavar="SHARDS")
    classes: str | None = option(
        None,
        "Names of the labels of the Chainer program's folders: kinetics400, kinetics600 or a file.",
        metavar="LIST",
        default_is="the checkpoint's, of --init",
        heading=NETWORK,
    )
    resume: bool | None = option(
        None,
        "Go on with the run in --output, or refuse to.",
        flag="--resume/--no-resume",
        default_is="go on if there is one",
    )


@dataclass(frozen=True)
class TrainOptions:
    """How to train; None stands for the recipe's number where it has one.

    Raises:
        UsageError: an option has no meaning.
    """

    # The order is that of the settings in a run's state.
    recipe: RecipeName = option(
        "original", "SGD by the authors' steps, or AdamW with warm-up and cosine."
    )
    epochs: int | None = option(None, "Length of the run.", default_is="30 with finetune")
    steps: int | None = option(
        None,
        "Length of the run in steps, in place of --epochs.",
        default_is="the authors' with original",
        heading=RECIPE,
    )
    # Not scaled with the batch.
    learning_rate: float | None = option(None, "The peak.", default_is="0.1; finetune: 1e-4")
    weight_decay: float | None = option(
        None, "Of convolution weights.", default_is="1e-7; finetune: 0.05", heading=RECIPE
    )
    momentum: float | None = option(None, "Of SGD.", default_is="0.9", heading=RECIPE)
    warmup_steps: int | None = option(
        None,
        "Steps over which the learning rate rises.",
        default_is="0; finetune: 5 % of all",
        heading=RECIPE,
    )
    batch_size: int | None = option(None, "Clips at a time, of each process.", default_is="6")
    accumulate: int = option(1, "Batches whose gradients make one step.", heading=RECIPE)
    precision: Precision = option(
        "fp32", "Of the network's arithmetic; fp16 on CUDA alone.", heading=COMPUTING
    )
    clip_gradients: float | None = option(
        None, "Bound of the gradients' norm.", metavar="NORM", heading=RECIPE
    )
    ema: float | None = option(
        None, "Keep a moving average of the weights.", metavar="DECAY", heading=RECIPE
    )
    label_smoothing: float = option(0.0, "Share of the target.", heading=RECIPE)
    dropout: float = option(0.5, "Before the classifier.", heading=NETWORK)
    freeze: str | None = option(
        None, "Leave the layers up to this one as they are.", metavar="ENDPOINT", heading=NETWORK
    )
    frames: int = option(64, "Of each clip.")
    width: float | None = option(
        None, "Of a network from scratch.", default_is="1", heading=NETWORK
    )
    flip: bool = option(
        True,
        "Mirror half of the clips.",
        flag="--flip/--no-flip",
        default_is="flip",
        heading=RECIPE,
    )
    bn_momentum: float | None = option(
        None,
        "Of BatchNorm's statistics.",
        default_is="a window that grows to the original's 0.001",
        heading=NETWORK,
    )
    sync_batch_norm: bool = option(False, "Normalise over all processes' clips.", heading=NETWORK)
    compile: bool = option(False, "Use torch.compile.", heading=COMPUTING)
    seed: int = option(0, "Of all that is random.", heading=RECIPE)
    device: Device = option("auto", "Where to compute.", metavar="auto|cpu|cuda")
    workers: int | None = option(
        None,
        "Processes that read and decode.",
        default_is="the cores; on a CPU 2, of two cores none",
    )
    save_steps: int = option(500, "Save so often, and after each epoch.", heading=SAVING)
    log_steps: int = option(10, "Steps in a row of the log.", heading=SAVING)
    val_every: int = option(1, "Epochs between validations.", heading=SAVING)
    val_frames: int | None = option(
        None, "Of a validation clip.", default_is="--frames", heading=SAVING
    )

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
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
                    f"{_option_of(name)} {value}: the network needs at least {MIN_FRAMES}"
                )
        for name in ("momentum", "ema", "label_smoothing", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{_option_of(name)} {value}: it must be 0 or more, and below 1")
        for name in ("learning_rate", "clip_gradients"):
            self._above_0(name)
        self._above_0("bn_momentum", 1.0)
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"seed {self.seed}: it must be 0 to {(1 << 32) - 1}")
        if self.width is not None or self.freeze is not None:
            self._check_network()

    def _check_network(self) -> None:
        """What only the network knows; to import it takes a second."""
        from i3d.models.format import MAX_WIDTH
        from i3d.models.i3d import TABLE

        self._above_0("width", MAX_WIDTH)
        endpoints = [name for name, _ in TABLE]
        if self.freeze is not None and self.freeze not in endpoints:
            raise UsageError(f"freeze {self.freeze!r}: the endpoints are {', '.join(endpoints)}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{_option_of(name)} {value}: it must be at least {least}")

    def _above_0(self, name: str, most: float = math.inf) -> None:
        value = getattr(self, name)
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            bound = "" if most == math.inf else f" and at most {most:g}"
            raise UsageError(f"{_option_of(name)} {value}: it must be above 0{bound}")

    def complete_recipe(self) -> Recipe:
        """The recipe with the user's numbers in it."""
        names = ("learning_rate", "weight_decay", "momentum", "batch_size", "epochs")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(find_recipe(self.recipe), **given)

    def schedule(self, stream: Stream, *, steps_per_epoch: int) -> Schedule:
        """The learning rate's course.

        Raises:
            UsageError: the warm-up takes all of it.
        """
        recipe = self.complete_recipe()
        total = self.steps or original_steps(stream)
        if self.steps is None and recipe.epochs is not None:
            total = recipe.epochs * steps_per_epoch
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(recipe.warmup_share * total)
        if warmup >= total:
            raise UsageError(f"warmup-steps {warmup}: the run has {total} steps")
        return Schedule(recipe.name, stream, total, warmup)


def _option_of(name: str) -> str:
    """A field as the command line has it."""
    return name.replace("_", "-")
