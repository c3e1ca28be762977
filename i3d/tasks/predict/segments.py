"""Windows -> segments: what happens when, and where nobody is sure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from i3d.metrics import probabilities
from i3d.tasks.predict.result import Segment, Window

# Probability of the best class from which a window has an answer: more than all others together.
SURE = 0.5


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
    """Merge neighbouring windows of one answer.

    A window's answer is its most probable class where that has a probability of `SURE` or more, and
    else that it is uncertain. Windows with time between them that nobody looked at are no
    neighbours.

    Args:
        windows: in the order of time.
        classes: names, in the order of the logits.

    Returns:
        In the order of time, without overlap: every window is in one of them.
    """
    groups: list[tuple[int | None, list[Window], list[float]]] = []
    for window in windows:
        found = find_answer(window.logits)
        answer = found.index if found.is_sure else None
        if groups and groups[-1][0] == answer:
            before = groups[-1][1][-1]
            if window.start_seconds <= before.end_seconds:
                groups[-1][1].append(window)
                groups[-1][2].append(found.probability)
                continue
        groups.append((answer, [window], [found.probability]))
    return tuple(
        Segment(
            start_seconds=members[0].start_seconds,
            end_seconds=members[-1].end_seconds,
            name=None if answer is None else classes[answer],
            index=answer,
            probability=None if answer is None else float(np.mean(shares)),
        )
        for answer, members, shares in groups
    )
