"""Training: from nothing, from a checkpoint, or from inflated 2D weights."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.train.recipe import Options
    from i3d.tasks.train.run import Trained, train

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "run": "Trained train",
        "recipe": "Options",
    },
)
