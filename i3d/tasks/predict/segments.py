"""Windows -> segments: what happens when, and where nobody is sure.

    windows   | A     | A     | A  ? B| B     |   ?   |
    shots     |--------------------|------------------|      cut where the picture changes at once
    segments  | A                  | B        |uncertain|

A window's answer is its most probable class, if that has a probability of `SURE` or more; else it
is uncertain. A window that holds a cut saw two scenes: it is divided there, and each part takes the
answer of the window beside it, if that shows more of the same shot. Neighbouring parts of one
answer are one segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, starmap

import cv2
import numpy as np

from i3d.metrics import probabilities
from i3d.tasks.predict.result import Segment, Window

# Probability of a window's best class from which it is an answer. Chosen on real clips that were
# joined end to end (docs/predict.md).
SURE = 0.7

# A cut is a change of the small picture by this many of 255 levels a pixel on average, and by so
# many times what is usual in its window. Between real clips joined end to end it was 73 to 101
# levels; where a camera was swung by hand, 46.
CUT_LEVELS = 50.0
CUT_RATIO = 4.0
_SMALL = 32  # pixels a side


def find_cuts(frames: np.ndarray, *, before: np.ndarray | None = None) -> tuple[int, ...]:
    """Numbers of the frames that begin another shot at once.

    Args:
        frames: uint8 (T, H, W, 3).
        before: the frame before the first; None: then the first begins no other shot.
    """
    small = [
        cv2.resize(frame, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA).astype(np.int16)
        for frame in chain(() if before is None else (before,), frames)
    ]
    changes = np.array([np.abs(b - a).mean() for a, b in pairwise(small)])
    if not len(changes):
        return ()
    least = max(CUT_LEVELS, CUT_RATIO * float(np.median(changes)))
    offset = 1 if before is None else 0
    return tuple(int(i) + offset for i in np.flatnonzero(changes >= least))


@dataclass(frozen=True)
class Part:
    """A window, or what cuts leave of it.

    Attributes:
        start_seconds: when it begins.
        end_seconds: when it ends.
        window: which answers for it: its own, or the one beside it.
    """

    start_seconds: float
    end_seconds: float
    window: Window


@dataclass(frozen=True)
class Answer:
    """What a window is called: its most probable class, of that probability in 0..1."""

    index: int
    probability: float

    @property
    def is_sure(self) -> bool:
        """Whether that is the answer; else it is that the window is uncertain."""
        return self.probability >= SURE


def find_answer(logits: np.ndarray) -> Answer:
    """The answer of a window's logits (num_classes,)."""
    shares = probabilities(logits)
    best = int(shares.argmax())
    return Answer(best, float(shares[best]))


def find_segments(windows: Sequence[Window], classes: Sequence[str]) -> tuple[Segment, ...]:
    """Merge neighbours of one answer.

    Windows with time between them that nobody looked at are no neighbours.

    Args:
        windows: in the order of time.
        classes: names, in the order of the logits.

    Returns:
        In the order of time, without overlap: every window is in them.
    """
    groups: list[tuple[int | None, list[Part]]] = []
    neighbours = zip(windows, (None, *windows[:-1]), (*windows[1:], None), strict=True)
    for part in chain.from_iterable(starmap(divide, neighbours)):
        found = find_answer(part.window.logits)
        answer = found.index if found.is_sure else None
        before = groups[-1] if groups else None
        adjoins = before is not None and part.start_seconds <= before[1][-1].end_seconds
        if before is not None and adjoins and before[0] == answer:
            before[1].append(part)
        else:
            groups.append((answer, [part]))
    return tuple(_segment(answer, parts, classes) for answer, parts in groups)


def divide(window: Window, before: Window | None, after: Window | None) -> list[Part]:
    """A window's parts, from cut to cut; for each answers the window that shows most of its shot.

    Args:
        window: one.
        before: the one that was looked at before it, or None.
        after: the one that was looked at after it, or None.
    """
    cuts = inner_cuts(window)
    if not cuts:
        return [Part(window.start_seconds, window.end_seconds, window)]
    spans = list(pairwise([window.start_seconds, *cuts, window.end_seconds]))
    answers = [window] * len(spans)
    if before is not None and _adjoin(before, window):
        shown = before.end_seconds - max([before.start_seconds, *inner_cuts(before)])
        if shown > spans[0][1] - spans[0][0]:
            answers[0] = before
    if after is not None and _adjoin(window, after):
        shown = min([*inner_cuts(after), after.end_seconds]) - after.start_seconds
        if shown > spans[-1][1] - spans[-1][0]:
            answers[-1] = after
    return [Part(*span, answer) for span, answer in zip(spans, answers, strict=True)]


def inner_cuts(window: Window) -> list[float]:
    """Those of its cuts that are after its first frame."""
    return [cut for cut in window.cuts if cut > window.start_seconds]


def _adjoin(window: Window, after: Window) -> bool:
    """Whether the shot goes on from one window to the next."""
    return window.end_seconds >= after.start_seconds and after.start_seconds not in after.cuts


def _segment(answer: int | None, parts: Sequence[Part], classes: Sequence[str]) -> Segment:
    span = {"start_seconds": parts[0].start_seconds, "end_seconds": parts[-1].end_seconds}
    if answer is None:
        return Segment(**span, name=None, index=None, probability=None)
    seen = {id(part.window): part.window for part in parts}.values()
    shares = [float(probabilities(window.logits)[answer]) for window in seen]
    return Segment(**span, name=classes[answer], index=answer, probability=float(np.mean(shares)))
