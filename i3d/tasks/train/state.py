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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch

from i3d import files
from i3d.errors import CheckpointError, DatasetError, StorageError
from i3d.models.checkpoints import BEST, LAST
from i3d.models.format import NetworkConfig
from i3d.records import pick
from i3d.tasks.train.events import Events

KIND = "i3d train 1"
STATE = "state.pt"
LOG = "log.csv"
VALIDATION = "validation.csv"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
FILES = (STATE, LAST, BEST, LOG, VALIDATION, CURVES)


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: steps done since it began.
        epoch: that step's.
        step_in_epoch: its number there.
    """

    step: int
    epoch: int
    step_in_epoch: int

    def __post_init__(self) -> None:
        if min(self.step, self.epoch, self.step_in_epoch) < 0:
            raise DatasetError(f"its position is {self}")


@dataclass
class Totals:
    """Sums since the last row of the log, over all processes.

    Attributes:
        loss: times clips.
        right: clips whose most likely class is right.
        clips: how many they were.
    """

    loss: float = 0.0
    right: int = 0
    clips: int = 0


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
        """What `state` gave.

        Raises:
            ValueError: rows of something else.
        """
        return cls(_rows(LogRow, state["log"]), _rows(ValidationRow, state["validation"]))


def _rows(cls: Any, rows: Any) -> list[Any]:
    hints = list(get_type_hints(cls).values())
    if not isinstance(rows, list) or any([type(x) for x in row] != hints for row in rows):
        raise ValueError(f"its history is no table of {', '.join(cls._fields)}")
    return [cls(*row) for row in rows]


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
        folder = files.local_path(files.join(output, TENSORBOARD)) if tensorboard else None
        self._events = None if folder is None else Events(folder, step=step)
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
            files.append(path, table((), [row]).partition(b"\n")[2])
        scalars = {
            "train/loss": row.loss,
            "train/top1": row.top1,
            "train/learning_rate": row.learning_rate,
            "train/gradient_norm": row.gradient_norm,
            "train/clips_per_second": clips_per_second,
        }
        self._show(scalars, row.step)

    def add_validation(self, row: ValidationRow) -> None:
        """A row of the validations."""
        self.history.validation.append(row)
        self.rewrite()
        scalars = {
            "validation/loss": row.loss,
            "validation/top1": row.top1,
            "validation/top5": row.top5,
        }
        self._show(scalars, row.step)

    def _show(self, scalars: Mapping[str, float], step: int) -> None:
        if self._events is not None:
            self._events.add(scalars, step=step)


def has_state(output: files.Location) -> bool:
    """Whether a run has saved its state there."""
    return files.exists(files.join(output, STATE))


def write_state(output: files.Location, state: Mapping[str, Any]) -> None:
    """Write the state, atomically; equal states are equal bytes."""

    def fill(path: Path) -> None:
        # given the path, torch.save writes its random name, too
        with files.open_for_library(path) as file:
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
    with refuse_odd_state(output), files.open_read(name) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != KIND:
        raise CheckpointError(f"{name}: not a state that this version of i3d train writes")
    with refuse_odd_state(output):
        for key in ("settings", "division"):
            if not isinstance(state[key], dict) or not all(isinstance(k, str) for k in state[key]):
                raise ValueError(f"its {key} are no settings")
        if type(state["new_head"]) is not bool:
            raise ValueError("it does not say whether the classifier is new")
        pick(NetworkConfig, state["config"])
        pick(Position, state["position"])
        pick(Totals, state["totals"])
        History.from_state(state["history"])
    return state


@contextmanager
def refuse_odd_state(output: files.Location) -> Iterator[None]:
    """Say of what is raised while a state is read or put in its place that it is none.

    Raises:
        CheckpointError: names the file and the remedy.
        StorageError: the disk or server fails.
    """
    name = files.join(output, STATE)
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, CheckpointError, StorageError):
        raise
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch.load and load_state_dict raise a dozen types
        files.blame_storage(name, error)
        hint = "" if isinstance(error, zipfile.BadZipFile) else f" ({files.explain(error)[:200]})"
        raise CheckpointError(
            f"{name}: not the state of a training run{hint}; restore it, or begin anew in another "
            "folder"
        ) from error
