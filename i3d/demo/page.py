"""The page of a demo: the videos and their flow, the table, and what happens when.

It plays the ``.mp4`` files beside it and holds all else itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from i3d.clips import dequantize_flow
from i3d.data.shards import Sample, open_dataset
from i3d.demo.actions import ACTIONS, REVERSED
from i3d.demo.result import Demo
from i3d.demo.sequence import action_at
from i3d.flow.color import flow_to_color
from i3d.metrics import probabilities
from i3d.presets import find_preset
from i3d.report.page import Picture, embed_picture, percent, write_html
from i3d.tasks.evaluate.result import LABELS, Evaluation

FLOW_PICTURES = 3  # of a video
FLOW_QUANTILE = 0.995  # of the lengths: what is longer is darker, so that one bad pixel dims none
WHEEL_PIXELS = 120
JPEG_QUALITY = 88

# The timeline, in the units of its SVG: thumbnails above a row for each action.
NAMES_WIDTH = 104.0
PLOT_WIDTH = 720.0
THUMBNAIL_HEIGHT = 46.0
ROW_HEIGHT = 24.0
AXIS_HEIGHT = 34.0
TICK_SECONDS = 2
LEAST_SHOWN = 0.01  # probability; a cell of less is left empty


def write_index(demo: Demo) -> None:
    """Write ``index.html``, atomically; videos and shards are read from the folder."""
    write_html(
        demo.folder.page,
        "i3d.demo",
        "demo",
        demo=demo,
        evaluation=demo.evaluation,
        labels=LABELS,
        actions=ACTIONS,
        pairs=REVERSED,
        released=demo.released,
        networks=demo.evaluation.predictions.about.checkpoints,
        samples=_samples(demo),
        wheel=_wheel(),
        plot=_plot(demo),
        sequence=_address(demo, demo.folder.sequence),
        poster=embed_picture(demo.timeline.windows[0].frame, quality=JPEG_QUALITY),
        evaluation_page=_address(demo, demo.folder.evaluation_page),
    )


def _address(demo: Demo, path: Path) -> str:
    """Address of a file of the folder, relative to the page."""
    return quote(path.relative_to(demo.folder.root).as_posix())


# --- samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """What a row of the table says of a video."""

    row: str
    action: str
    probability: float
    right: bool


@dataclass(frozen=True)
class _Sample:
    """A video of the grid."""

    action: str
    address: str
    poster: Picture
    flows: tuple[tuple[float, Picture], ...]  # seconds of the video -> its flow
    max_pixels: float  # the length of flow that has the full colour
    answers: tuple[_Answer, ...]


def _samples(demo: Demo) -> list[_Sample]:
    dataset = open_dataset(demo.folder.shards)
    videos = demo.evaluation.predictions.videos
    samples = []
    for action in ACTIONS:
        path = demo.folder.sample(action)
        key = demo.folder.key(path)
        sample = dataset.read_sample(key)
        fps = find_preset(dataset.manifest.preset).fps
        flows, max_pixels = _flow_pictures(sample, fps)
        middle = sample.info.length("rgb") // 2
        samples.append(
            _Sample(
                action=action,
                address=_address(demo, path),
                poster=embed_picture(sample.frames(middle, middle + 1)[0], quality=JPEG_QUALITY),
                flows=flows,
                max_pixels=max_pixels,
                answers=_answers(demo.evaluation, videos.index(key), action),
            )
        )
    return samples


def _answers(evaluation: Evaluation, video: int, action: str) -> tuple[_Answer, ...]:
    answers = []
    for row, logits in evaluation.logits.items():
        shares = probabilities(logits[video])
        best = int(shares.argmax())
        name = evaluation.classes[best]
        answers.append(_Answer(row, name, float(shares[best]), name == action))
    return tuple(answers)


def _flow_pictures(sample: Sample, fps: int) -> tuple[tuple[tuple[float, Picture], ...], float]:
    """The liveliest flow of each part of a video, and the length that has the full colour."""
    flow = dequantize_flow(sample.stored_flow())  # (T - 1, H, W, 2)
    length = np.linalg.norm(flow, axis=-1)  # (T - 1, H, W)
    # The person is in the middle; what moves at the sides is the camera, or a guess of the flow's
    # about a plain wall.
    sixth = length.shape[2] // 6
    left, right = length[..., :sixth], length[..., -sixth:]
    middle = length[..., 2 * sixth : -2 * sixth]
    lively = middle.mean((1, 2)) - (left.mean((1, 2)) + right.mean((1, 2))) / 2
    parts = np.array_split(lively, FLOW_PICTURES)
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    chosen = [int(start + part.argmax()) for start, part in zip(starts, parts, strict=True)]
    longest = np.quantile(length[chosen], FLOW_QUANTILE)
    max_pixels = max(1.0, float(longest))
    pictures = flow_to_color(flow[chosen], max_pixels=max_pixels)
    flows = tuple(
        (i / fps, embed_picture(picture, quality=JPEG_QUALITY))
        for i, picture in zip(chosen, pictures, strict=True)
    )
    return flows, max_pixels


def _wheel() -> Picture:
    """The key to the flow's colours: the colour of every vector from the middle."""
    middle = (WHEEL_PIXELS - 1) / 2
    y, x = np.mgrid[:WHEEL_PIXELS, :WHEEL_PIXELS] - middle
    flow = np.stack([x, y], -1).astype(np.float32)
    flow[np.hypot(x, y) > middle] = 0
    return embed_picture(flow_to_color(flow), quality=JPEG_QUALITY)


# --- timeline: a row an action, a column a window, shaded by the probability ----------------------


@dataclass(frozen=True)
class _Box:
    """A rectangle of the plot."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class _Cell(_Box):
    """The probability of an action in a window."""

    probability: float
    best: bool
    text: str


@dataclass(frozen=True)
class _Column(_Box):
    """A window of the video: its picture, and what is said of it."""

    picture: Picture
    start_seconds: float
    end_seconds: float
    truth: str
    answer: str
    probability: float


def _plot(demo: Demo) -> dict[str, Any]:
    windows, classes = demo.timeline.windows, demo.timeline.classes
    shares = np.stack([probabilities(window.logits) for window in windows])  # (windows, classes)
    best = [classes[i] for i in shares.argmax(1)]
    rows = list(dict.fromkeys([segment.action for segment in demo.truth] + best))
    last = windows[-1].end_seconds
    scale = PLOT_WIDTH / last
    top = THUMBNAIL_HEIGHT + 8

    columns, cells = [], []
    for window, answer, share in zip(windows, best, shares, strict=True):
        start, end = window.start_seconds, window.end_seconds
        x, width = NAMES_WIDTH + scale * start, scale * (end - start)
        truth = action_at(demo.truth, (start + end) / 2)
        columns.append(
            _Column(
                *(x, 0.0, width, THUMBNAIL_HEIGHT),
                picture=_middle(window.frame, width / THUMBNAIL_HEIGHT),
                start_seconds=start,
                end_seconds=end,
                truth=truth,
                answer=answer,
                probability=float(share.max()),
            )
        )
        for row, name in enumerate(rows):
            p = float(share[classes.index(name)])
            if p >= LEAST_SHOWN:
                text = f"{start:.2f}\N{EN DASH}{end:.2f} s: {name}, {percent(p, 0)} %"
                box = x, top + ROW_HEIGHT * row, width, ROW_HEIGHT
                cells.append(_Cell(*box, probability=p, best=name == answer, text=text))
    truths = [
        _Box(
            NAMES_WIDTH + scale * segment.start_seconds,
            top + ROW_HEIGHT * rows.index(segment.action),
            scale * (segment.end_seconds - segment.start_seconds),
            ROW_HEIGHT,
        )
        for segment in demo.truth
    ]
    bottom = top + ROW_HEIGHT * len(rows)
    right = sum(column.answer == column.truth for column in columns)
    return {
        "columns": columns,
        "cells": cells,
        "truths": truths,
        "names": [(name, top + ROW_HEIGHT * (i + 0.5)) for i, name in enumerate(rows)],
        "lines": [top + ROW_HEIGHT * i for i in range(len(rows) + 1)],
        "ticks": [(t, NAMES_WIDTH + scale * t) for t in range(0, int(last) + 1, TICK_SECONDS)],
        "left": NAMES_WIDTH,
        "right": NAMES_WIDTH + PLOT_WIDTH,
        "bottom": bottom,
        "width": NAMES_WIDTH + PLOT_WIDTH + 12,
        "height": bottom + AXIS_HEIGHT,
        "scale": scale,
        "right_windows": right,
    }


def _middle(frame: np.ndarray, aspect: float) -> Picture:
    """The middle of a frame, as high as it is and as wide as fits."""
    height, width = frame.shape[:2]
    keep = min(width, round(height * aspect))
    left = (width - keep) // 2
    size = round(2 * THUMBNAIL_HEIGHT * keep / height), round(2 * THUMBNAIL_HEIGHT)
    return embed_picture(frame[:, left : left + keep], quality=JPEG_QUALITY, size=size)
