"""Accuracies that others reported for the released checkpoints, to stand beside a user's."""

from collections.abc import Mapping
from dataclasses import dataclass

from i3d.classes import known_name
from i3d.models.released import CHECKPOINTS, README_PROTOCOL
from i3d.tasks.evaluate.predictions import About

# The original validation set of Kinetics-400, as its authors counted it.
KINETICS_400_VALIDATION_VIDEOS = 19_906
CHAINER_PROTOCOL = (
    "about 90 % of the original validation set, 251 frames, single centre crop; the Chainer program"
)
OPENVINO_PROTOCOL = "Kinetics-400 validation set, 79 frames; OpenVINO's model zoo"


@dataclass(frozen=True)
class Published:
    """One reported result.

    Attributes:
        row: ``rgb``, ``flow`` or ``two_stream``.
        checkpoints: names of the networks.
        top1: share in 0..1.
        top5: share in 0..1; None where it was not reported.
        protocol: the videos, how they were looked at, and who reports it.
    """

    row: str
    checkpoints: tuple[str, ...]
    top1: float
    top5: float | None
    protocol: str


def _table() -> tuple[Published, ...]:
    rows = []
    for c in CHECKPOINTS.values():
        top5 = None if c.top5 is None else c.top5 / 100
        rows.append(Published(c.stream, (c.name,), c.top1 / 100, top5, c.protocol))
    imagenet = "rgb_imagenet_kinetics400", "flow_imagenet_kinetics400"
    scratch = "rgb_scratch_kinetics400", "flow_scratch_kinetics400"
    rows += [
        Published("two_stream", imagenet, 0.742, 0.913, README_PROTOCOL),
        Published("two_stream", scratch, 0.716, 0.900, README_PROTOCOL),
        Published("rgb", imagenet[:1], 0.698, None, CHAINER_PROTOCOL),
        Published("flow", imagenet[1:], 0.622, None, CHAINER_PROTOCOL),
        Published("two_stream", imagenet, 0.730, None, CHAINER_PROTOCOL),
        Published("rgb", scratch[:1], 0.658, None, CHAINER_PROTOCOL),
        Published("flow", scratch[1:], 0.589, None, CHAINER_PROTOCOL),
        Published("two_stream", scratch, 0.695, None, CHAINER_PROTOCOL),
        Published("rgb", ("rgb_scratch_kinetics600",), 0.684, None, CHAINER_PROTOCOL),
        Published("rgb", imagenet[:1], 0.6596, 0.8601, OPENVINO_PROTOCOL),
    ]
    return tuple(rows)


PUBLISHED = _table()


def known_checkpoints(about: About) -> Mapping[str, str]:
    """Stream -> name in `CHECKPOINTS`, of the networks that are released ones."""
    by_source = {c.source: c.name for c in CHECKPOINTS.values()}
    names = {}
    for stream, used in about.checkpoints.items():
        name = used.name if used.name in CHECKPOINTS else by_source.get(used.source)
        if name is not None:
            names[stream] = name
    return names


def published_results(about: About) -> tuple[Published, ...]:
    """What was reported for these networks; empty unless networks and classes are Kinetics'."""
    if known_name(about.classes) is None:
        return ()
    names = set(known_checkpoints(about).values())
    return tuple(p for p in PUBLISHED if names.issuperset(p.checkpoints))


def protocol_notes(about: About, *, evaluated: int) -> tuple[str, ...]:
    """How this run differs from what was published, a sentence each."""
    if not published_results(about):
        return ()
    notes = [
        "The released networks' own figures are for the Kinetics test set, whose labels are not "
        f"public; yours are for {about.dataset!r}."
    ]
    if known_name(about.classes) == "kinetics400":
        share = evaluated / KINETICS_400_VALIDATION_VIDEOS
        notes.append(
            f"You evaluated {evaluated:,} videos; the original validation set of Kinetics-400 had "
            f"{KINETICS_400_VALIDATION_VIDEOS:,} ({share:.1%})."
        )
    views = about.views
    if (views.frames, views.clips, views.crops) != (250, 1, 1):
        notes.append(
            f"The published figures are for one centre crop of 250 frames; yours for {views.clips} "
            f"x {views.frames} frames, crops: {views.crops}."
        )
    if about.precision != "fp32":
        notes.append(f"You computed in {about.precision}.")
    return tuple(notes)
