"""I3D action recognition with the original model's numbers.

    video file -> frames -> flow -> shards -> clips -> model -> logits -> metrics

    import i3d
    model = i3d.load("rgb_imagenet_kinetics400")
    frames = i3d.read_video("cricket.mp4")   # uint8 (T, H, W, 3), 25 fps, short side 256
    clip = i3d.rgb_clip(frames)              # float32 (3, T, 224, 224) in [-1, 1]
    logits = model(clip[None])               # (1, 400)

    i3d.predict("cricket.mp4", top_k=5)      # all of it in one call

Names are imported at first use, so that ``import i3d`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from i3d.clips import flow_clip, rgb_clip
    from i3d.flow import optical_flow
    from i3d.frechet import frechet_distance
    from i3d.models.i3d import ENDPOINTS, I3D
    from i3d.models.weights import CHECKPOINTS, load, save
    from i3d.tasks.fvd import FrechetVideoDistance
    from i3d.tasks.predict import predict
    from i3d.video import read_video

_HOME = {
    "read_video": "i3d.video",
    "optical_flow": "i3d.flow",
    "rgb_clip": "i3d.clips",
    "flow_clip": "i3d.clips",
    "I3D": "i3d.models.i3d",
    "ENDPOINTS": "i3d.models.i3d",
    "CHECKPOINTS": "i3d.models.weights",
    "load": "i3d.models.weights",
    "save": "i3d.models.weights",
    "predict": "i3d.tasks.predict",
    "FrechetVideoDistance": "i3d.tasks.fvd",
    "frechet_distance": "i3d.frechet",
}

__all__ = [
    "read_video",
    "optical_flow",
    "rgb_clip",
    "flow_clip",
    "I3D",
    "ENDPOINTS",
    "CHECKPOINTS",
    "load",
    "save",
    "predict",
    "FrechetVideoDistance",
    "frechet_distance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'i3d' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
