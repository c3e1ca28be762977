"""Windows -> segments: what happens when, and where nobody is sure.

    windows   | A     | A     | A  ? B| B     |   ?   |
    shots     |--------------------|------------------|      cut where the picture changes at once
    segments  | A                  | B        |uncertain|

A window's answer is its most probable class, if that has a probability of `SURE` or more; else it
is uncertain. A window that holds a cut saw two scenes: it is divided there, and each part takes the
answer of the window beside it, if that shows more of the same shot. Neighbouring parts of one
answer are one segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

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
class _Part:
    """A window, or what a cut leaves of it: when, and what answers for it."""

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
    groups: list[tuple[int | None, list[_Part]]] = []
    for part in _divide(windows):
        found = find_answer(part.window.logits)
        answer = found.index if found.is_sure else None
        before = groups[-1] if groups else None
        adjoins = before is not None and part.start_seconds <= before[1][-1].end_seconds
        if before is not None and adjoins and before[0] == answer:
            before[1].append(part)
        else:
            groups.append((answer, [part]))
    return tuple(_segment(answer, parts, classes) for answer, parts in groups)


def _divide(windows: Sequence[Window]) -> Iterator[_Part]:
    """The windows, those with cuts in parts, for which who shows most of their shot answers."""
    for i, window in enumerate(windows):
        spans = list(pairwise([window.start_seconds, *_inner_cuts(window), window.end_seconds]))
        for k, (start, end) in enumerate(spans):
            shown = [(end - start, window)]
            if len(spans) > 1 and k == 0 and i > 0 and _adjoin(windows[i - 1], window):
                before = windows[i - 1]
                since = [before.start_seconds, *_inner_cuts(before)][-1]
                shown.append((before.end_seconds - since, before))
            last = k == len(spans) - 1 and i + 1 < len(windows)
            if len(spans) > 1 and last and _adjoin(window, windows[i + 1]):
                after = windows[i + 1]
                until = [*_inner_cuts(after), after.end_seconds][0]
                shown.append((until - after.start_seconds, after))
            yield _Part(start, end, max(shown, key=lambda item: item[0])[1])


def _inner_cuts(window: Window) -> list[float]:
    """Those after its first frame."""
    return [cut for cut in window.cuts if cut > window.start_seconds]


def _adjoin(window: Window, after: Window) -> bool:
    """Whether the shot goes on from one window to the next."""
    return window.end_seconds >= after.start_seconds and after.start_seconds not in after.cuts


def _segment(answer: int | None, parts: Sequence[_Part], classes: Sequence[str]) -> Segment:
    span = {"start_seconds": parts[0].start_seconds, "end_seconds": parts[-1].end_seconds}
    if answer is None:
        return Segment(**span, name=None, index=None, probability=None)
    seen = {id(part.window): part.window for part in parts}.values()
    shares = [float(probabilities(window.logits)[answer]) for window in seen]
    return Segment(**span, name=classes[answer], index=answer, probability=float(np.mean(shares)))
