"""One round: a command, disturbed and run again, and what must hold at its end."""

import fnmatch
import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from campaigns.chaos.inputs import BEGIN, RELEASED, START, Command
from campaigns.chaos.running import LOOK_SECONDS, Moment, Running, listing, plain
from campaigns.chaos.server import UnreliableServer

from i3d.files import final_name

# Folders in TMPDIR that nobody removes after SIGKILL: for workers' sockets, and for `open_arrays`.
NAMED = ("pymp-", "i3d-")
HANGS_SECONDS = 60.0  # and as much again as ten undisturbed runs take


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run did.

    Attributes:
        folder: its output.
        files: name -> hash of what is promised of each file.
        largest: bytes of the largest one.
        total: bytes of all.
        lines: what it said on standard error, without numbers and folders.
        seconds: how long it took.
        changes: how often its output was seen to change.
    """

    folder: Path
    files: dict[str, str]
    largest: int
    total: int
    lines: set[str]
    seconds: float
    changes: int


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of one that is being written."""
    return final_name(path.name) is not None or path.suffix == ".tmp"


def special_files(folder: str, names: list[str]) -> list[str]:
    """What is neither file nor folder, such as a socket, and cannot be copied."""
    paths = [Path(folder, name) for name in names]
    return [path.name for path in paths if not path.is_file() and not path.is_dir()]


def hashes(folder: Path, command: Command) -> dict[str, str]:
    """Name -> hash of what is promised of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch.fnmatch(name, p) for p in command.ignored):
            data = command.compared.get(name, bytes)(path.read_bytes())
            found[name] = hashlib.sha256(data).hexdigest()
    return found


class Trial:
    """A command in a folder of its own: ``output/``, ``tmp/`` and ``logs/``.

    Args:
        command: what is run.
        folder: does not exist yet.
        inputs: folder or URL.
        record: of the released network that the inputs stand for.
        server: of the inputs.
        rng: makes all choices.
        reference: the undisturbed run; None: this is to be it.

    Attributes:
        done: what was done, in words.
        problems: what does not hold.
        at_end: what is undone last of all.
    """

    def __init__(
        self,
        command: Command,
        folder: Path,
        inputs: str,
        record: str,
        server: UnreliableServer,
        rng: random.Random,
        reference: Reference | None = None,
    ) -> None:
        self.command, self.folder, self.inputs, self.record = command, folder, inputs, record
        self.server, self.rng, self._reference = server, rng, reference
        self.output, self.tmp, self.logs = (folder / n for n in ("output", "tmp", "logs"))
        for path in (self.output, self.tmp, self.logs):
            path.mkdir(parents=True)
        self.done: list[str] = []
        self.problems: list[str] = []
        self._runs: list[Running] = []
        self._left_by_kill: set[Path] = set()
        self.at_end = ExitStack()

    @property
    def reference(self) -> Reference:
        """The undisturbed run."""
        assert self._reference is not None
        return self._reference

    @property
    def words(self) -> list[str]:
        """The command's, after ``i3d``."""
        return self.command.words.format(inputs=self.inputs, output=self.output).split()

    @property
    def program(self) -> list[str]:
        """What is run with these words."""
        if not self.command.before:
            return [sys.executable, "-m", "i3d"]
        before = self.command.before.format(name=RELEASED, record=self.record)
        return [sys.executable, "-c", BEGIN + before + START]

    def start(self, *, file_limit: int | None = None, obey_modes: bool = False) -> Running:
        """Begin a run; see `Running`."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("I3D_")},
            "I3D_CACHE": str(self.output / "cache"),
            "TMPDIR": str(self.tmp),
            # other programs' caches, which stay
            "MPLCONFIGDIR": str(self.folder.parent / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder.parent / "torch"),
            "OMP_NUM_THREADS": "1",  # with a given number of threads the CPU's results are the same
            "PYTHONFAULTHANDLER": "1",
        }
        run = Running(
            [*self.program, *self.words],
            environment,
            self.logs / str(len(self._runs)),
            file_limit=file_limit,
            obey_modes=obey_modes,
        )
        self._runs.append(run)
        return run

    def moment(self) -> Moment:
        """One of the run: half of them where it writes."""
        rng, reference = self.rng, self.reference
        if reference.changes and rng.random() < 0.5:
            return Moment(rng.randint(1, reference.changes), rng.choice([0.0, rng.uniform(0, 0.1)]))
        return Moment(None, rng.uniform(0, 1.1 * reference.seconds))

    def finish(
        self,
        run: Running,
        what: str,
        *,
        codes: Collection[int],
        clean: bool = True,
        worker_may_not_start: bool = False,
    ) -> int | None:
        """Wait for a run's end and look at what it leaves.

        Args:
            run: a run that was begun here.
            what: what was done to it.
            codes: exit codes that are right; negative for signals.
            clean: whether no temporary file may be left.
            worker_may_not_start: whether Python may tell of a worker process that it could not
                start, before any code of ours runs in it.
        """
        patience = HANGS_SECONDS + 10 * self.reference.seconds
        number = self._runs.index(run)
        problems = []
        if not run.wait(patience):
            problems.append(f"hangs: it did not end in {patience:.0f} s")
        elif run.code not in codes:
            problems.append(f"exit code {run.code}, not one of {sorted(codes)}")
        problems += [
            f"a process stays: {pid} {line[:160]}" for pid, line in run.wait_for_quiet().items()
        ]
        problems += run.complaints(
            self.reference.lines,
            json_expected=self.command.prints_json,
            worker_may_not_start=worker_may_not_start,
        )
        if run.code == -signal.SIGKILL:
            self._left_by_kill.update(p for p in self.tmp.iterdir() if p.name.startswith(NAMED))
        if clean:
            problems += [f"left {name}" for name in self.temporary_files()]
        self.done.append(f"{what}: {run.code}")
        self.problems += [f"run {number} ({what}): {problem}" for problem in problems]
        return run.code

    def temporary_files(self) -> list[str]:
        """What should be gone when nothing runs."""
        paths = [path for path in self.output.rglob("*") if is_temporary(path)]
        paths += [path for path in self.tmp.iterdir() if path not in self._left_by_kill]
        return [str(path.relative_to(self.folder)) for path in paths]

    def run_undisturbed(self) -> None:
        """Run the command to its end and compare with the reference."""
        self.finish(self.start(), "again", codes=[0])
        found, wanted = hashes(self.output, self.command), self.reference.files
        for name in sorted(found.keys() | wanted.keys()):
            if name not in found:
                self.problems.append(f"{name} is missing")
            elif name not in wanted:
                self.problems.append(f"{name} is there, and not after an undisturbed run")
            elif found[name] != wanted[name]:
                self.problems.append(f"{name} differs from an undisturbed run's")

    def become_reference(self) -> Reference:
        """Run the command once, undisturbed, and see what it does.

        Raises:
            RuntimeError: it fails.
        """
        run = self.start()
        changes, before = 0, listing(self.output)
        while run.code is None:
            now = listing(self.output)
            changes, before = changes + (now != before), now
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - run.began
        if run.code != 0 or run.wait_for_quiet() or self.temporary_files():
            said = run.stderr.read_text(errors="replace")
            left = self.temporary_files()
            raise RuntimeError(f"{' '.join(self.words)}: exit code {run.code}, left {left}\n{said}")
        sizes = [path.stat().st_size for path in self.output.rglob("*") if path.is_file()]
        return Reference(
            self.output,
            hashes(self.output, self.command),
            max(sizes),
            sum(sizes),
            {plain(line) for line in run.stderr.read_text().splitlines()},
            seconds,
            changes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            if run.code is None:
                run.end()
        self.at_end.close()

    def keep(self, place: Path, text: str) -> None:
        """Move all of it to a folder of findings, with the undisturbed run's output beside it."""
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder, place, ignore=special_files)
        shutil.copytree(self.reference.folder, place / "undisturbed")
        (place / "finding.txt").write_text(text)
