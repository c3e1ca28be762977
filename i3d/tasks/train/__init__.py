"""Training: from nothing, from a checkpoint, or from inflated 2D weights."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.train.options import RunOptions, TrainOptions
    from i3d.tasks.train.outcome import Trained
    from i3d.tasks.train.run import train

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "run": "train",
        "options": "TrainOptions RunOptions",
        "outcome": "Trained",
    },
)
