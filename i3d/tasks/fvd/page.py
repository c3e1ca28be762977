"""The page of a Fréchet Video Distance: one HTML file that needs no other, and no network.

The numbers are made here and laid out in ``templates/fvd_page.html.jinja``. Keys, names of classes
and reasons are other people's text: the template escapes all of it (`i3d.report.page`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from i3d import files
from i3d.metrics.frechet import FEW, CurvePoint
from i3d.report.page import Picture, embed_picture, write_html
from i3d.tasks.fvd.analysis import Analysis, Extreme, LengthPoint
from i3d.tasks.fvd.result import Result, Tally

EXTREMES_SHOWN = 12  # of the nearest and of the farthest
CLASSES_SHOWN = 1000  # 200 kB
REASONS_SHOWN = 1000
MINUS = "\N{MINUS SIGN}"

STRIP_FRAMES = 4  # of a video
STRIP_SIDE = 112  # pixels of a frame, at most
STRIP_QUALITY = 80

# What each number is good for, and what it cannot see.
ABOUT = {
    "fvd": (
        "comparing models under one line: how pictures look and how they move, in one number",
        "which videos are bad, and why; whether they are copies of real ones. Videos played "
        "backwards hardly move it. It is biased upwards, the more so the fewer videos there are",
    ),
    "endless": (
        "comparing sets of different sizes: the bias of few videos is taken out",
        "the same as FVD. It is a line through a few means, so it scatters more than FVD, and "
        "below about 400 videos the bias is no line yet",
    ),
    "kvd": (
        "small sets: of independent ones its expected value is the same whatever their size",
        "the same as FVD. Where sets are alike it is noise around 0, and may be negative; of real "
        "videos and their own reconstructions, which are not independent, it is too low",
    ),
    "precision": (
        "quality: the share of fake videos that lie among the real ones",
        "missing variety: one good video, repeated, has the precision 1. Blurred and still videos "
        "pass for real ones, too, where a lone real video far from all others has a wide sphere",
    ),
    "recall": (
        "variety: the share of real videos that lie among the fake ones",
        "quality, where fake videos are so scattered that their wide spheres cover much. Videos "
        "that are all distorted alike have a low one, too",
    ),
}


def write_page(
    result: Result,
    location: files.Location,
    *,
    thumbnails: Mapping[str, np.ndarray] = {},
    real_thumbnails: Mapping[str, np.ndarray] = {},
) -> None:
    """Write a distance and its analysis as a self-contained page, atomically.

    Args:
        result: distance that is shown, with what was computed beside it.
        location: path or URL of the ``.html`` file.
        thumbnails: key of a fake video -> some of its frames in their order, uint8 (T, H, W, 3) RGB
            of any size, for the first `EXTREMES_SHOWN` of ``result.analysis.nearest`` and of
            ``farthest``; `STRIP_FRAMES` of them are shown. It may lack any; the page says so.
        real_thumbnails: likewise, by the keys of those videos' nearest real ones.
    """
    analysis = result.analysis
    write_html(
        location,
        "i3d.tasks.fvd",
        "fvd_page",
        filters={"short": _short, "counted": _count_text},
        result=result,
        analysis=analysis,
        numbers=_numbers(result),
        curve=_curve(analysis),
        lengths=_lengths(analysis.lengths),
        bars=_bars(analysis),
        classes_shown=CLASSES_SHOWN,
        extremes=_extremes(analysis, thumbnails, real_thumbnails),
        sets=[_Set("real", result.real), _Set("fake", result.fake)],
        reasons_shown=REASONS_SHOWN,
        settings=result.protocol.settings if result.weights is not None else {},
        versions=result.as_dict()["versions"],
    )


# --- text -----------------------------------------------------------------------------------------


def _short(value: float) -> str:
    """Five digits: more of them are the line's."""
    return f"{MINUS if value < 0 else ''}{abs(value):.5g}"


def _count_text(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"


@dataclass(frozen=True)
class _Number:
    """A number with what it is good for and blind to."""

    name: str
    value: str
    beside: str
    good: str
    blind: str


def _numbers(result: Result) -> list[_Number]:
    analysis = result.analysis
    interval, both = analysis.interval, analysis.precision_recall
    found = [("FVD", "fvd", _short(result.value), "")]
    if interval is not None:
        low, high = _short(interval.low), _short(interval.high)
        found = [("FVD", "fvd", _short(result.value), f"{low} to {high}: 95 %, without the bias")]
    if analysis.endless is not None:
        beside = "of endlessly many videos, extrapolated"
        found.append(("FVD\N{INFINITY}", "endless", _short(analysis.endless), beside))
    if analysis.kvd is not None:
        found.append(("KVD", "kvd", _short(analysis.kvd), "kernel distance, unbiased"))
    if both is not None:
        beside = f"{both.neighbours} nearest neighbours"
        for name, value in (("Precision", both.precision), ("Recall", both.recall)):
            found.append((name, name.lower(), f"{value:.3f}", beside))
    return [_Number(name, value, beside, *ABOUT[key]) for name, key, value, beside in found]


# --- plots ----------------------------------------------------------------------------------------

WIDTH, HEIGHT = 400.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 388.0, 10.0, 216.0
LABEL_WIDTH = 30.0  # that a label of an axis needs


@dataclass(frozen=True)
class _Dot:
    """A point: its place in the figure, and its numbers as text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class _Plot:
    """A line through points over an axis whose labels are numbers.

    Attributes:
        title: what it shows.
        x_title: what the horizontal axis counts.
        x_ticks: (place, label), from the left.
        y_ticks: (place, label), from below.
        dots: points, in their order.
        band: SVG ``points`` of the area around them; "" for none.
        dashed: SVG ``points`` of the line on to where nothing was measured; "" for none.
    """

    title: str
    x_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    dots: tuple[_Dot, ...]
    band: str = ""
    dashed: str = ""

    @property
    def line(self) -> str:
        """Through the points, as an SVG ``points`` attribute."""
        return _svg_points([(d.x, d.y) for d in self.dots])


class _Scale:
    """From numbers to places along an axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.unit = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.unit


def _vertical(values: Sequence[float]) -> tuple[_Scale, tuple[tuple[float, str], ...]]:
    """An axis around values, with about four round ticks, from below."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    raw = spread / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    scale = _Scale(first * step, last * step, BOTTOM, TOP)
    ticks = (i * step for i in range(first, last + 1))
    return scale, tuple((scale(t), _short(t)) for t in ticks)


def _labels(places: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Those that do not run into the one before, from the left; the first is always there."""
    kept: list[tuple[float, str]] = []
    for place, label in places:
        if not kept or place - kept[-1][0] >= LABEL_WIDTH:
            kept.append((place, label))
    return tuple(kept)


def _svg_points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _curve(analysis: Analysis) -> _Plot | None:
    """The distance over 1 / N, where its bias is nearly a line; None for fewer than two points."""
    points, endless = analysis.points, analysis.endless
    if endless is None:
        return None
    y, y_ticks = _vertical([endless, *(v for p in points for v in (p.lowest, p.highest))])
    x = _Scale(0, 1 / points[0].count, LEFT, RIGHT - 8)

    def at(point: CurvePoint, value: float) -> tuple[float, float]:
        return x(1 / point.count), y(value)

    upper = [at(p, p.highest) for p in points]
    lower = [at(p, p.lowest) for p in reversed(points)]
    return _Plot(
        title="FVD over the number of videos, extrapolated to endlessly many",
        x_title="videos of each set, N, placed at 1 / N",
        x_ticks=_labels(
            [(LEFT, "\N{INFINITY}"), *((x(1 / p.count), f"{p.count}") for p in points[::-1])]
        ),
        y_ticks=y_ticks,
        dots=tuple(
            _Dot(*at(p, p.mean), f"{_count_text(p.count, 'video')}: {_short(p.mean)}")
            for p in points
        ),
        band=_svg_points(upper + lower),
        dashed=_svg_points([(x(0), y(endless)), at(points[-1], points[-1].mean)]),
    )


def _lengths(points: Sequence[LengthPoint]) -> _Plot | None:
    """The distance over the length of clips; None for fewer than two."""
    points = sorted(points)
    if len(points) < 2:
        return None
    y, y_ticks = _vertical([p.distance for p in points])
    x = _Scale(points[0].frames, points[-1].frames, LEFT + 14, RIGHT - 14)
    return _Plot(
        title="FVD over the number of frames of a clip",
        x_title="frames of a clip",
        x_ticks=_labels([(x(p.frames), f"{p.frames}") for p in points]),
        y_ticks=y_ticks,
        dots=tuple(
            _Dot(x(p.frames), y(p.distance), f"{p.frames} frames: {_short(p.distance)}")
            for p in points
        ),
    )


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bar:
    """A class, with its distance as a share of the largest, 0 to 100."""

    name: str
    real: int
    fake: int
    value: float | None
    share: float
    reason: str


def _bars(analysis: Analysis) -> list[_Bar]:
    """The most distant first; those without a distance last."""
    most = max((c.distance or 0.0 for c in analysis.classes), default=0.0) or 1.0
    return [
        _Bar(c.name, c.real, c.fake, c.distance, 100 * (c.distance or 0.0) / most, c.reason)
        for c in analysis.distant_classes
    ]


# --- the nearest and the farthest -----------------------------------------------------------------


@dataclass(frozen=True)
class _Card:
    """A fake video with its nearest real one, and a strip of frames of each that was given."""

    video: Extreme
    fake: Picture | None
    real: Picture | None


@dataclass(frozen=True)
class _Extremes:
    """One end of the list."""

    title: str
    about: str
    cards: tuple[_Card, ...]

    @property
    def missing(self) -> int:
        """Number of cards without a picture of the fake video."""
        return sum(card.fake is None for card in self.cards)


def _extremes(
    analysis: Analysis, fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]
) -> list[_Extremes]:
    def cards(videos: Sequence[Extreme]) -> tuple[_Card, ...]:
        return tuple(
            _Card(v, _strip(fake.get(v.key)), _strip(real.get(v.real)))
            for v in videos[:EXTREMES_SHOWN]
        )

    ends = (
        ("Nearest", "Among them would be copies of real videos.", analysis.nearest),
        ("Farthest", "No real video is like these: failures, or something new.", analysis.farthest),
    )
    return [_Extremes(title, about, cards(videos)) for title, about, videos in ends if videos]


def _strip(frames: np.ndarray | None) -> Picture | None:
    """Frames side by side, from the first to the last, made to fit and never enlarged."""
    if frames is None or not len(frames):
        return None
    chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    height, width = frames.shape[1:3]
    scale = min(STRIP_SIDE / width, STRIP_SIDE / height, 1.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in chosen]
    return embed_picture(np.concatenate(small, axis=1), quality=STRIP_QUALITY)


# --- sets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """A set with what became of its videos."""

    side: str
    tally: Tally

    @property
    def earlier(self) -> int:
        """Skipped videos whose reasons are not at hand, as of saved statistics."""
        return self.tally.skipped - len(self.tally.reasons)

    @property
    def few(self) -> bool:
        """Whether its distance is mostly bias."""
        return self.tally.used < FEW
