"""A prediction: the most probable classes of a video, of its windows, and its segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from i3d.errors import UsageError, shown
from i3d.metrics import probabilities
from i3d.presets import Stream
from i3d.report.drawing import Drawing, svg_text
from i3d.report.page import Picture, embed_picture, render_fragment
from i3d.report.timeline import Truth, lay_out_timeline
from i3d.tasks.predict.options import SUGGESTED_EVERY

if TYPE_CHECKING:
    import pandas
    import torch

MAX_HTML_ROWS = 50  # of a notebook's table
HTML_THUMBNAIL_HEIGHT = 80  # pixels; shown at half of it, for screens of fine pixels


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
    """A stretch of a video, and what the networks say of it.

    Attributes:
        start_seconds: of its first frame.
        end_seconds: of the end of its last.
        logits: float32 (num_classes,), summed over the streams.
        frame: uint8 (h, w, 3), RGB: the middle one, small, to show.
        cuts: seconds at which the picture changes at once, to another shot: its start, or within.
    """

    start_seconds: float
    end_seconds: float
    logits: np.ndarray
    frame: np.ndarray
    cuts: tuple[float, ...] = ()

    def as_dict(self, classes: Sequence[str], top_k: int) -> dict[str, Any]:
        """As ``i3d predict --json`` prints it."""
        scores = top_classes(self.logits, classes, top_k=top_k)
        return {
            "start_seconds": self.start_seconds,
            "end_seconds": self.end_seconds,
            "predictions": [score.as_dict() for score in scores],
        }


@dataclass(frozen=True)
class Look:
    """A window, and what the networks saw of it.

    Attributes:
        window: when it is, and its logits.
        frames: uint8 (T, H, W, 3), RGB, of which the networks see the middle.
        flow: float32 (T - 1, H, W, 2), pixels; None without a flow network.
        clips: what each stream's network was given, float32 (C, T', 224, 224): looped.
        duration: seconds of the whole video, as far as is known.
    """

    window: Window
    frames: np.ndarray
    flow: np.ndarray | None
    clips: Mapping[Stream, "torch.Tensor"]
    duration: float | None


@dataclass(frozen=True)
class Segment:
    """Neighbouring windows of one answer, or what cuts leave of them.

    Attributes:
        start_seconds: when it begins: with a window, or at a cut.
        end_seconds: when it ends.
        name: the class; None where the networks are not sure.
        index: the class's; None where they are not sure.
        probability: the class's, in 0..1, the mean over the windows; None where they are not sure.
    """

    start_seconds: float
    end_seconds: float
    name: str | None
    index: int | None
    probability: float | None

    def as_dict(self) -> dict[str, Any]:
        """As ``i3d predict --json`` prints it."""
        return {
            "start_seconds": self.start_seconds,
            "end_seconds": self.end_seconds,
            "class": self.name,
            "index": self.index,
            "probability": self.probability,
        }

    def __str__(self) -> str:
        span = f"{self.start_seconds:8.1f} -{self.end_seconds:8.1f} s"
        if self.probability is None:
            return f"{span}  uncertain"
        return f"{span}  {self.name}  {100 * self.probability:.0f} %"


@dataclass(frozen=True)
class Prediction:
    """What happens in a video.

    Attributes:
        video: its path, URL or other name.
        frames: frames at 25 fps that were looked at, before looping.
        seconds: their duration.
        duration: seconds of the whole video, as its header says where it was not decoded to the
            end; None where nobody says.
        checkpoints: names or paths of the networks whose logits were summed.
        predictions: the ``top_k`` classes, best first: of the clip, or along a video of the
            windows' mean logits, where that was asked for; else empty.
        segments: what happens when, in order, over all that was looked at.
        windows: one a window with ``every_seconds``, else one for the whole clip.
        classes: names of all classes, in the order of the logits.
        top_k: how many classes are shown, of the windows too.
        damage: what was lost of a damaged file, or None.
        every_seconds: None for the test clip, the first 10 s.
        still: whether every frame that was looked at is the same picture.
    """

    video: str
    frames: int
    seconds: float
    duration: float | None
    checkpoints: tuple[str, ...]
    predictions: tuple[ClassScore, ...]
    segments: tuple[Segment, ...] = field(repr=False)
    windows: tuple[Window, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    top_k: int = 5
    damage: str | None = None
    every_seconds: float | None = None
    still: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As ``i3d predict --json`` prints it."""
        result: dict[str, Any] = {
            "video": self.video,
            "frames": self.frames,
            "seconds": self.seconds,
            "duration": self.duration,
            "checkpoints": list(self.checkpoints),
            "damage": self.damage,
        }
        if self.predictions:
            result["predictions"] = [score.as_dict() for score in self.predictions]
        if self.every_seconds is not None:
            result["segments"] = [segment.as_dict() for segment in self.segments]
            result["windows"] = [w.as_dict(self.classes, self.top_k) for w in self.windows]
        return result

    def draw_timeline(self, *, truth: Sequence[Truth] = (), header: bool = False) -> Drawing:
        """What happens when, as a picture: `i3d.report.drawing` makes SVG and files of it.

        Args:
            truth: what does happen, to be outlined.
            header: whether the video's name and what was looked at stand above it.
        """
        along = self.every_seconds is not None and self.damage is None
        return lay_out_timeline(
            self.windows,
            probabilities(np.stack([window.logits for window in self.windows])),
            self.classes,
            self.segments,
            end_seconds=(self.duration or 0.0) if along else 0.0,
            truth=truth,
            title=PurePath(shown(self.video)).name if header else "",
            caption=self._looked_at if self.damage is None else f"{self._looked_at}, damaged",
        )

    def to_pandas(self) -> "pandas.DataFrame":
        """The segments as a table of pandas.

        Returns:
            A row a segment, with the columns ``video``, ``start_seconds``, ``end_seconds``,
            ``class``, ``index`` and ``probability``; the last three are missing (``pandas.NA``)
            where the networks are not sure.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas: pip install pandas") from None
        types = {
            "video": "string",
            "start_seconds": "float64",
            "end_seconds": "float64",
            "class": "string",
            "index": "Int64",
            "probability": "Float64",
        }
        rows = [{"video": self.video, **segment.as_dict()} for segment in self.segments]
        return pandas.DataFrame(rows, columns=list(types)).astype(types)

    def _repr_html_(self) -> str:
        """What a notebook shows: the segments and the timeline, or the classes of the one clip."""
        along = self.every_seconds is not None
        return render_fragment(
            "i3d.tasks.predict",
            "prediction",
            prediction=self,
            looked_at=self._looked_at,
            rows=[(s, self._picture_at(s)) for s in self.segments[:MAX_HTML_ROWS]] if along else (),
            picture=embed_thumbnail(self.windows[0].frame),
            timeline=Markup(svg_text(self.draw_timeline())) if along else "",
            scores=self.predictions[:MAX_HTML_ROWS],
        )

    def _picture_at(self, segment: Segment) -> Picture:
        """The frame nearest to the middle of a segment."""
        middle = segment.start_seconds + segment.end_seconds
        window = min(self.windows, key=lambda w: abs(w.start_seconds + w.end_seconds - middle))
        return embed_thumbnail(window.frame)

    @property
    def _looked_at(self) -> str:
        """What was looked at, in words."""
        if self.every_seconds is not None:
            count = len(self.windows)
            return f"{self.seconds:.1f} s, {count} window{'s' if count > 1 else ''}"
        unseen = self.duration is not None and self.duration - self.seconds > 0.05
        if unseen:
            every = f"--every {SUGGESTED_EVERY:g}"
            return (
                f"the first {self.seconds:.1f} of {self.duration:.1f} s; {every} looks at all of it"
            )
        return f"{self.frames} frame{'s' if self.frames != 1 else ''}, {self.seconds:.1f} s"

    def __str__(self) -> str:
        lines = [f"{self.video}  ({self._looked_at})"]
        if self.damage is not None:
            lines.append(f"  damaged: {self.damage}")
        if self.every_seconds is not None:
            lines += map(str, self.segments)
            if self.predictions:
                lines.append("  mean of the windows:")
        lines += [
            f"  {score.probability:7.2%}  {score.name}  (logit {score.logit:.3f})"
            for score in self.predictions
        ]
        return "\n".join(lines)


def embed_thumbnail(frame: np.ndarray) -> Picture:
    """A frame, uint8 (H, W, 3), for a row of a table; at most four times as wide as high."""
    height, width = frame.shape[:2]
    wide = min(4 * HTML_THUMBNAIL_HEIGHT, max(1, round(HTML_THUMBNAIL_HEIGHT * width / height)))
    return embed_picture(frame, quality=80, size=(wide, HTML_THUMBNAIL_HEIGHT))


def top_classes(
    logits: np.ndarray, classes: Sequence[str], *, top_k: int
) -> tuple[ClassScore, ...]:
    """The ``top_k`` best of logits (num_classes,); equal ones in the order of their index."""
    shares = probabilities(logits)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return tuple(ClassScore(classes[i], int(i), float(shares[i]), float(logits[i])) for i in best)
