"""What a command shows while it works: progress on standard error, never on standard output.

On a terminal it is a bar with rate and time left; elsewhere a plain line every ten seconds.

Class names, file names and reasons are other people's text. All of it goes through this module,
where what would steer a terminal or begin a line of its own is shown escaped: ``\\x1b[2J``.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from i3d import files
from i3d.errors import STEERING, hide_secrets, shown

LOG_SECONDS = 10.0


def visible(text: str) -> str:
    """One line that shows all that is in a text but secrets: see `i3d.errors.shown`."""
    return shown(text).replace("\n", "\\n")


def _visible_names(value: Any) -> Any:
    """A result whose texts are `visible`: a line break in a name is none in what is made of it."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, tuple | list):
        items = [_visible_names(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {
            visible(k) if isinstance(k, str) else k: _visible_names(v) for k, v in value.items()
        }
    if is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for field in fields(value):
            object.__setattr__(changed, field.name, _visible_names(getattr(value, field.name)))
        return changed
    return value


class Outcome(Protocol):
    """The result of a task: text for a person, a dict for a machine."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""


def json_text(outcome: Outcome) -> str:
    """A result as JSON, which knows neither NaN nor infinity; without the passwords of URLs."""
    text = json.dumps(outcome.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    return _escape_json(hide_secrets(text)) + "\n"


def _escape_json(text: str) -> str:
    """The same JSON, in which what would steer a terminal is escaped as JSON escapes it."""
    lines = (
        STEERING.sub(lambda m: json.dumps(m[0], allow_nan=False)[1:-1], line)
        for line in text.split("\n")
    )
    return "\n".join(lines)


def show(outcome: Outcome, *, as_json: bool, output: files.Location | None = None) -> None:
    """Print a result on standard output, and write it to a file.

    On the screen first: a file that cannot be written costs no figures.

    Args:
        outcome: what a task found.
        as_json: print JSON and nothing else.
        output: file for the JSON; path or URL.
    """
    if as_json:
        _write(sys.stdout, json_text(outcome))
    else:
        for line in str(_visible_names(outcome)).split("\n"):
            _write(sys.stdout, f"{visible(line)}\n")
    if output is not None:
        files.write(output, json_text(outcome).encode())


def say(line: str) -> None:
    """Tell the user something, on standard error."""
    _write(sys.stderr, f"{visible(line)}\n")


def show_line(line: str) -> None:
    """Print a line of a result on standard output."""
    _write(sys.stdout, f"{visible(line)}\n")


def show_text(text: str) -> None:
    """Print part of a result on standard output, whose line ends are its format's, such as CSV.

    Its secrets are the caller's to hide: where one ends in a line of cells, nobody can tell here.
    """
    _write(sys.stdout, STEERING.sub(lambda found: ascii(found[0])[1:-1], text))


def _write(stream: Any, text: str) -> None:
    """Write at once; to whom nobody listens any more, such as ``| head -1``, nothing.

    The job goes on: what it was asked to write to files is still wanted.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # What is buffered is written when Python ends, and would fail again.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except UnicodeEncodeError:  # a terminal that is not UTF-8's
        encoding = stream.encoding or "ascii"
        _write(stream, text.encode(encoding, "backslashreplace").decode(encoding))
    except OSError:  # it is a file, on a full disk
        if stream is not sys.stderr:  # where only what is said is lost
            with files.naming("standard output"):
                raise


def choose_teller(progress: bool, *, first: bool) -> Callable[[str], None] | None:
    """Who tells the user what was understood: `say` on process 0, nobody on the others.

    Without progress it is None: a library's caller gets Python's warnings.
    """
    if not progress:
        return None
    return say if first else lambda _: None


def say_written(*locations: files.Location | None) -> None:
    """Name the files that were asked for and are there now."""
    for location in locations:
        if location is not None:
            say(f"wrote {location}")


class Bar(Protocol):
    """A running progress display."""

    def update(self, position: float, *, total: float | None = None, note: str = "") -> None:
        """Move to ``position`` of ``total`` units, with a short note such as a running score."""


@contextmanager
def progress_bar(
    title: str | None, *, total: float | None = None, unit: str = "it"
) -> Iterator[Bar]:
    """Show progress until the block ends.

    Args:
        title: what is being done; None shows nothing.
        total: units in all, where known.
        unit: what is counted, such as ``"videos"``; ``"B"`` prints as MB.
    """
    if title is None:
        yield _Silent()
    elif sys.stderr.isatty():
        with _terminal_bar(title, total, unit) as bar:
            yield bar
    else:
        log = _Log(title, total, unit)
        yield log
        log.finish()


class _Silent:
    def update(self, position: float, *, total: float | None = None, note: str = "") -> None:
        pass


@contextmanager
def _terminal_bar(title: str, total: float | None, unit: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (  # no text of others is markup
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    console = Console(stderr=True)
    # What is printed on standard output goes above the bar where that is the terminal too; a file
    # or pipe must get it itself.
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(visible(title), total=total, counts="", note="")
        start = time.monotonic()
        first: list[float] = []

        class Terminal:
            def update(
                self, position: float, *, total: float | None = None, note: str = ""
            ) -> None:
                if not first:
                    first.append(position)
                rate = (position - first[0]) / max(time.monotonic() - start, 1e-9)
                total = total if total is not None else progress.tasks[task].total
                progress.update(
                    task,
                    completed=position,
                    total=total,
                    counts=_counts(position, total, rate, unit),
                    note=visible(note),
                )

        yield Terminal()


class _Log:
    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.start = self.last = time.monotonic()
        self.first: float | None = None
        self.position, self.printed = 0.0, 0.0
        self.note = ""

    def update(self, position: float, *, total: float | None = None, note: str = "") -> None:
        self.first = position if self.first is None else self.first
        self.total = total if total is not None else self.total
        self.position, self.note = position, note
        if time.monotonic() - self.last >= LOG_SECONDS:
            self._line()

    def _line(self) -> None:
        self.last, self.printed = time.monotonic(), self.position
        rate = (self.position - (self.first or 0)) / max(self.last - self.start, 1e-9)
        left = ""
        if self.total is not None and rate > 0:
            left = f", {(self.total - self.position) / rate:.0f} s left"
        counts = _counts(self.position, self.total, rate, self.unit)
        say(f"{self.title}: {counts}{left} {self.note}".rstrip())

    def finish(self) -> None:
        if self.last > self.start and self.position != self.printed:
            self._line()  # something was printed, so say how it ended


def _counts(position: float, total: float | None, rate: float, unit: str) -> str:
    if unit == "B":
        position, rate, unit = position / 1e6, rate / 1e6, "MB"
        total = None if total is None else total / 1e6
        shown = f"{position:.1f}" + ("" if total is None else f"/{total:.1f}")
    else:
        shown = f"{position:g}" + ("" if total is None else f"/{total:g}")
    return f"{shown} {unit}, {rate:.3g} {unit}/s"
