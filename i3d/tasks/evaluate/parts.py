"""What one process of an evaluation has done so far, on disk: what a crash does not cost.

NAME.parts/part-RANK-NUMBER.npz   videos, logits and reasons; each appears whole, and is sealed
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from i3d import files
from i3d.errors import DatasetError, UsageError
from i3d.presets import STREAMS, Stream
from i3d.records import (
    REDO,
    check_archive,
    differences,
    parse,
    plain,
    refuse_other_settings,
    seal_archive,
)
from i3d.tasks.evaluate.predictions import KIND, About

# Bounds for files that come from elsewhere, far above what is written.
MAX_REASON_BYTES = 1 << 13
MAX_SMALL_BYTES = 1 << 24  # of the settings, with the names of the classes


@dataclass(frozen=True)
class Plan:
    """What the numbers of videos mean.

    Attributes:
        count: of videos.
        sha256: of their keys and labels, in their order.
    """

    count: int
    sha256: str

    @classmethod
    def of(cls, keys: Sequence[str], labels: Sequence[int | None]) -> Self:
        """The plan of these videos."""
        lines = (f"{key}\t{label}\n" for key, label in zip(keys, labels, strict=True))
        return cls(len(keys), hashlib.sha256("".join(lines).encode()).hexdigest())


@dataclass(frozen=True)
class Part:
    """Some videos' outcomes: logits, or the reason why there are none.

    Attributes:
        videos: numbers in the plan, with logits.
        logits: stream -> float32 (n, num_classes).
        skipped: (number in the plan, reason).
        damaged: (number in the plan, what was lost) of videos with logits.
    """

    videos: tuple[int, ...]
    logits: dict[Stream, np.ndarray]
    skipped: tuple[tuple[int, str], ...]
    damaged: tuple[tuple[int, str], ...] = ()

    def to_bytes(self, about: About, plan: Plan) -> bytes:
        """As a sealed ``.npz``."""
        texts = {
            "reasons": [reason for _, reason in self.skipped],
            "damages": [damage for _, damage in self.damaged],
        }
        arrays: dict[str, Any] = {
            "about": np.frombuffer(_settings(about), np.uint8),
            "plan": np.frombuffer(plan.sha256.encode(), np.uint8),
            "videos": np.array(self.videos, np.int64),
            "skipped": np.array([i for i, _ in self.skipped], np.int64),
            "damaged": np.array([i for i, _ in self.damaged], np.int64),
            **{
                name: np.frombuffer(json.dumps(lines, allow_nan=False).encode(), np.uint8)
                for name, lines in texts.items()
            },
            **{f"{stream}_logits": values for stream, values in self.logits.items()},
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        seal_archive(buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, about: About, plan: Plan, where: str) -> Self:
        """Read what `to_bytes` wrote for the same settings and videos.

        Raises:
            UsageError: it was written with other settings or for other videos; the message names
                the difference.
            DatasetError: damaged, or edited.
        """
        check_archive(io.BytesIO(data), where)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                before = parse(KIND, About, arrays["about"].tobytes(), where)
                refuse_other_settings(where, differences(before.settings, about.settings))
                if arrays["plan"].tobytes() != plan.sha256.encode():
                    raise UsageError(
                        f"{where} was written for other videos or labels than there are now; use "
                        "the same, or delete its folder to begin again"
                    )
                videos = arrays["videos"].tolist()
                streams: list[Stream] = [s for s in STREAMS if s in about.checkpoints]
                logits = {s: arrays[f"{s}_logits"].astype(np.float32) for s in streams}
                skipped, damaged = (
                    tuple(
                        (i, str(text))
                        for i, text in zip(
                            arrays[numbers].tolist(),
                            json.loads(arrays[texts].tobytes()),
                            strict=True,
                        )
                    )
                    for numbers, texts in (("skipped", "reasons"), ("damaged", "damages"))
                )
            if any(v.shape != (len(videos), len(about.classes)) for v in logits.values()):
                raise ValueError("logits of another shape")
            numbers = [*videos, *(number for number, _ in skipped)]
            if len(set(numbers)) < len(numbers):
                raise ValueError("a video is there twice")
            if wrong := [n for n in numbers if type(n) is not int or not 0 <= n < plan.count]:
                raise ValueError(f"video {wrong[0]!r:.50} of {plan.count}")
        except UsageError:
            raise
        except Exception as error:  # numpy and zipfile raise a dozen kinds over damaged bytes
            raise DatasetError(f"{where} is damaged ({error}); {REDO}") from error
        return cls(tuple(videos), logits, skipped, damaged)


def _settings(about: About) -> bytes:
    unfinished = replace(about, found=0, skipped=())
    return json.dumps({"format": KIND, **plain(unfinished)}, allow_nan=False).encode("ascii")


class Parts:
    """The folder of parts beside a predictions file: ``NAME.parts/part-RANK-NUMBER.npz``.

    Each appears whole. Ranks do not read each other's while they run. Of two runs at once the first
    to end removes the folder; what the other writes after that, it removes itself.
    """

    def __init__(self, predictions: files.Location, about: About, plan: Plan, *, rank: int) -> None:
        self.folder = f"{predictions}.parts"
        self.about, self.plan, self.rank = about, plan, rank
        self._number = 0

    def _names(self) -> list[str]:
        try:
            names = files.names_in(self.folder)
        except FileNotFoundError:
            return []
        return sorted(n for n in names if n.startswith("part-") and n.endswith(".npz"))

    def read(self) -> list[Part]:
        """All that any process has written.

        Raises:
            UsageError: of another run.
            DatasetError: a part is damaged; the message names it.
        """
        parts = []
        each = 4 * len(self.about.classes) * len(self.about.checkpoints) + MAX_REASON_BYTES
        most = MAX_SMALL_BYTES + self.plan.count * each
        for name in self._names():
            location = files.join(self.folder, name)
            try:
                with files.open_read(location) as file:
                    data = files.read_bounded(file, most + 1)
            except FileNotFoundError:  # another run has just ended
                continue
            if len(data) > most:
                raise DatasetError(f"{location} has more than {most:,} bytes; {REDO}")
            parts.append(Part.from_bytes(data, self.about, self.plan, location))
            rank, number = name.removesuffix(".npz").split("-")[1:3]
            if int(rank) == self.rank:
                self._number = max(self._number, int(number) + 1)
        return parts

    def refuse(self) -> None:
        """Raise a UsageError if there are parts: another run's work is neither mixed nor lost."""
        if self._names():
            raise UsageError(
                f"{self.folder} holds an unfinished evaluation; leave --no-resume out to go on "
                "with it, or delete it to begin again"
            )

    def write(self, part: Part) -> None:
        """Add one."""
        name = f"part-{self.rank:05d}-{self._number:05d}.npz"
        self._number += 1
        files.write(files.join(self.folder, name), part.to_bytes(self.about, self.plan))

    def remove(self) -> None:
        """Delete all of them and the folder; called when the predictions are written."""
        files.remove_folder(self.folder)
