"""What is done to a command while it runs; the table is at the end."""

import contextlib
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaigns.chaos.inputs import Command
from campaigns.chaos.running import send
from campaigns.chaos.trial import Trial
from support.disks import PAGE, lacks_mounts, mount_small, resize, unmount

# As the shell has it where Python was not yet there to handle the signal.
INTERRUPTED = frozenset([0, 130, -signal.SIGINT])
TERMINATED = frozenset([0, 130, 143, -signal.SIGTERM])
FAILED = frozenset([0, 1])  # it may be done before it meets the trouble


@dataclass(frozen=True)
class Disturbance:
    """Trouble for a run.

    Attributes:
        disturb: runs the command in trouble, and checks what it then says and leaves.
        web: the inputs come from a server.
        needs_workers: it is for commands with worker processes.
        lacking: why it cannot be done on this machine; None where it can.
    """

    disturb: Callable[[Trial], None]
    web: bool = False
    needs_workers: bool = False
    lacking: Callable[[], str | None] = lambda: None

    def suits(self, command: Command) -> bool:
        """Whether it can be done to a command."""
        return command.has_workers or not self.needs_workers


# --- signals --------------------------------------------------------------------------------------


def kill(trial: Trial) -> None:
    """SIGKILL to all of it or, as the kernel does for lack of memory, to one process."""
    for _ in range(trial.rng.choice([1, 1, 2, 3])):
        run, moment = trial.start(), trial.moment()
        alone = trial.rng.random() < 0.5
        if run.wait_for(moment, trial.output):
            send(run.process.pid, signal.SIGKILL) if alone else run.signal_group(signal.SIGKILL)
        what = f"SIGKILL to {'it' if alone else 'its group'} at {moment}"
        if trial.finish(run, what, codes=[0, -signal.SIGKILL], clean=False) == 0:
            return


def terminate(trial: Trial) -> None:
    """SIGTERM to it, or to all of its group as some schedulers do."""
    run, moment = trial.start(), trial.moment()
    alone = trial.rng.random() < 0.5
    if run.wait_for(moment, trial.output):
        send(run.process.pid, signal.SIGTERM) if alone else run.signal_group(signal.SIGTERM)
    what = f"SIGTERM to {'it' if alone else 'its group'} at {moment}"
    trial.finish(run, what, codes=TERMINATED)


def interrupt(trial: Trial) -> None:
    """Ctrl-C."""
    run, moment = trial.start(), trial.moment()
    if run.wait_for(moment, trial.output):
        run.signal_group(signal.SIGINT)
    trial.finish(run, f"Ctrl-C at {moment}", codes=INTERRUPTED)


# --- disks ----------------------------------------------------------------------------------------


def limit_files(trial: Trial) -> None:
    """No file may be longer than a limit, which most write errors of a full disk stand for."""
    limit = trial.rng.randrange(trial.reference.largest)
    run = trial.start(file_limit=limit)
    trial.finish(run, f"files of at most {limit} bytes", codes=FAILED)


def fill(trial: Trial, folder: Path) -> None:
    """Run with less room in a folder than it takes, then make room."""
    size = PAGE * (1 + trial.rng.randrange(max(1, trial.reference.total // PAGE)))
    mount_small(folder, size)
    trial.at_end.callback(unmount, folder)
    trial.finish(trial.start(), f"{folder.name}/ on a disk of {size} bytes", codes=FAILED)
    resize(folder, 1 << 30)


def forbid_writing(trial: Trial) -> None:
    """The output's folders may not be written, from the beginning or after a killed run."""
    if trial.rng.random() < 0.5:
        run, moment = trial.start(), trial.moment()
        if run.wait_for(moment, trial.output):
            run.signal_group(signal.SIGKILL)
        codes = [0, -signal.SIGKILL]
        trial.finish(run, f"SIGKILL to its group at {moment}", codes=codes, clean=False)
    folders = [trial.output, *(path for path in trial.output.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        run = trial.start(obey_modes=True)
        trial.finish(run, "read-only output", codes=[0, 1, 2], clean=False)
    finally:
        for path in folders:
            path.chmod(0o755)


def remove_output(trial: Trial) -> None:
    """Its output folder is removed while it runs."""
    run, moment = trial.start(), trial.moment()
    if run.wait_for(moment, trial.output):
        shutil.rmtree(trial.output, ignore_errors=True)
    trial.finish(run, f"output removed at {moment}", codes=FAILED)


# --- processes ------------------------------------------------------------------------------------


def start_twice(trial: Trial) -> None:
    """The same command at once, by mistake: the work is done twice."""
    first = trial.start()
    pause = trial.rng.choice([0.0, trial.rng.uniform(0, trial.reference.seconds)])
    time.sleep(pause)
    second = trial.start()
    trial.finish(first, "the first of two", codes=[0], clean=False)
    trial.finish(second, f"the second of two, {pause:.3f} s later", codes=[0])


def kill_worker(trial: Trial) -> None:
    """A worker process is killed, as the kernel does for lack of memory."""
    run, pause = trial.start(), trial.rng.uniform(0, trial.reference.seconds / 2)
    if run.wait_for_worker():
        time.sleep(pause)
        if workers := run.workers():
            send(trial.rng.choice(workers), signal.SIGKILL)
    trial.finish(run, f"SIGKILL to a worker {pause:.3f} s after the first", codes=FAILED)


def starve_worker(trial: Trial) -> None:
    """A worker process gets hardly more memory than it has, so that its next large array fails."""
    run, pause = trial.start(), trial.rng.uniform(0, trial.reference.seconds / 2)
    more = trial.rng.choice([0, 1 << 16, 1 << 20, 1 << 22])
    if run.wait_for_worker():
        time.sleep(pause)
        if workers := run.workers():
            with contextlib.suppress(OSError):  # it has ended
                limit_memory(trial.rng.choice(workers), more)
    what = f"a worker has {more} bytes more {pause:.3f} s after the first"
    trial.finish(run, what, codes=FAILED, worker_may_not_start=True)


def limit_memory(pid: int, more: int) -> None:
    """Bound a process's address space to what it has and so many bytes more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * PAGE + more
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


# --- servers --------------------------------------------------------------------------------------


def fail_requests(trial: Trial) -> None:
    """One request in ten to the server of the inputs fails, and is made again."""
    server = trial.server
    with server.failing(trial.rng.getrandbits(32)):
        trial.finish(trial.start(), "a server that fails", codes=[0])
    trial.done[-1] += f" ({server.failed} of {server.requests} requests failed)"


DISTURBANCES = {
    "kill": Disturbance(kill),
    "terminate": Disturbance(terminate),
    "interrupt": Disturbance(interrupt),
    "file-limit": Disturbance(limit_files),
    "full-disk": Disturbance(lambda trial: fill(trial, trial.output), lacking=lacks_mounts),
    "full-tmp": Disturbance(lambda trial: fill(trial, trial.tmp), lacking=lacks_mounts),
    "read-only": Disturbance(forbid_writing),
    "removed": Disturbance(remove_output),
    "twice": Disturbance(start_twice),
    "worker-killed": Disturbance(kill_worker, needs_workers=True),
    "worker-memory": Disturbance(starve_worker, needs_workers=True),
    "server": Disturbance(fail_requests, web=True),
}
