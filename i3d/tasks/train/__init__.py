"""Training: from nothing, from a checkpoint, or from inflated 2D weights."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.train.options import RunOptions as RunOptions
    from i3d.tasks.train.options import TrainOptions as TrainOptions
    from i3d.tasks.train.outcome import Trained as Trained
    from i3d.tasks.train.run import train as train

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "run": "train",
        "options": "TrainOptions RunOptions",
        "outcome": "Trained",
    },
)
