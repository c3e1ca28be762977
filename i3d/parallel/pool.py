"""Worker processes for work that may kill them, with results in the order of the tasks.

`concurrent.futures` gives up the whole pool when one process dies; a job over ten thousand videos
must lose no more than the one that was too much. Results may carry open files, which travel as
descriptors of unlinked temporary files: nothing large is copied, and nothing stays on disk when
everything is killed.

Work may have several stages, of which one can have processes of its own:

    tasks --work--> results --stage 1, a process with the GPU--> results --stage 2, the workers-->

Each task goes through all of them; while one is in a stage, others are in other stages.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import IO, Any, Generic, TypeVar

from i3d.parallel.process import begin_work, workers_start

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


@dataclass(frozen=True)
class Stage:
    """What is done with the results of the stage before.

    Attributes:
        work: picklable function of a list of results, at most ``together`` of them, whose files
            stand at their start; it returns as many results, which may carry the same files on.
        own: number of processes that do nothing else; 0: the pool's workers do it.
        together: results that one call gets at most.
    """

    work: Callable[[list[Result]], list[Result]]
    own: int = 0
    together: int = 1


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    stages: tuple[int, ...]  # that it does, the last first: what is begun is finished first
    tasks: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Pending(Generic[Task]):
    task: Task
    stage: int = 0
    result: Result | None = None  # of the stage before; its files stay open while it may be needed
    attempts: int = 0  # at this stage
    outcome: Outcome | None = field(default=None)


class WorkerPool(Generic[Task]):
    """``workers`` processes that call ``work(task)``, and those of the stages that follow.

    Args:
        work: picklable function of one task that returns a `Result`.
        workers: number of processes.
        environment: variables to set in the workers before they import anything.
        then: stages that the results go through.
    """

    def __init__(
        self,
        work: Callable[[Task], Result],
        *,
        workers: int,
        environment: dict[str, str] | None = None,
        then: Sequence[Stage] = (),
    ) -> None:
        # Every outcome that waits for its turn holds files; the usual limit is for other programs.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._work = work
        self._then = tuple(then)
        self._environment = environment or {}
        # spawn: forked children inherit locks and threads of fsspec, numba and OpenCV
        self._context = multiprocessing.get_context("spawn")
        shared = [number for number, stage in enumerate(self._then, start=1) if not stage.own]
        every = [(*reversed(shared), 0)] * workers
        for number, stage in enumerate(self._then, start=1):
            every += [(number,)] * stage.own
        self._workers: list[_Worker] = []
        try:
            for stages in every:
                with workers_start():
                    self._workers.append(self._start(stages))
        except BaseException:
            self.close()
            raise

    def _start(self, stages: tuple[int, ...]) -> _Worker:
        ours, theirs = self._context.Pipe(duplex=True)
        arguments = (theirs, self._work, self._then, self._environment)
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        saved = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)  # numba and OpenMP read them when they are imported
        try:
            process.start()
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        theirs.close()
        return _Worker(process, ours, stages)

    def map(self, tasks: Iterable[Task], *, ahead: int) -> Iterator[tuple[Task, Outcome]]:
        """(task, outcome) in the order of the tasks, which may finish in any order.

        At most ``ahead`` tasks are begun beyond the one whose outcome comes next.
        """
        source = enumerate(tasks)
        pending: dict[int, _Pending[Task]] = {}
        # numbers of tasks that wait for a worker, for each stage
        waiting: list[deque[int]] = [deque() for _ in range(1 + len(self._then))]
        exhausted = False
        head = 0
        while True:
            while not exhausted and len(pending) < ahead:
                item = next(source, None)
                if item is None:
                    exhausted = True
                else:
                    pending[item[0]] = _Pending(item[1])
                    waiting[0].append(item[0])
            for worker in self._workers:
                if not worker.tasks:
                    self._send(worker, waiting, pending)
            if head in pending and (outcome := pending[head].outcome) is not None:
                yield pending.pop(head).task, outcome
                head += 1
            elif not pending:
                return
            else:
                self._receive(waiting, pending)

    def _send(
        self, worker: _Worker, waiting: list[deque[int]], pending: dict[int, _Pending[Task]]
    ) -> None:
        """Give an idle worker something to do, if there is anything."""
        stage = next((stage for stage in worker.stages if waiting[stage]), None)
        if stage is None:
            return
        together = self._then[stage - 1].together if stage else 1
        worker.tasks = [waiting[stage].popleft()]
        # What killed a worker is tried again by itself, so that it costs no others.
        while (
            waiting[stage]
            and len(worker.tasks) < together
            and not pending[worker.tasks[0]].attempts
            and not pending[waiting[stage][0]].attempts
        ):
            worker.tasks.append(waiting[stage].popleft())
        chosen = [pending[number] for number in worker.tasks]
        for one in chosen:
            one.attempts += 1
        # A worker that died while idle is noticed, and its tasks taken back, by _receive.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if stage == 0:
                worker.connection.send((0, chosen[0].task))
            else:
                worker.connection.send((stage, len(chosen)))
                for one in chosen:
                    assert one.result is not None
                    _write_result(worker.connection, one.result)

    def _receive(self, waiting: list[deque[int]], pending: dict[int, _Pending[Task]]) -> None:
        """Wait until some worker answers or dies, and note what came of its tasks."""
        busy = {w.connection: w for w in self._workers if w.tasks}
        for ready in connection.wait(list(busy)):
            assert isinstance(ready, Connection)
            worker = busy[ready]
            done = [pending[number] for number in worker.tasks]
            outcomes: list[Outcome]
            try:
                outcomes = _read_outcomes(ready, len(done))
            except (EOFError, ConnectionResetError):
                exitcode = self._replace(worker)
                for number, one in reversed(list(zip(worker.tasks, done, strict=True))):
                    if one.attempts < ATTEMPTS:
                        waiting[one.stage].appendleft(number)
                    else:
                        _finish(one, Died(exitcode))
                continue
            for number, one, outcome in zip(worker.tasks, done, outcomes, strict=True):
                if isinstance(outcome, Result) and one.stage < len(self._then):
                    _drop(one)
                    one.stage, one.result, one.attempts = one.stage + 1, outcome, 0
                    waiting[one.stage].append(number)
                else:
                    _finish(one, outcome)
            worker.tasks = []

    def _replace(self, worker: _Worker) -> int | None:
        worker.process.join()
        worker.connection.close()
        with workers_start():
            self._workers[self._workers.index(worker)] = self._start(worker.stages)
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


def _drop(pending: _Pending[Any]) -> None:
    """Close the files of the stage before."""
    if pending.result is not None:
        pending.result.close()
        pending.result = None


def _finish(pending: _Pending[Any], outcome: Outcome) -> None:
    _drop(pending)
    pending.outcome = outcome


def _write_result(channel: Connection, result: Result) -> None:
    channel.send((result.value, len(result.files)))
    for file in result.files:
        file.flush()
        reduction.send_handle(channel, file.fileno(), None)


def _read_result(channel: Connection, answer: Any) -> Result:
    """The result that ``answer`` begins; its files stand at their start."""
    value, num_files = answer
    files = tuple(os.fdopen(reduction.recv_handle(channel), "r+b") for _ in range(num_files))
    for file in files:
        file.seek(0)
    return Result(value, files)


def _read_outcomes(channel: Connection, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        answer = channel.recv()
        if isinstance(answer, Failed):
            return [answer] * count
        outcomes.append(_read_result(channel, answer))
    return outcomes


def _serve(
    channel: Connection,
    work: Callable[[Any], Result],
    then: tuple[Stage, ...],
    environment: dict[str, str],
) -> None:
    """What a worker process does: tasks in, outcomes out, until the parent is gone."""
    os.environ.update(environment)
    begin_work()
    while True:
        before: list[Result] = []
        try:
            stage, task = channel.recv()
            if stage > 0:
                before = [_read_result(channel, channel.recv()) for _ in range(task)]
        except (EOFError, ConnectionResetError):
            return
        try:
            results = then[stage - 1].work(before) if stage else [work(task)]
        except Exception as error:
            channel.send(Failed(_picklable(error), traceback.format_exc()))
            results = []
        for result in results:
            _write_result(channel, result)
        for result in (*results, *before):
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
