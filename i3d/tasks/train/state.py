"""What a training run keeps in its folder, and how it goes on from it.

    state.pt              everything: weights, optimizer, schedule, scaler, average, random numbers,
                          position in the data, settings, and the history of the curves
    last.safetensors      the network, as i3d.load reads it; the average where there is one
    best.safetensors      that of the best validation
    log.csv               a row every few steps
    validation.csv        a row a validation
    tensorboard/          the same, live
    curves.png            at the end

The history is part of the state, and the two tables are written from it: after a crash they hold
neither more nor less than an undisturbed run's.
"""

import csv
import io
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from i3d import files
from i3d.errors import CheckpointError

KIND = "i3d train 1"
STATE = "state.pt"
LAST = "last.safetensors"
BEST = "best.safetensors"
LOG = "log.csv"
VALIDATION = "validation.csv"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
FILES = (STATE, LAST, BEST, LOG, VALIDATION, CURVES)


class LogRow(NamedTuple):
    """The steps since the row before it.

    Attributes:
        step: the last of them, from 1.
        epoch: where that step lies, from 1.
        loss: mean over their clips.
        top1: share of their clips that were right, in training mode.
        learning_rate: the last step's peak rate, without a group's factor.
        gradient_norm: norm of the last step's gradients, before clipping.
    """

    step: int
    epoch: int
    loss: float
    top1: float
    learning_rate: float
    gradient_norm: float


class ValidationRow(NamedTuple):
    """A validation; shares are in 0..1.

    Attributes:
        step: the last one before it, from 1.
        epoch: where that step lies, from 1.
        videos: how many were evaluated.
        skipped: how many were not.
        loss: mean cross entropy.
        top1: share of the videos whose most likely class is right.
        top5: share of the videos with the right class among the five most likely.
        mean_class: mean of the classes' top-1.
    """

    step: int
    epoch: int
    videos: int
    skipped: int
    loss: float
    top1: float
    top5: float
    mean_class: float


@dataclass
class History:
    """The curves so far.

    Attributes:
        log: rows of ``log.csv``.
        validation: rows of ``validation.csv``.
    """

    log: list[LogRow] = field(default_factory=list)
    validation: list[ValidationRow] = field(default_factory=list)

    @property
    def best(self) -> ValidationRow | None:
        """The highest top-1; of equal ones the earliest."""
        return max(self.validation, key=lambda row: row.top1, default=None)

    def validated(self, step: int) -> ValidationRow | None:
        """The validation after that step; None if there was none."""
        return next((row for row in self.validation if row.step == step), None)

    def state(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "log": [tuple(row) for row in self.log],
            "validation": [tuple(row) for row in self.validation],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "History":
        """What `state` gave."""
        return cls(
            [LogRow(*row) for row in state["log"]],
            [ValidationRow(*row) for row in state["validation"]],
        )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """CSV in which every number reads back as it was."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([repr(value) for value in row] for row in rows)
    return text.getvalue().encode("ascii")


class Logs:
    """The tables and TensorBoard of a run, written by process 0.

    Args:
        output: the run's folder.
        history: what rows are added to.
        tensorboard: whether to write events too.
        step: the one after which the run goes on.
    """

    def __init__(
        self, output: files.Location, history: History, *, tensorboard: bool, step: int
    ) -> None:
        self.output, self.history = os.fspath(output), history
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = files.join(output, TENSORBOARD)
            # Events after this step are of a run that died; TensorBoard drops them.
            self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)
        self.rewrite()

    def rewrite(self) -> None:
        """Both tables, from the history."""
        for name, columns, rows in (
            (LOG, LogRow._fields, self.history.log),
            (VALIDATION, ValidationRow._fields, self.history.validation),
        ):
            files.write(files.join(self.output, name), table(columns, rows))

    def add(self, row: LogRow, *, clips_per_second: float) -> None:
        """A row of the log: at once in a local file, elsewhere at the next `rewrite`."""
        self.history.log.append(row)
        path = files.local_path(files.join(self.output, LOG))
        if path is not None:
            with path.open("ab") as file:
                file.write(table((), [row]).partition(b"\n")[2])
        scalars = {
            "train/loss": row.loss,
            "train/top1": row.top1,
            "train/learning_rate": row.learning_rate,
            "train/gradient_norm": row.gradient_norm,
            "train/clips_per_second": clips_per_second,
        }
        self._events(scalars, row.step)

    def add_validation(self, row: ValidationRow) -> None:
        """A row of the validations."""
        self.history.validation.append(row)
        self.rewrite()
        scalars = {
            "validation/loss": row.loss,
            "validation/top1": row.top1,
            "validation/top5": row.top5,
        }
        self._events(scalars, row.step)

    def _events(self, scalars: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Finish the events."""
        if self._writer is not None:
            self._writer.close()


def has_state(output: files.Location) -> bool:
    """Whether a run has saved its state there."""
    return files.exists(files.join(output, STATE))


def write_state(output: files.Location, state: Mapping[str, Any]) -> None:
    """Write the state, atomically; equal states are equal bytes."""

    def fill(path: Path) -> None:
        with path.open("wb") as file:  # given the path, torch.save writes its random name, too
            torch.save(_apart({"format": KIND, **state}), file)

    files.write_by(files.join(output, STATE), fill)


def _apart(value: Any) -> Any:
    """The same, where nothing but equal texts is one object: pickle writes an object once.

    So the bytes depend on the values alone, not on where they came from.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {_apart(key): _apart(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_apart(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def read_state(output: files.Location) -> dict[str, Any]:
    """Read what `write_state` wrote; no pickle is loaded.

    Raises:
        CheckpointError: it is damaged or of another program.
    """
    name = files.join(output, STATE)
    try:
        with files.open_read(name) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises what its parsers raise: a dozen types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = "" if isinstance(error, zipfile.BadZipFile) else f" ({reason[:200]})"
        raise CheckpointError(
            f"{name}: not the state of a training run{hint}; restore it, or begin anew in another "
            "folder"
        ) from error
    if not isinstance(state, dict) or state.get("format") != KIND:
        raise CheckpointError(f"{name}: not a state that this version of i3d train writes")
    return state
