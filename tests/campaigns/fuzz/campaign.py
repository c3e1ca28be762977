"""The command: every target for its share of the time, each in a process that is bounded."""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.paths import ROOT, TESTS

OUTPUT = ROOT / "fuzz-output"  # git ignores it
KEPT = 2  # files of findings with one cause
PATIENCE_SECONDS = 120.0  # of wall-clock time for one case, on a machine that others use
START_SECONDS = 300.0  # to make the samples
MODULES = ["campaigns.fuzz.targets"]

# Child processes are forked from one that has imported everything and runs no thread.
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Tally:
    """What the cases of a target came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[Path]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """Number of them."""
        return sum(self.outcomes.values())


class Campaign:
    """Runs targets and keeps what was found.

    Args:
        output: folder of the corpus and the findings.
        seed: of all that is random.
        work: folder of the cases that are being run.
    """

    def __init__(self, output: Path, seed: int, work: Path) -> None:
        self.output, self.seed, self.work = output, seed, work
        self.corpus = output / "corpus"

    def run(self, name: str, seconds: float, cases: int) -> Tally:
        """Cases of one target for so long; the process is started again after each that ends it."""
        tally, number, begin = Tally(), 0, time.monotonic()
        while number < cases and (left := begin + seconds - time.monotonic()) > 0:
            number = self._run_process(name, number, cases, left, tally)
        tally.seconds = time.monotonic() - begin
        return tally

    def _run_process(self, name: str, first: int, cases: int, seconds: float, tally: Tally) -> int:
        """Cases from a number on in one process; the number to go on with."""
        from campaigns.fuzz.cases import run_cases

        arguments = (name, self.seed, first, self.corpus, self.work)
        process, pipe = _start(run_cases, *arguments)
        limit = _Limit(process.pid, START_SECONDS, START_SECONDS)
        end, number, running = time.monotonic() + seconds, first, False
        try:
            while number < cases and (time.monotonic() < end or number == first):
                if not pipe.poll(0.2):
                    if limit.passed():
                        process.kill()
                    elif process.is_alive():
                        continue
                try:
                    kind, number, value = _receive(pipe, number)
                except EOFError:
                    return self._note_end(name, number, process, limit, running, tally)
                if kind == "begin":
                    running, limit = True, _Limit(process.pid, *_bounds(name))
                elif kind == "end":
                    running = False
                    outcome, how, files, expected = value
                    tally.outcomes[outcome.kind if outcome.right else "finding"] += 1
                    if files is not None:
                        self._keep(name, number, files, outcome, how, expected, tally)
                    number += 1
            return number
        finally:
            process.kill()
            process.join()
            pipe.close()

    def _note_end(
        self, name: str, number: int, process: Any, limit: "_Limit", running: bool, tally: Tally
    ) -> int:
        """A process that ended by itself, or was ended because a case took too long."""
        from campaigns.fuzz.cases import Outcome, regenerate

        process.join()
        errors = (self.work / "stderr").read_text(errors="replace")
        if not running:
            raise SystemExit(f"{name}: cannot read its own samples\n{errors[-4000:]}")
        kind = "hang" if limit.reached else f"crash (exit {process.exitcode})"
        again, pipe = _start(regenerate, name, self.seed, number, self.corpus)
        files, how = pipe.recv()
        again.join()
        frames = [line for line in errors.splitlines() if str(ROOT / "i3d") in line]
        where = frames[0].strip() if frames else ""
        tally.outcomes["finding"] += 1
        outcome = Outcome(kind, f"{kind} {where}", errors[-20_000:])
        self._keep(name, number, files, outcome, how, "", tally)
        return number + 1

    def _keep(
        self,
        name: str,
        number: int,
        files: dict[str, bytes],
        outcome: Any,
        how: str,
        expected: str,
        tally: Tally,
    ) -> None:
        """The first few files of a cause, with a report."""
        from campaigns.fuzz.cases import write_files

        tally.counts[outcome.where] += 1
        kept = tally.findings.setdefault(outcome.where, [])
        if len(kept) >= KEPT:
            return
        folder = self.output / "findings" / name / f"{self.seed}-{number}"
        write_files(folder / "files", files)
        command = f"{_interpreter()} tests/campaigns/fuzz --replay {_shown(folder)}"
        report = [f"{outcome.kind}: target {name}, seed {self.seed}, case {number}, by {how}"]
        report += [f"again: {command}", "", outcome.text]
        (folder / "report.txt").write_text("\n".join(report), errors="backslashreplace")
        (folder / "target").write_text(name)
        (folder / "expected").write_text(expected)
        kept.append(folder)
        print(f"FINDING {name}: {outcome.where}: {_shown(folder)}", flush=True)


class _Limit:
    """Whether a process has taken too much processor time, or stands still."""

    def __init__(self, pid: int, seconds: float, patience: float) -> None:
        self._pid, self._seconds = pid, seconds
        self._start, self._end = self._used(), time.monotonic() + patience
        self.reached = False

    def _used(self) -> float:
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def passed(self) -> bool:
        """Whether it is to be ended."""
        self.reached |= self._used() - self._start > self._seconds or time.monotonic() > self._end
        return self.reached


def _bounds(name: str) -> tuple[float, float]:
    from campaigns.fuzz.targets import find_target

    return find_target(name).seconds, PATIENCE_SECONDS


def _start(work: Any, *arguments: Any) -> tuple[Any, Any]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=work, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _receive(pipe: Any, number: int) -> tuple[str, int, Any]:
    try:
        kind, found, value = pipe.recv()
    except OSError:
        raise EOFError from None
    return kind, number if found is None else found, value


def _interpreter() -> str:
    return "python" if Path(sys.executable).name.startswith("python") else sys.executable


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _replay(folder: Path, work: Path) -> int:
    from campaigns.fuzz.cases import replay_case

    name = (folder / "target").read_text()
    process, pipe = _start(replay_case, name, folder / "files", work)
    limit = _Limit(process.pid, *_bounds(name))
    while not pipe.poll(0.2) and process.is_alive() and not limit.passed():
        pass
    try:
        while (message := pipe.recv())[0] != "end":
            while not pipe.poll(0.2):
                if limit.passed():
                    process.kill()
        outcome = message[2]
    except (EOFError, OSError):
        process.join()
        errors = (work / "stderr").read_text(errors="replace")
        print(f"{'hang' if limit.reached else 'crash'} (exit {process.exitcode})\n{errors}")
        return 1
    print(f"{outcome.kind}\n{outcome.text}".encode(errors="backslashreplace").decode())
    return 0 if outcome.right else 1


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 where something was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="in all (default: 1)")
    parser.add_argument("--cases", type=int, default=1 << 62, help="of each, at most")
    parser.add_argument("--seed", type=int, help="default: another each time")
    parser.add_argument("--target", action="append", help="one of them; again for more")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: fuzz-output")
    parser.add_argument("--replay", type=Path, help="a folder of findings: run that case again")
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS)])
    os.environ["I3D_CACHE"] = str(options.output / "cache")
    _CONTEXT.set_forkserver_preload(MODULES)
    with tempfile.TemporaryDirectory(prefix="i3d-fuzz-") as work:
        if options.replay is not None:
            return _replay(options.replay, Path(work))
        from campaigns.fuzz.targets import TARGETS

        names = options.target or list(TARGETS)
        if unknown := [name for name in names if name not in (*TARGETS, "faults")]:
            parser.error(f"no target {unknown[0]}; they are {', '.join(TARGETS)}")
        # Samples are the code's of today.
        shutil.rmtree(options.output / "corpus", ignore_errors=True)
        seed = random.randrange(1 << 31) if options.seed is None else options.seed
        campaign = Campaign(options.output, seed, Path(work))
        return _run(campaign, names, options.minutes, options.cases)


def _run(campaign: Campaign, names: list[str], minutes: float, cases: int) -> int:
    print(f"seed {campaign.seed}, {len(names)} targets, {minutes:g} minutes", flush=True)
    print(
        f"{'target':24}{'cases':>9}{'refused':>9}{'read':>9}{'findings':>10}{'causes':>8}{'s':>7}"
    )
    end = time.monotonic() + 60 * minutes
    found = 0
    for i, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - i)
        tally = campaign.run(name, max(0.1, share), cases)
        found += len(tally.findings)
        counts = [tally.cases, *(tally.outcomes[k] for k in ("refused", "read", "finding"))]
        row = f"{counts[0]:9,}{counts[1]:9,}{counts[2]:9,}{counts[3]:10,}{len(tally.findings):8}"
        print(f"{name:24}{row}{tally.seconds:7.1f}", flush=True)
        for where, count in tally.counts.most_common():
            print(f"    {count:,} x {where}")
    return 1 if found else 0
