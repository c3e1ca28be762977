"""Worker processes for work that may kill them, with results in the order of the tasks.

`concurrent.futures` gives up the whole pool when one process dies; a job over ten thousand videos
must lose no more than the one that was too much. Results may carry open files, which travel as
descriptors of unlinked temporary files: nothing large is copied, and nothing stays on disk when
everything is killed.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import IO, Any, Generic, TypeVar

from i3d.workers import end_with_parent

Task = TypeVar("Task")

ATTEMPTS = 2  # a task whose worker died is tried once more, in a fresh process


@dataclass(frozen=True)
class Result:
    """What a worker gives back: any picklable value, and files to read from their start."""

    value: Any
    files: tuple[IO[bytes], ...] = ()

    def close(self) -> None:
        """Close the files, which frees their room on disk."""
        for file in self.files:
            file.close()


@dataclass(frozen=True)
class Died:
    """The worker process ended in the middle of a task, `ATTEMPTS` times."""

    exitcode: int | None

    def __str__(self) -> str:
        if self.exitcode is not None and self.exitcode < 0:
            name = signal.Signals(-self.exitcode).name
            hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
            return f"its worker was ended by {name}{hint}"
        return f"its worker ended with exit code {self.exitcode}"


@dataclass(frozen=True)
class Failed:
    """The work raised: an error that the caller must judge, with the worker's traceback."""

    error: Exception
    traceback: str


Outcome = Result | Died | Failed


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    task: int | None = None


@dataclass(eq=False)
class _Pending(Generic[Task]):
    task: Task
    attempts: int = 0
    outcome: Outcome | None = field(default=None)


class WorkerPool(Generic[Task]):
    """``workers`` processes that call ``work(task)``.

    Args:
        work: picklable function of one task that returns a `Result`.
        workers: number of processes.
        environment: variables to set in the workers before they import anything.
    """

    def __init__(
        self,
        work: Callable[[Task], Result],
        *,
        workers: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        # Every outcome that waits for its turn holds files; the usual limit is for other programs.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._work = work
        self._environment = environment or {}
        # spawn: forked children inherit locks and threads of fsspec, numba and OpenCV
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=_serve, args=(theirs, self._work, self._environment), daemon=True
        )
        saved = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)  # numba and OpenMP read them when they are imported
        # Ctrl-C reaches the whole process group, and the parent ends the workers: they inherit
        # that it is blocked, from before their first line of Python.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        theirs.close()
        return _Worker(process, ours)

    def map(self, tasks: Iterable[Task], *, ahead: int) -> Iterator[tuple[Task, Outcome]]:
        """(task, outcome) in the order of the tasks, which may finish in any order.

        At most ``ahead`` tasks are begun beyond the one whose outcome comes next.
        """
        source = enumerate(tasks)
        pending: dict[int, _Pending[Task]] = {}
        waiting: deque[int] = deque()  # numbers of begun tasks that no worker has
        exhausted = False
        head = 0
        while True:
            while not exhausted and len(pending) < ahead:
                item = next(source, None)
                if item is None:
                    exhausted = True
                else:
                    pending[item[0]] = _Pending(item[1])
                    waiting.append(item[0])
            for worker in self._workers:
                if waiting and worker.task is None:
                    self._send(worker, waiting, pending)
            if head in pending and (outcome := pending[head].outcome) is not None:
                yield pending.pop(head).task, outcome
                head += 1
            elif not pending:
                return
            else:
                self._receive(waiting, pending)

    def _send(
        self, worker: _Worker, waiting: deque[int], pending: dict[int, _Pending[Task]]
    ) -> None:
        number = waiting.popleft()
        worker.task = number
        pending[number].attempts += 1
        # A worker that died while idle is noticed, and its task taken back, by _receive.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(pending[number].task)

    def _receive(self, waiting: deque[int], pending: dict[int, _Pending[Task]]) -> None:
        """Wait until some worker answers or dies, and note what came of its task."""
        busy = {w.connection: w for w in self._workers if w.task is not None}
        for ready in connection.wait(list(busy)):
            assert isinstance(ready, Connection)
            worker = busy[ready]
            assert worker.task is not None
            try:
                outcome: Outcome = _read_outcome(ready)
            except (EOFError, ConnectionResetError):
                exitcode = self._replace(worker)
                number = worker.task
                if pending[number].attempts < ATTEMPTS:
                    waiting.appendleft(number)
                    continue
                outcome = Died(exitcode)
            pending[worker.task].outcome = outcome
            worker.task = None

    def _replace(self, worker: _Worker) -> int | None:
        worker.process.join()
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._start()
        return worker.process.exitcode

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def __enter__(self) -> "WorkerPool[Task]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_outcome(channel: Connection) -> Outcome:
    answer = channel.recv()
    if isinstance(answer, Failed):
        return answer
    value, num_files = answer
    descriptors = [reduction.recv_handle(channel) for _ in range(num_files)]
    return Result(value, tuple(os.fdopen(d, "rb") for d in descriptors))


def _serve(channel: Connection, work: Callable[[Any], Result], environment: dict[str, str]) -> None:
    """What a worker process does: tasks in, outcomes out, until the parent is gone."""
    os.environ.update(environment)
    end_with_parent()
    while True:
        try:
            task = channel.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            result = work(task)
        except Exception as error:
            channel.send(Failed(_picklable(error), traceback.format_exc()))
            continue
        channel.send((result.value, len(result.files)))
        for file in result.files:
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            reduction.send_handle(channel, file.fileno(), None)
        result.close()


def _picklable(error: Exception) -> Exception:
    try:
        reduction.ForkingPickler.dumps(error)
    except Exception:  # whatever a foreign exception's pickling raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def temporary_file() -> IO[bytes]:
    """A file without a name: its room is freed when the last process closes it or dies."""
    return tempfile.TemporaryFile()
