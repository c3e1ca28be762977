"""What came of a run, for a person and for a machine."""

import math
from dataclasses import dataclass, fields
from typing import Any

from i3d import files
from i3d.models.checkpoints import BEST, LAST
from i3d.presets import Stream
from i3d.tasks.train.state import LogRow, ValidationRow


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        output: folder of the run, path or URL.
        stream: what the network sees.
        classes: how many there are.
        videos: how many were trained on.
        steps: optimizer steps, those before a resume counted.
        epochs: epochs begun.
        clips_per_step: clips of all processes.
        log: the last row of the log.
        validation: the last validation; None without one.
        best: the validation of ``best.safetensors``; None without one.
        seconds: time of this process's steps, validation and saving not counted.
        clips_per_second: clips of all processes over that time.
        device: where each process computed.
        processes: how many there were.
    """

    output: str
    stream: Stream
    classes: int
    videos: int
    steps: int
    epochs: int
    clips_per_step: int
    log: LogRow | None
    validation: ValidationRow | None
    best: ValidationRow | None
    seconds: float
    clips_per_second: float
    device: str
    processes: int

    @property
    def last_checkpoint(self) -> str:
        """Path or URL of the network after the last step."""
        return files.join(self.output, LAST)

    @property
    def best_checkpoint(self) -> str | None:
        """Path or URL of the network of the best validation."""
        return None if self.best is None else files.join(self.output, BEST)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; shares are in 0..1."""
        rows = {"log": self.log, "validation": self.validation, "best": self.best}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in rows}
        return {
            **plain,
            **{name: None if row is None else _finite(row) for name, row in rows.items()},
            "last_checkpoint": self.last_checkpoint,
            "best_checkpoint": self.best_checkpoint,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps of {self.clips_per_step} clips, {self.epochs} epochs of "
            f"{self.videos} videos, {self.classes} classes"
        ]
        if self.log is not None:
            lines.append(f"training: loss {self.log.loss:.4f}, top-1 {100 * self.log.top1:.2f} %")
        for name, row, path in (
            ("last", self.validation, self.last_checkpoint),
            ("best", self.best, self.best_checkpoint),
        ):
            measured = ""
            if row is not None:
                measured = (
                    f"  validation after epoch {row.epoch}: loss {row.loss:.4f}, "
                    f"top-1 {100 * row.top1:.2f} %, top-5 {100 * row.top5:.2f} % "
                    f"of {row.videos} videos"
                )
            if path is not None:
                lines.append(f"{name}: {path}{measured}")
        lines.append(
            f"{self.clips_per_second:.3g} clips/s over {self.seconds:.1f} s: {self.device}, "
            f"processes: {self.processes}"
        )
        return "\n".join(lines)


def _finite(row: LogRow | ValidationRow) -> dict[str, Any]:
    """A row as JSON values: None for a gradient that overflowed at fp16, whose step is left out."""
    return {k: v if math.isfinite(v) else None for k, v in row._asdict().items()}
