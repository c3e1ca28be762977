"""Which frames of a video a protocol looks at: the rule for clips, and for videos too short.

Frames are told by their numbers, so that a video is read no further than it must be. Its length is
asked for only where the rule needs it: to know it, a file is decoded to its end.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from i3d.errors import DatasetError
from i3d.tasks.fvd.protocols import Protocol

MAX_CLIPS = 1 << 20  # of one video


def cut_one(key: str, count: Callable[[], int], protocol: Protocol) -> list[int]:
    """The frames of a video's first clip, or of its random one.

    Args:
        key: the video's, which with the seed decides about the random clip.
        count: gives the number of frames.
        protocol: says how.

    Returns:
        one number each for the clip's frames; of the first clip they may lie beyond the end of a
        video that is too short and to be refused.

    Raises:
        DatasetError: the video is too short, where its length was asked for.
    """
    if protocol.clips == "first" and protocol.short == "refuse":
        return _clip(protocol.start, protocol)
    total = count()
    if total < protocol.frames_needed:
        return cut_short(total, protocol)
    last = total - protocol.span
    if protocol.clips == "first" or last == protocol.start:
        return _clip(protocol.start, protocol)
    return _clip(protocol.start + _draw(key, protocol.seed, last - protocol.start + 1), protocol)


def cut_every(total: int, protocol: Protocol) -> Iterator[list[int]]:
    """The frames of every clip of a video of so many frames, without overlap.

    Raises:
        DatasetError: the video is too short, or has more than a million clips.
    """
    if total < protocol.frames_needed:
        yield cut_short(total, protocol)
        return
    clips = (total - protocol.start) // protocol.span
    if clips > MAX_CLIPS:
        raise DatasetError(f"{clips} clips of one video; at most {MAX_CLIPS} are taken")
    for i in range(clips):
        yield _clip(protocol.start + i * protocol.span, protocol)


def cut_short(total: int, protocol: Protocol) -> list[int]:
    """What a video is cut to that has fewer frames than are needed.

    Raises:
        DatasetError: it is to be refused, or nothing is left behind the given frames.
    """
    left = total - protocol.start
    if protocol.short == "refuse" or left < 1:
        raise DatasetError(explain_short(total, protocol))
    places = [number - protocol.start for number in _clip(protocol.start, protocol)]
    if protocol.short == "loop":
        return [protocol.start + place % left for place in places]
    return [protocol.start + place * left // protocol.span for place in places]


def explain_short(total: int, protocol: Protocol) -> str:
    """Why a video of so many frames gives no clip, and what can be done."""
    parts = [f"{protocol.frames} frames"]
    if protocol.stride > 1:
        parts.append(f"at stride {protocol.stride}")
    if protocol.start:
        parts.append(f"after the {protocol.start} given ones")
    return (
        f"{total} frames; {' '.join(parts)} need {protocol.frames_needed} "
        "(--short loop or stretch would repeat frames)"
    )


def _clip(start: int, protocol: Protocol) -> list[int]:
    return [start + i * protocol.stride for i in range(protocol.frames)]


def _draw(key: str, seed: int, count: int) -> int:
    """A number below ``count`` that depends on the video's name and the seed alone.

    So it is the same in every process and beside any other videos.
    """
    digest = hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()
    return int(np.random.default_rng(int.from_bytes(digest[:16], "little")).integers(count))
