"""What happens in a video: classes, and when."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.predict.activation import activation_map, upsample_map
    from i3d.tasks.predict.map_video import MapVideo
    from i3d.tasks.predict.predictor import Predictor, predict
    from i3d.tasks.predict.result import Prediction

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "predictor": "Predictor predict",
        "result": "Prediction",
        "activation": "activation_map upsample_map",
        "map_video": "MapVideo",
    },
)
