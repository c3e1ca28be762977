"""What happens in a video: classes, and when."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.predict.predictor import Prediction, Predictor, predict

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "predictor": "Prediction Predictor predict",
    },
)
