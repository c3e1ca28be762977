"""A Fréchet Video Distance with all that it depends on: a name, a line, JSON.

The number means something only beside other numbers of the same protocol, weights and number of
videos, so it never travels without them: `Result.line` is enough to repeat it.
"""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any, NamedTuple

from i3d.data.shards import Failure
from i3d.errors import DatasetError, UsageError
from i3d.metrics.frechet import FEW, Moments, distance
from i3d.tasks.fvd.analysis import Analysis, LengthPoint, analyse
from i3d.tasks.fvd.options import Beside
from i3d.tasks.fvd.protocols import MAX_SIZE, SCALE, Protocol, find_protocol
from i3d.tasks.fvd.statistics import Record, WeightsRecord
from i3d.version import VERSION

REASONS_SHOWN = 3  # of skipped videos, and of damaged ones


class FewVideosWarning(UserWarning):
    """A distance of so few videos that it is mostly bias and noise."""


class FrameSizeWarning(UserWarning):
    """A distance of sets whose frames differ in size, which it measures, too."""


class Damaged(NamedTuple):
    """A video that was used though part of it was lost, and what."""

    key: str
    damage: str


@dataclass(frozen=True)
class Tally:
    """One set, and what became of its videos: found = used + skipped + left_out.

    Attributes:
        used: number of videos with features.
        origin: ``files`` (every frame at the file's own rate), ``array``, ``shards-PRESET``
            (frames at the preset's rate and size, coded as JPEG) or ``features``.
        found: number in the set.
        skipped: number that could not be used.
        left_out: number beyond the protocol's.
        damaged: number of the used ones of which something was lost, as far as it was decoded.
        reasons: why videos were skipped in this run.
        damages: what was lost of which video in this run.
        clips: N, where it is not one for each used video.
        sizes: height and width of the frames, each pair once; empty where nobody knows.
        resumed: number of videos whose features were there from before.
    """

    used: int
    origin: str
    found: int
    skipped: int = 0
    left_out: int = 0
    damaged: int = 0
    reasons: tuple[Failure, ...] = ()
    damages: tuple[Damaged, ...] = ()
    clips: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    resumed: int = 0

    @property
    def count(self) -> str:
        """Number of videos, and of clips where it is another, for a line."""
        several = self.clips is not None and self.clips != self.used
        return f"{self.used}x{self.clips}clips" if several else f"{self.used}"

    @property
    def is_partial(self) -> bool:
        """Whether there is more to say than how many were used."""
        return bool(self.skipped or self.left_out or self.damaged)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        reasons = [{"video": r.key, "reason": r.reason} for r in self.reasons]
        damages = [{"video": d.key, "damage": d.damage} for d in self.damages]
        sizes = [{"height": h, "width": w} for h, w in self.sizes]
        told = {**asdict(self), "reasons": reasons, "damages": damages, "sizes": sizes}
        del told["resumed"]  # of this run, not of the result
        return told


@dataclass(frozen=True)
class Result:
    """A distance with everything that it depends on.

    Attributes:
        value: Fréchet's distance, at least 0.
        protocol: the named one, with what was changed.
        weights: the network's; None where features were given.
        precision: its arithmetic's.
        dimensions: D, of the features.
        real: the first set.
        fake: the second.
        analysis: what was computed beside it; its interval, where a set has fewer than 256 videos.
    """

    value: float
    protocol: Protocol
    weights: WeightsRecord | None
    precision: str
    dimensions: int
    real: Tally
    fake: Tally
    analysis: Analysis = field(default_factory=Analysis)

    @property
    def name(self) -> str:
        """The protocol's name, with every way in which this number is not that protocol's."""
        if self.weights is None:
            return f"given features, divisor={self.protocol.divisor}"
        parts = [f"{key}={value}" for key, value in self.protocol.changes.items()]
        if self.weights.released != self.protocol.weights:
            parts.insert(0, self.weights.words)
        number = find_protocol(self.protocol.name).videos
        if self.protocol.videos != number:
            parts.append(f"videos={self.protocol.videos}")
            number = None
        if number is not None and (self.real.used, self.fake.used) != (number, number):
            parts.append(f"{self.real.used}+{self.fake.used} videos")
        if self.precision != "fp32":
            parts.append(self.precision)
        # only shards change a video's frames; of the others the line says what they were
        found = {self.real.origin, self.fake.origin}
        origins = sorted(o for o in found if "shards-" in o)
        return ", ".join([self.protocol.name, *parts, *origins])

    @property
    def line(self) -> str:
        """The number and all that is needed to repeat it, as ``shlex.split`` takes it apart."""
        settings: dict[str, Any] = {}
        if self.weights is not None:
            settings |= {"weights": self.weights.name, "sha256": self.weights.sha256}
            settings |= {**self.protocol.settings, "scale": SCALE, "precision": self.precision}
        else:
            settings["divisor"] = self.protocol.divisor
        settings["dimensions"] = self.dimensions
        for side, videos in (("real", self.real), ("fake", self.fake)):
            settings[side] = f"{videos.count}:{videos.origin}"
        settings["i3d"] = VERSION
        words = [shlex.quote(f"{key}={value}") for key, value in settings.items()]
        return f"FVD {self.value:.8g} {shlex.quote(f'[{self.name}]')} {' '.join(words)}"

    @property
    def warning(self) -> str | None:
        """What is to be said of few videos."""
        if min(self.real.used, self.fake.used) >= FEW:
            return None
        text = (
            f"{self.real.used} real and {self.fake.used} fake videos: under {FEW} the distance is "
            "mostly bias and noise, and compares only with one of as many videos"
        )
        return text if self.interval is None else f"{text}; {self.interval}"

    @property
    def interval(self) -> str | None:
        """The interval in words."""
        if (interval := self.analysis.interval) is None:
            return None
        return (
            f"95 % bootstrap interval {interval.low:.4g} to {interval.high:.4g}, "
            "the bias not included"
        )

    @property
    def size_warning(self) -> str | None:
        """What is to be said of sets whose frames differ in size, and were not made alike."""
        one, other = self.real.sizes, self.fake.sizes
        if self.weights is None or self.protocol.resolution is not None or not (one and other):
            return None
        if one == other:
            return None
        small = min(MAX_SIZE, *(min(size) for size in one + other))
        return (
            f"REAL has frames of {_say_sizes(one)}, FAKE of {_say_sizes(other)}: the distance "
            f"measures that, too; --resolution {small} makes both of one size first"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "fvd": self.value,
            "name": self.name,
            "line": self.line,
            "protocol": {**asdict(self.protocol), "changes": self.protocol.changes},
            "weights": None if self.weights is None else asdict(self.weights),
            "precision": self.precision,
            "dimensions": self.dimensions,
            "real": self.real.as_dict(),
            "fake": self.fake.as_dict(),
            **self.analysis.as_dict(),
            "versions": {"i3d": VERSION, **{n: version(n) for n in ("torch", "numpy")}},
        }

    def __str__(self) -> str:
        lines = [self.line]
        if self.interval is not None and self.warning is None:
            lines.append(self.interval)
        if text := str(self.analysis):
            lines.append(text)
        for side, videos in (("real", self.real), ("fake", self.fake)):
            if videos.is_partial:
                lines.append(describe_tally(side, videos))
        lines += [f"warning: {w}" for w in (self.size_warning, self.warning) if w is not None]
        return "\n".join(lines)


def make_record(protocol: Protocol, weights: WeightsRecord, precision: str, tally: Tally) -> Record:
    """What saved statistics say of a set."""
    return Record(
        protocol=protocol,
        weights=weights,
        precision=precision,
        origin=tally.origin,
        found=tally.found,
        left_out=tally.left_out,
        skipped=tally.skipped,
        damaged=tally.damaged,
        clips=tally.clips,
        sizes=tally.sizes,
        i3d=VERSION,
        arrays_sha256="",
    )


def _say_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Width x height of one or two, or of the smallest and the largest."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    words = [f"{w}x{h}" for h, w in ordered]
    return " and ".join(words) if len(words) < 3 else f"{words[0]} to {words[-1]}"


def warn_of(result: Result, *, stacklevel: int) -> None:
    """Python's warnings of what is to be said of a result."""
    if result.size_warning is not None:
        warnings.warn(FrameSizeWarning(result.size_warning), stacklevel=stacklevel)
    if result.warning is not None:
        warnings.warn(FewVideosWarning(result.warning), stacklevel=stacklevel)


def describe_tally(side: str, videos: Tally) -> str:
    """What became of a set's videos, with the first reasons."""
    text = (
        f"{side}: {videos.found} found = {videos.used} used + {videos.skipped} skipped + "
        f"{videos.left_out} beyond the protocol's number"
    )
    text += _describe_first(videos.reasons)
    if videos.damaged:
        text += f"\n{side}: {videos.damaged} of the used ones are damaged"
        text += _describe_first(videos.damages)
    return text


def _describe_first(videos: Sequence[Failure | Damaged]) -> str:
    """A line for each of the first."""
    lines = [
        f"\n  {v.key}: {v.reason if isinstance(v, Failure) else v.damage}"
        for v in videos[:REASONS_SHOWN]
    ]
    more = len(videos) - REASONS_SHOWN
    return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")


def compute_result(
    moments: tuple[Moments, Moments],
    tallies: tuple[Tally, Tally],
    protocol: Protocol,
    weights: WeightsRecord | None,
    precision: str,
    beside: Beside = Beside(),
    *,
    points: bool = False,
    extremes: int = 0,
    keys: tuple[Sequence[str], Sequence[str]] | None = None,
    lengths: Sequence[LengthPoint] = (),
) -> Result:
    """Compute the distance and all that is asked for beside it; see `analyse`.

    Raises:
        DatasetError: a set has fewer than two videos.
        UsageError: sets that do not compare; what is asked for cannot be told of them.
    """
    one, other = moments
    for side, m, v in zip(("real", "fake"), moments, tallies, strict=True):
        if m.count < 2:
            first = f"; the first, {v.reasons[0].key}: {v.reasons[0].reason}" if v.reasons else ""
            raise DatasetError(
                f"{m.count} of {v.found} {side} videos could be used; a covariance needs at least "
                f"2{first}"
            )
    if one.dimensions != other.dimensions:
        raise UsageError(
            f"real has features of {one.dimensions} dimensions, fake of {other.dimensions}"
        )
    several = any(v.clips not in (None, v.used) for v in tallies)
    if beside.interval and several:
        raise UsageError(
            "an interval takes clips as independent, and those of one video are not: leave "
            "--interval or --clips every out"
        )
    few = min(one.count, other.count) < FEW and not several
    analysis = analyse(
        one,
        other,
        replace(beside, interval=beside.interval or few),
        unbiased=protocol.unbiased,
        points=points,
        extremes=extremes,
        keys=keys,
        lengths=lengths,
    )
    return Result(
        value=distance(one, other, unbiased=protocol.unbiased),
        protocol=protocol,
        weights=weights,
        precision=precision,
        dimensions=one.dimensions,
        real=tallies[0],
        fake=tallies[1],
        analysis=analysis,
    )
