"""The page of an evaluation: one HTML file that needs no other, and no network.

The numbers are made here and laid out in ``templates/evaluation_page.html.jinja``. Class names,
video keys and reasons are other people's text: the template escapes all of it, none of it gets into
the script, and the page's policy lets nothing run but its own (`i3d.report.page`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from string import ascii_lowercase
from typing import Any

import numpy as np

from i3d import files
from i3d.metrics import Proportion, ReliabilityBin, proportion
from i3d.report.page import Picture, embed_picture, percent, write_html
from i3d.tasks.evaluate.published import Published
from i3d.tasks.evaluate.result import LABELS, Confusion, Evaluation, Mistake

MISTAKES_SHOWN = 24  # full rows of 2, 3, 4 or 6
PAIRS_SHOWN = 20
CONFUSED_CLASSES_SHOWN = 15
SKIPPED_SHOWN = 1000  # 150 kB

THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT = 160, 240  # pixels, at most; upright videos are the high ones
THUMBNAIL_QUALITY = 80

# Upper ends of the shades of a confusion: shares of the true class's videos. They are the same on
# every page, so that pages compare.
SHADES = (0.05, 0.10, 0.20, 0.30, 0.50, 1.00)


def write_page(
    evaluation: Evaluation,
    location: files.Location,
    *,
    thumbnails: Mapping[str, np.ndarray] = {},
) -> None:
    """Write an evaluation as a self-contained page, atomically.

    Args:
        evaluation: result that is shown.
        location: path or URL of the ``.html`` file.
        thumbnails: video key -> a frame, uint8 (H, W, 3) RGB of any size, for the
            ``MISTAKES_SHOWN`` surest mistakes. It may lack any of them; the page says so.
    """
    write_html(
        location,
        "i3d.tasks.evaluate",
        "evaluation_page",
        filters={"interval": _interval, "counted": _count_text},
        evaluation=evaluation,
        about=evaluation.predictions.about,
        labels=LABELS,
        **_accuracy(evaluation),
        **_calibration(evaluation),
        **_confusions(evaluation),
        **_classes(evaluation),
        **_mistakes(evaluation, thumbnails),
        skipped_shown=SKIPPED_SHOWN,
        duration=None if evaluation.cost is None else _duration(evaluation.cost.seconds),
    )


# --- text -----------------------------------------------------------------------------------------


def _interval(share: Proportion, digits: int = 2) -> str:
    return f"{percent(share.low, digits)}\N{EN DASH}{percent(share.high, digits)}"


def _count_text(number: int, noun: str, nouns: str = "") -> str:
    """``1 video``, ``1,200 videos``; `nouns` where the plural is not made by an s."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def _report_text(share: float) -> str:
    """A published percentage with its own digits, as wide as one of ours with two."""
    text = percent(share)
    return f"{text[:-1]}\N{FIGURE SPACE}" if text.endswith("0") else text


def _sureness(probability: float) -> str:
    """A mistake was never quite certain, so it is never rounded to 100."""
    text = percent(probability, 1)
    return f"over {percent(0.999, 1)}" if text == percent(1, 1) else text


def _duration(seconds: float) -> str:
    text = f"{seconds:,.1f} s"
    return text if seconds < 60 else f"{text} ({timedelta(seconds=round(seconds))})"


# --- accuracy -------------------------------------------------------------------------------------


def _accuracy(evaluation: Evaluation) -> dict[str, Any]:
    """What others published for every row, and their protocols, each under one letter."""
    protocols = list(dict.fromkeys(p.protocol for p in evaluation.published))
    marks = dict(zip(protocols, ascii_lowercase, strict=False))
    reported: dict[str, list[dict[str, str]]] = {row: [] for row in evaluation.scores}
    for p in evaluation.published:
        if p.row in reported:
            reported[p.row].append(_published(p, marks[p.protocol]))
    return {"reported": reported, "protocols": {m: p for p, m in marks.items()}}


def _published(result: Published, mark: str) -> dict[str, str]:
    top5 = "" if result.top5 is None else _report_text(result.top5)
    return {"mark": mark, "top1": _report_text(result.top1), "top5": top5}


# --- calibration: accuracy against confidence, above the number of videos, over one axis ----------

PLOT_LEFT, PLOT_TOP, PLOT_SIDE = 54.0, 8.0, 320.0
HISTOGRAM_TOP, HISTOGRAM_HEIGHT = PLOT_TOP + PLOT_SIDE + 16, 64.0
FIGURE_WIDTH = PLOT_LEFT + PLOT_SIDE + 18  # half of "100" is right of the axis
FIGURE_HEIGHT = HISTOGRAM_TOP + HISTOGRAM_HEIGHT + 40


@dataclass(frozen=True)
class _Point:
    """A bin that has videos: places in the figure's units, and the numbers as text."""

    x: float
    y: float
    y_low: float
    y_high: float
    bar_x: float
    bar_y: float
    bar_width: float
    bar_height: float
    text: str


@dataclass(frozen=True)
class _Curve:
    """The reliability of a row of the table.

    Attributes:
        row: ``rgb``, ``flow`` or ``two_stream``.
        mean_confidence: 0..1, over all videos.
        most_videos: videos of the fullest bin, which is as high as the histogram.
        points: bins that have videos, in their order.
    """

    row: str
    mean_confidence: float
    most_videos: int
    points: tuple[_Point, ...]

    @property
    def line(self) -> str:
        """Through the points, as an SVG ``points`` attribute."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    curves = []
    for row, scores in evaluation.scores.items():
        bins = [b for b in scores.reliability if b.videos]
        most = max(b.videos for b in bins)
        mean = sum(b.videos * b.confidence for b in bins) / scores.videos
        curves.append(_Curve(row, mean, most, tuple(_point(b, most) for b in bins)))
    figure = {
        "left": PLOT_LEFT,
        "right": PLOT_LEFT + PLOT_SIDE,
        "top": PLOT_TOP,
        "bottom": PLOT_TOP + PLOT_SIDE,
        "histogram_top": HISTOGRAM_TOP,
        "histogram_bottom": HISTOGRAM_TOP + HISTOGRAM_HEIGHT,
        "width": FIGURE_WIDTH,
        "height": FIGURE_HEIGHT,
        "ticks": [(p, _x(p / 100), _y(p / 100)) for p in (0, 20, 40, 60, 80, 100)],
    }
    return {"curves": curves, "figure": figure}


def _x(share: float) -> float:
    return PLOT_LEFT + PLOT_SIDE * share


def _y(share: float) -> float:
    return PLOT_TOP + PLOT_SIDE * (1 - share)


def _point(b: ReliabilityBin, most_videos: int) -> _Point:
    accuracy = proportion(round(b.accuracy * b.videos), b.videos)
    height = HISTOGRAM_HEIGHT * b.videos / most_videos
    return _Point(
        x=_x(b.confidence),
        y=_y(accuracy.value),
        y_low=_y(accuracy.low),
        y_high=_y(accuracy.high),
        bar_x=_x(b.lower) + 1,
        bar_y=HISTOGRAM_TOP + HISTOGRAM_HEIGHT - height,
        bar_width=_x(b.upper) - _x(b.lower) - 2,
        bar_height=height,
        text=f"{_count_text(b.videos, 'video')}, {percent(b.confidence, 1)} % sure, "
        f"{percent(accuracy.value, 1)} % right ({_interval(accuracy, 1)})",
    )


# --- confusions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ConfusedClass:
    """A row of the heat map.

    Attributes:
        name: true class.
        videos: number of its videos.
        cells: (videos, shade, whether they are right) for every class of the map; the shade counts
            from 1, and is 0 for no video.
        elsewhere: videos that were taken for classes outside the map.
    """

    name: str
    videos: int
    cells: tuple[tuple[int, int, bool], ...]
    elsewhere: int


def _confusions(evaluation: Evaluation) -> dict[str, Any]:
    confusion = evaluation.scores[evaluation.best_row].confusion
    classes = evaluation.classes
    videos = confusion.sum(1)
    chosen = confused_classes(confusion, CONFUSED_CLASSES_SHOWN)
    heat = []
    for truth in chosen:
        counts = confusion[truth, chosen].tolist()
        cells = tuple(
            (n, _shade(n / videos[truth]) if n else 0, predicted == truth)
            for predicted, n in zip(chosen, counts, strict=True)
        )
        total = int(videos[truth])
        heat.append(_ConfusedClass(classes[truth], total, cells, total - sum(counts)))

    def pair(c: Confusion) -> dict[str, Any]:
        return {
            "truth": classes[c.truth],
            "predicted": classes[c.predicted],
            "videos": c.videos,
            "of": int(videos[c.truth]),
        }

    lower = (0.0, *SHADES[:-1])
    return {
        "heat": heat,
        "shades": [
            f"{percent(low, 0)}\N{EN DASH}{percent(high, 0)} %"
            for low, high in zip(lower, SHADES, strict=True)
        ],
        "pairs": [pair(c) for c in evaluation.most_confused(PAIRS_SHOWN)],
    }


def _shade(share: float) -> int:
    return 1 + next(i for i, high in enumerate(SHADES) if share <= high)


def confused_classes(confusion: np.ndarray, count: int) -> list[int]:
    """The classes of the most confused pairs, in an order that leaves partners side by side.

    Pairs are taken by their mistakes in both directions until another would exceed ``count``
    classes. (The classes with the most mistakes of all would be the ones that are mistaken for a
    little of everything; a map of those is empty.)

    Args:
        confusion: int (K, K), rows are the true classes.
        count: most classes, at least 2.
    """
    both = np.triu(confusion + confusion.T, k=1)  # (K, K); each pair once
    chosen: list[int] = []
    for place in np.argsort(-both, axis=None, kind="stable"):
        first, second = divmod(int(place), len(both))
        missing = [c for c in (first, second) if c not in chosen]
        if not both[first, second] or len(chosen) + len(missing) > count:
            break
        if len(missing) == 1:
            partner = second if missing[0] == first else first
            chosen.insert(chosen.index(partner) + 1, missing[0])
        else:
            chosen += missing
    return chosen


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ClassRow:
    """A class with videos."""

    name: str
    videos: int
    right: int
    accuracy: Proportion


def _classes(evaluation: Evaluation) -> dict[str, Any]:
    """Classes with videos, the weakest first: there is something to look at."""
    rows = [
        _ClassRow(name, videos, round(share.value * videos), share)
        for name, (videos, share) in zip(
            evaluation.classes, evaluation.class_accuracies(), strict=True
        )
        if share is not None
    ]
    rows.sort(key=lambda row: (row.accuracy.value, -row.videos, row.name))
    return {"class_rows": rows, "empty_classes": len(evaluation.classes) - len(rows)}


# --- mistakes -------------------------------------------------------------------------------------


def _mistakes(evaluation: Evaluation, thumbnails: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def card(mistake: Mistake) -> dict[str, Any]:
        frame = thumbnails.get(mistake.video)
        return {
            "video": mistake.video,
            "truth": evaluation.classes[mistake.truth],
            "predicted": evaluation.classes[mistake.predicted],
            "sureness": _sureness(mistake.probability),
            "picture": None if frame is None else _thumbnail(frame),
        }

    scores = evaluation.scores[evaluation.best_row]
    cards = [card(m) for m in evaluation.surest_mistakes(MISTAKES_SHOWN)]
    return {
        "mistakes": cards,
        "mistake_count": scores.videos - int(scores.confusion.trace()),
        "picture_count": sum(c["picture"] is not None for c in cards),
    }


def _thumbnail(frame: np.ndarray) -> Picture:
    """A frame, uint8 (H, W, 3) RGB, made to fit and never enlarged."""
    height, width = frame.shape[:2]
    scale = min(THUMBNAIL_WIDTH / width, THUMBNAIL_HEIGHT / height, 1.0)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return embed_picture(frame, quality=THUMBNAIL_QUALITY, size=size)
