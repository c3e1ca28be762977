"""What happens in a video: classes, and when."""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names

if TYPE_CHECKING:
    from i3d.tasks.predict.activation import activation_map as activation_map
    from i3d.tasks.predict.activation import upsample_map as upsample_map
    from i3d.tasks.predict.map_video import MapVideo as MapVideo
    from i3d.tasks.predict.predictor import Predictor as Predictor
    from i3d.tasks.predict.predictor import predict as predict
    from i3d.tasks.predict.result import Look as Look
    from i3d.tasks.predict.result import Prediction as Prediction
    from i3d.tasks.predict.result import Segment as Segment
    from i3d.tasks.predict.result import Window as Window

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "predictor": "Predictor predict",
        "result": "Look Prediction Segment Window",
        "activation": "activation_map upsample_map",
        "map_video": "MapVideo",
    },
)
