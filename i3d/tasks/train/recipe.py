"""Two recipes, and the learning rate of every step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from i3d.errors import UsageError
from i3d.presets import Stream

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
        weight_decay: decay of convolution weights; offsets and biases have none.
        momentum: SGD's; None for AdamW.
        batch_size: clips of a process at a time.
        warmup_share: share of all steps over which the learning rate rises from 0.
        new_head_factor: multiple of the learning rate for a classifier that starts from nothing.
        epochs: length of a run that does not say how long it is; None: the original's steps.
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
class Schedule:
    """The learning rate's factor at every step: a function of the step alone.

    Attributes:
        recipe: whose course it is.
        stream: the network's; the original's two differ.
        total_steps: length of the run, to which the original's milestones are scaled.
        warmup_steps: steps over which the factor rises linearly, ending at its full value.
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
