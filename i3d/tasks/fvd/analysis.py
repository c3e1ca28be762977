"""What is computed beside a Fréchet Video Distance: other numbers of the same features.

    the features of every video --analyse--> kernel distance, precision and recall, the curve over
    the number of videos, an interval, classes, the nearest and the farthest fake videos

None of it moves the distance itself. Most of it needs every video's features, which small sets
have anyway and large ones if they were kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from i3d.errors import UsageError
from i3d.metrics import manifold
from i3d.metrics.frechet import (
    FEW,
    ClassDistance,
    CurvePoint,
    Interval,
    Moments,
    bootstrap,
    class_distances,
    curve,
    endless,
    kernel_distance,
)
from i3d.metrics.manifold import PrecisionRecall, nearest_rows
from i3d.tasks.fvd.options import Beside

CLASSES_SHOWN = 10  # on the terminal, of the most distant
VIDEOS_SHOWN = 3  # on the terminal, of the nearest and of the farthest


class Extreme(NamedTuple):
    """A fake video that is very near to the real ones, or very far from them.

    Attributes:
        key: the fake video's.
        distance: Euclidean, of its features to those of its nearest real video.
        real: that real video's key.
    """

    key: str
    distance: float
    real: str


class LengthPoint(NamedTuple):
    """The distance of clips of another length.

    Attributes:
        frames: of a clip.
        distance: Fréchet's, by the same protocol otherwise.
        real: videos that had so many frames.
        fake: likewise.
    """

    frames: int
    distance: float
    real: int
    fake: int


@dataclass(frozen=True)
class Analysis:
    """The numbers beside a distance; None or empty where they were not asked for.

    Attributes:
        kvd: kernel distance, unbiased.
        precision_recall: Kynkäänniemi's, of the nearest neighbours among features.
        points: the distance over the number of videos.
        interval: 95 %, by bootstrap.
        classes: the distance of every class, by name.
        lengths: the distance over the length of clips.
        nearest: fake videos, the nearest to a real one first.
        farthest: fake videos, the farthest from any real one first.
    """

    kvd: float | None = None
    precision_recall: PrecisionRecall | None = None
    points: tuple[CurvePoint, ...] = ()
    interval: Interval | None = None
    classes: tuple[ClassDistance, ...] = ()
    lengths: tuple[LengthPoint, ...] = ()
    nearest: tuple[Extreme, ...] = ()
    farthest: tuple[Extreme, ...] = ()

    @property
    def endless(self) -> float | None:
        """The curve's line at endlessly many videos."""
        return endless(self.points) if len(self.points) > 1 else None

    @property
    def class_warning(self) -> str | None:
        """What is to be said of how few videos a class has."""
        counts = [min(c.real, c.fake) for c in self.classes if c.distance is not None]
        if not counts or min(counts) >= FEW:
            return None
        return (
            f"classes of as few as {min(counts)} videos: under {FEW} a class's distance is "
            "mostly bias and noise, and compares only with one of as many videos"
        )

    @property
    def distant_classes(self) -> list[ClassDistance]:
        """All classes: the most distant first, those without a distance last, by name."""
        return sorted(self.classes, key=lambda c: (c.distance is None, -(c.distance or 0), c.name))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        both = self.precision_recall
        return {
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "kvd": self.kvd,
            "precision_recall": None if both is None else both._asdict(),
            "curve": [asdict(point) for point in self.points],
            "endless": self.endless,
            "lengths": [point._asdict() for point in self.lengths],
            "classes": [asdict(c) for c in self.classes],
            "nearest": [video._asdict() for video in self.nearest],
            "farthest": [video._asdict() for video in self.farthest],
        }

    def __str__(self) -> str:
        lines = []
        if self.kvd is not None:
            lines.append(f"KVD {self.kvd:.6g}, kernel (x'y / dimensions + 1)^3, unbiased")
        if (both := self.precision_recall) is not None:
            lines.append(
                f"precision {both.precision:.4f}, recall {both.recall:.4f}, "
                f"{both.neighbours} nearest neighbours"
            )
        lines += [
            f"N {p.count}: {p.mean:.6g} ({p.lowest:.6g} to {p.highest:.6g})" for p in self.points
        ]
        if self.endless is not None:
            lines.append(f"extrapolated to endlessly many videos: {self.endless:.6g}")
        lines += [
            f"{p.frames} frames: {p.distance:.6g} ({p.real} real, {p.fake} fake)"
            for p in self.lengths
        ]
        lines += self._class_lines()
        for title, videos in (("nearest", self.nearest), ("farthest", self.farthest)):
            if videos:
                lines.append(f"{title} fake videos, and their nearest real ones:")
                lines += [f"  {v.distance:.6g} {v.key}: {v.real}" for v in videos[:VIDEOS_SHOWN]]
        return "\n".join(lines)

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return []
        lines = [f"{len(self.classes)} classes, the most distant first:"]
        for c in self.distant_classes[:CLASSES_SHOWN]:
            counts = f"{c.real} real, {c.fake} fake"
            told = c.reason if c.distance is None else f"{c.distance:.6g} ({counts})"
            lines.append(f"  {c.name}: {told}")
        if (more := len(self.classes) - CLASSES_SHOWN) > 0:
            lines.append(f"  and {more} more")
        if self.class_warning is not None:
            lines.append(f"warning: {self.class_warning}")
        return lines


def analyse(
    real: Moments,
    fake: Moments,
    beside: Beside = Beside(),
    *,
    unbiased: bool = True,
    points: bool = False,
    extremes: int = 0,
    keys: tuple[Sequence[str], Sequence[str]] | None = None,
    lengths: Sequence[LengthPoint] = (),
) -> Analysis:
    """Compute what is asked for.

    Args:
        real: features of the real videos; their rows were kept if more than an interval is asked.
        fake: those of the fake ones.
        beside: what is asked for; of its sweep the ``lengths`` are what was measured. An interval
            is by bootstrap, from the set or sets whose rows were kept.
        unbiased: whether covariances are divided by N - 1, else by N.
        points: the distance over the number of videos.
        extremes: how many of the nearest and how many of the farthest fake videos; at most half of
            all, so that none is both.
        keys: of the real and of the fake videos, one a row of their features. Their first part is
            the class; without them the videos are numbered, from 0.
        lengths: distances of other lengths of clips, which were measured elsewhere.

    Raises:
        UsageError: rows are needed and were not kept; classes are asked for and a key has none.
        I3DError: features of which there is no such number, such as too few.
    """
    asked = {
        "kernel distance": beside.kvd,
        "curve": points,
        "precision and recall": beside.precision_recall,
        "distances of classes": beside.per_class,
        "nearest and farthest videos": extremes > 0,
    }
    x, y = real.rows, fake.rows
    missing = [name for name, wanted in asked.items() if wanted and (x is None or y is None)]
    if beside.interval and x is None and y is None:
        missing.append("interval")
    if missing:
        raise UsageError(
            f"these need the features of every video: {', '.join(missing)}; saved statistics hold "
            "them of small sets alone, FrechetVideoDistance with keep_features=True of all"
        )
    found: dict[str, Any] = {"lengths": tuple(lengths)}
    if beside.interval:
        found["interval"] = bootstrap(real, fake, unbiased=unbiased)
    if x is None or y is None or not any(asked.values()):
        return Analysis(**found)
    if keys is not None:
        assert [len(side) for side in keys] == [len(x), len(y)], "one key a row"
    if beside.kvd:
        found["kvd"] = kernel_distance(x, y)
    if beside.precision_recall:
        found["precision_recall"] = manifold.precision_recall(x, y)
    if points:
        found["points"] = curve(x, y, unbiased=unbiased)
    if beside.per_class:
        found["classes"] = class_distances(x, y, *_classes(keys), unbiased=unbiased)
    if extremes > 0:
        found["nearest"], found["farthest"] = _extremes(x, y, keys, extremes)
    return Analysis(**found)


def _classes(
    keys: tuple[Sequence[str], Sequence[str]] | None,
) -> tuple[list[str], list[str]]:
    """The first part of every key; `archery/v1` is of `archery`."""
    if keys is None:
        raise UsageError(
            "the videos have no names, and so no classes: give folders or shards in which a video "
            "is CLASS/NAME"
        )
    for side, names in zip(("real", "fake"), keys, strict=True):
        for key in names:
            if not all(key.partition("/")):
                raise UsageError(
                    f"the {side} video {key!r} has no class; classes are compared where every "
                    "video of both sets is CLASS/NAME"
                )
    real, fake = ([key.partition("/")[0] for key in names] for names in keys)
    return real, fake


def _extremes(
    real: np.ndarray,
    fake: np.ndarray,
    keys: tuple[Sequence[str], Sequence[str]] | None,
    most: int,
) -> tuple[tuple[Extreme, ...], tuple[Extreme, ...]]:
    """The nearest and the farthest fake videos; of equal ones, the first in their order."""
    nearest = nearest_rows(fake, real)
    names = (
        keys if keys is not None else tuple([str(i) for i in range(len(x))] for x in (real, fake))
    )
    most = min(most, len(fake) // 2)

    def chosen(distances: np.ndarray) -> tuple[Extreme, ...]:
        return tuple(
            Extreme(names[1][i], float(nearest.distances[i]), names[0][nearest.places[i]])
            for i in np.argsort(distances, kind="stable")[:most].tolist()
        )

    return chosen(nearest.distances), chosen(-nearest.distances)
