"""The page of a demo: the videos and their flow, the table, and what happens when.

It plays the ``.mp4`` files beside it and holds all else itself.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from i3d.clips import dequantize_flow
from i3d.data.shards import Sample, open_dataset
from i3d.demo.actions import ACTIONS, REVERSED
from i3d.demo.result import Demo
from i3d.demo.sequence import action_at
from i3d.flow.color import flow_to_color
from i3d.metrics import probabilities
from i3d.presets import find_preset
from i3d.report.drawing import svg_text
from i3d.report.page import Picture, embed_picture, write_html
from i3d.report.timeline import Truth
from i3d.tasks.evaluate.result import LABELS, Evaluation
from i3d.video import VideoReader

FLOW_PICTURES = 3  # of a video
FLOW_QUANTILE = 0.995  # of the lengths: what is longer is darker, so that one bad pixel dims none
WHEEL_PIXELS = 120
JPEG_QUALITY = 88


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
        windows=_windows(demo),
        timeline=_timeline(demo),
        sequence=_address(demo, demo.folder.sequence),
        poster=_poster(demo.folder.sequence),
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


# --- timeline -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """What is said of a window of the longer video, and what is done in it."""

    start_seconds: float
    end_seconds: float
    truth: str
    answer: str
    probability: float

    @property
    def right(self) -> bool:
        return self.answer == self.truth


def _windows(demo: Demo) -> list[_Window]:
    windows = []
    for window in demo.timeline.windows:
        shares = probabilities(window.logits)
        best = int(shares.argmax())
        start, end = window.start_seconds, window.end_seconds
        truth = action_at(demo.truth, (start + end) / 2)
        answer = demo.timeline.classes[best]
        windows.append(_Window(start, end, truth, answer, float(shares[best])))
    return windows


def _timeline(demo: Demo) -> Markup:
    """The picture of what happens when, with what is done outlined."""
    classes = demo.timeline.classes
    truth = [
        Truth(classes.index(part.action), part.start_seconds, part.end_seconds)
        for part in demo.truth
    ]
    return Markup(svg_text(demo.timeline.draw_timeline(truth=truth)))


def _poster(video: Path) -> Picture:
    """The first frame of a video."""
    with VideoReader(video, short_side=None) as reader:
        return embed_picture(next(iter(reader)), quality=JPEG_QUALITY)
