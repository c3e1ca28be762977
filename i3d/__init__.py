"""I3D action recognition with the original model's numbers.

    video file -> frames -> flow -> shards -> clips -> model -> logits -> metrics

    import i3d
    model = i3d.load("rgb_imagenet_kinetics400")
    frames = i3d.read_video("cricket.mp4")   # uint8 (T, H, W, 3), 25 fps, short side 256
    clip = i3d.rgb_clip(frames)              # float32 (3, T, 224, 224) in [-1, 1]
    logits = model(clip[None])               # (1, 400)

    i3d.predict("cricket.mp4", top_k=5)      # all of it in one call
    predictor = i3d.Predictor("rgb_imagenet_kinetics400")    # the network stays loaded
    predictor(["a.mp4", frames])             # files, arrays, or lists of them

Names are imported at first use, so that ``import i3d`` is quick.
"""

from typing import TYPE_CHECKING

from i3d.lazy import lazy_names
from i3d.version import VERSION as __version__

if TYPE_CHECKING:
    from i3d.clips import flow_clip as flow_clip
    from i3d.clips import rgb_clip as rgb_clip
    from i3d.flow import optical_flow as optical_flow
    from i3d.metrics import frechet_distance as frechet_distance
    from i3d.models.checkpoints import load as load
    from i3d.models.checkpoints import save as save
    from i3d.models.i3d import ENDPOINTS as ENDPOINTS
    from i3d.models.i3d import I3D as I3D
    from i3d.models.released import CHECKPOINTS as CHECKPOINTS
    from i3d.tasks.fvd.metric import FrechetVideoDistance as FrechetVideoDistance
    from i3d.tasks.predict.activation import activation_map as activation_map
    from i3d.tasks.predict.predictor import Predictor as Predictor
    from i3d.tasks.predict.predictor import predict as predict
    from i3d.video import read_video as read_video

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "video": "read_video",
        "flow": "optical_flow",
        "clips": "rgb_clip flow_clip",
        "models.i3d": "I3D ENDPOINTS",
        "models.checkpoints": "load save",
        "models.released": "CHECKPOINTS",
        "tasks.predict": "predict Predictor activation_map",
        "tasks.fvd": "FrechetVideoDistance",
        "metrics": "frechet_distance",
    },
)
