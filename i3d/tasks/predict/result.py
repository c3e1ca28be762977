"""A prediction: the most probable classes of a video, and of its windows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from i3d.metrics import probabilities


@dataclass(frozen=True)
class ClassScore:
    """One class of a prediction: ``probability`` in 0..1, ``logit`` summed over the streams."""

    name: str
    index: int
    probability: float
    logit: float

    def as_dict(self) -> dict[str, Any]:
        """As ``i3d predict --json`` prints it."""
        return {
            "class": self.name,
            "index": self.index,
            "probability": self.probability,
            "logit": self.logit,
        }


@dataclass(frozen=True)
class Window:
    """A stretch of a video and its logits, float32 (num_classes,), summed over the streams."""

    start_seconds: float
    end_seconds: float
    logits: np.ndarray
    frame: np.ndarray  # uint8 (H, W, 3): the middle one, to show


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a video, best first.

    Attributes:
        video: its path, URL or other name.
        frames: frames at 25 fps that were looked at, before looping.
        seconds: their duration.
        checkpoints: names or paths of the networks whose logits were summed.
        predictions: the ``top_k`` classes; with windows, of their mean logits.
        windows: one a window with ``every_seconds``, else one for the whole clip.
        classes: names of all classes, in the order of the logits.
        damage: what was lost of a damaged file, or None.
    """

    video: str
    frames: int
    seconds: float
    checkpoints: tuple[str, ...]
    predictions: tuple[ClassScore, ...]
    windows: tuple[Window, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    damage: str | None = None
    every_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As ``i3d predict --json`` prints it."""
        result: dict[str, Any] = {
            "video": self.video,
            "frames": self.frames,
            "seconds": self.seconds,
            "checkpoints": list(self.checkpoints),
            "predictions": [score.as_dict() for score in self.predictions],
        }
        if self.every_seconds is not None:
            result["windows"] = [
                {
                    "start_seconds": window.start_seconds,
                    "end_seconds": window.end_seconds,
                    "predictions": [
                        score.as_dict()
                        for score in top_classes(
                            window.logits, self.classes, top_k=len(self.predictions)
                        )
                    ],
                }
                for window in self.windows
            ]
        if self.damage is not None:
            result["damage"] = self.damage
        return result

    def __str__(self) -> str:
        lines = [f"{self.video}  ({self.frames} frames, {self.seconds:.1f} s)"]
        if self.damage is not None:
            lines.append(f"  damaged: {self.damage}")
        if self.every_seconds is not None:
            for window in self.windows:
                best = top_classes(window.logits, self.classes, top_k=1)[0]
                span = f"{window.start_seconds:8.2f} -{window.end_seconds:8.2f} s"
                lines.append(f"{span}  {best.probability:7.2%}  {best.name}")
            lines.append("  mean of the windows:")
        lines += [
            f"  {score.probability:7.2%}  {score.name}  (logit {score.logit:.3f})"
            for score in self.predictions
        ]
        return "\n".join(lines)


def top_classes(
    logits: np.ndarray, classes: Sequence[str], *, top_k: int
) -> tuple[ClassScore, ...]:
    """The ``top_k`` best of logits (num_classes,); equal ones in the order of their index."""
    shares = probabilities(logits)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return tuple(ClassScore(classes[i], int(i), float(shares[i]), float(logits[i])) for i in best)
