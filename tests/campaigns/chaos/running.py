"""One run of a command: a session and a mark of its own, so that all that comes of it is found."""

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "I3D_CHAOS_RUN"  # in the environment of every process of a run
LOOK_SECONDS = 0.002
QUIET_SECONDS = 30.0  # for processes to end after their parent, on a busy machine
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1

# What a run may say besides its errors: as in the undisturbed run, or about its progress.
PROGRESS = re.compile(
    r"[\w -]+( \(process .*\)| of all processes)?: [\d./]+ (videos|clips|shards|MB)"
)
# What it may say once for each shard, or part of an evaluation.
REPEATED = re.compile(r"shard \d+ is given up: |.*it is tried again with the next part$")
# What no user should see, whatever happens.
INTERNAL = re.compile(
    r"Traceback|^\s+File \"|Exception ignored|Fatal Python|resource_tracker|leaked|terminate called"
    r"|core dumped|KeyboardInterrupt|UserWarning|ResourceWarning"
)
# Python's words when a worker process cannot import itself or what it is to run, or when PyTorch's
# loader cannot start its thread there.
NO_START = re.compile(
    r"^(?:Process ForkServerProcess-\d+:\n)?Traceback \(most recent call last\):\n"
    r"(?: .*\n)*?(?:  File \"<string>\", line 1, in <module>|.*pickle\.load\(from_parent\)"
    r"|    data_queue\.put\(\(idx, data\)\))\n"
    r"(?: .*\n)*\S.*\n",
    re.MULTILINE,
)
MOST_LINES = 2  # of an error


@dataclass(frozen=True)
class Moment:
    """When to strike: after so many changes of the files, or seconds; and a little later."""

    changes: int | None
    seconds: float

    def __str__(self) -> str:
        after = f"{self.seconds:.3f} s"
        return after if self.changes is None else f"{after} after change {self.changes}"


def listing(*folders: Path) -> frozenset[tuple[str, int]]:
    """Name and size of every file below some folders, which may change meanwhile."""
    found = set()
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    found.add((f"{parent}/{name}", Path(parent, name).stat().st_size))
                except OSError:
                    continue
    return frozenset(found)


class Running:
    """A command at work.

    Args:
        arguments: the program and its arguments.
        environment: all of it.
        logs: beginning of the names of the files for both outputs.
        file_limit: bytes that no file may pass, as on a disk that fills up.
        obey_modes: let files' modes bind root, too.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        logs: Path,
        *,
        file_limit: int | None = None,
        obey_modes: bool = False,
    ) -> None:
        self.stdout, self.stderr = logs.with_suffix(".out"), logs.with_suffix(".err")
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            # whoever runs this in the background has SIGINT ignored, which is inherited
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if obey_modes:
                libc.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)

        self.began = time.monotonic()
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                env={**environment, name: value},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def code(self) -> int | None:
        """Exit code as a shell has it, but negative where a signal ended it; None: at work."""
        return self.process.poll()

    def members(self) -> dict[int, str]:
        """Process id -> command line of all that came of this run and is there."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                        words = (folder / "cmdline").read_bytes().split(b"\0")
                        found[int(folder.name)] = b" ".join(words).decode(errors="replace")
                except OSError:
                    continue
        return found

    def workers(self) -> list[int]:
        """Worker processes: of `WorkerPool`, and of PyTorch's loader, which a server forks."""
        members = self.members()
        servers = {pid for pid, line in members.items() if "multiprocessing.forkserver" in line}
        return sorted(
            pid
            for pid, line in members.items()
            if "multiprocessing.spawn" in line or parent_of(pid) in servers
        )

    def wait_for(self, moment: Moment, *folders: Path) -> bool:
        """Wait; False: the run ended before."""
        if moment.changes:
            changes, before = 0, listing(*folders)
            while changes < moment.changes:
                time.sleep(LOOK_SECONDS)
                if self.code is not None:
                    return False
                now = listing(*folders)
                changes, before = changes + (now != before), now
        try:
            self.process.wait(moment.seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def wait_for_worker(self) -> list[int]:
        """Its workers, when there are some; [] where it ended before."""
        while self.code is None:
            if workers := self.workers():
                return workers
            time.sleep(0.05)
        return []

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False: it hangs, and what each process was at is in its log."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end(signal.SIGABRT)  # faulthandler writes where it was
            return False
        return True

    def signal_group(self, signal_number: int) -> None:
        """As Ctrl-C does: to every process of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal_number)

    def wait_for_quiet(self) -> dict[int, str]:
        """After its end: the processes that stay, and are ended now."""
        end = time.monotonic() + QUIET_SECONDS
        while members := self.members():
            if time.monotonic() > end:
                self.end(signal.SIGKILL)
                return members
            time.sleep(0.05)
        return {}

    def end(self, signal_number: int = signal.SIGKILL) -> None:
        """End all of its processes."""
        for pid in self.members():
            send(pid, signal_number)
        try:
            self.process.wait(QUIET_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def complaints(
        self, known: set[str], *, json_expected: bool, worker_may_not_start: bool = False
    ) -> Iterator[str]:
        """What is wrong with what it printed.

        Args:
            known: plain lines of standard error that are no matter.
            json_expected: whether standard output holds one JSON document, if anything.
            worker_may_not_start: whether Python may tell of a worker that it could not start.
        """
        text, code = self.stderr.read_text(errors="replace"), self.code
        if worker_may_not_start:
            text = NO_START.sub("", text)
        internal = [line for line in text.splitlines() if INTERNAL.search(line)]
        if internal:
            yield f"standard error has {internal[0].strip()!r}"
        said = [
            line
            for line in text.splitlines()
            if line.strip()
            and plain(line) not in known
            and not PROGRESS.match(line)
            and not REPEATED.match(line)
        ]
        if len(said) > MOST_LINES and not internal:
            yield f"{len(said)} lines on standard error, {MOST_LINES} are the most: {said[:4]}"
        if code is not None and code > 0 and not text.strip():
            yield f"exit code {code} without a word"
        printed = self.stdout.read_text(errors="replace")
        if json_expected and (printed or code == 0):
            try:
                json.loads(printed)
            except ValueError as error:
                yield f"standard output is no JSON ({error}): {printed[:200]!r}"


def plain(line: str) -> str:
    """A line without what differs from run to run: numbers, and folders."""
    return re.sub(r"[\d.]+", "#", re.sub(r"\S*/", "/", line)).strip()


def parent_of(pid: int) -> int:
    """0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def send(pid: int, signal_number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)
