"""What a target is, what a case of it must come to, and the process that runs cases, bounded.

A case is right if it gives the right result, or an `I3DError` of at most two lines without control
characters. Anything else is a finding: another exception, a crash, a hang, memory beyond the bound,
a number that is not finite, a result that the damaged file should not have given.
"""

import contextlib
import dataclasses
import faulthandler
import hashlib
import os
import resource
import shutil
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from campaigns.fuzz.mutations import Files, Mutator, damage_files, swap_files
from support.paths import ROOT, TESTS

from i3d.errors import I3DError

MAX_LINES = 2
MAX_CHARACTERS = 2_000  # of a message: a screen
MORE_MIB = 8192  # to find out whether a case that was refused for want of memory would take it


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader of files from outside.

    Attributes:
        name: what ``--target`` takes.
        samples: makes sound samples, small ones.
        read: what is called with the folder of a case; gives the result.
        check: fails where a result is not right, whatever the file was.
        mutators: changes that know the format, and make its checksums and seals right again.
        sealed: every byte is under a checksum or of no effect, so that a file whose bytes were
            changed without one is refused, or gives the sound file's result.
        memory_mib: what a case may take beyond what the process has.
        seconds: of processor time that a case may take.
    """

    name: str
    samples: Callable[[], list[Files]]
    read: Callable[[Path], Any]
    check: Callable[[Any], None]
    mutators: tuple[Mutator, ...] = ()
    sealed: bool = False
    memory_mib: int = 512
    seconds: float = 20.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A mutated sample, and how it was made."""

    files: Files
    sample: int
    how: str
    resealed: bool


def make_case(target: Target, samples: list[Files], seed: int, number: int) -> Case:
    """The case of that number: the same wherever it is made."""
    random = Random(f"{target.name}/{seed}/{number}")
    sample = random.randrange(len(samples))
    files, steps, resealed = samples[sample], [], False
    if target.mutators and random.random() < 0.75:
        mutator = random.choice(target.mutators)
        try:
            files = mutator(random, files, samples)
        except Exception as error:  # what it made cannot even be written
            steps.append(f"({mutator.__name__} could not: {error!r:.200})")
        else:
            resealed = True
            steps.append(mutator.__name__)
    if not resealed:
        mutator = damage_files if random.random() < 0.95 else swap_files
        resealed = mutator is swap_files
        files = mutator(random, files, samples)
        steps.append(mutator.__name__)
    return Case(files, sample, ", ".join(steps), resealed)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """The files of a sample or case in a folder that held another."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_files(folder: Path) -> Files:
    """What `write_files` wrote."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


# --- what is right --------------------------------------------------------------------------------


class Wrong(Exception):
    """A case that is a finding; the first word says of which kind."""


def check_message(error: I3DError) -> None:
    """Refuse a message that is no line or two for a person."""
    text = str(error)
    kinds = {c: unicodedata.category(c) for c in set(text) - {"\n"}}
    if odd := sorted(c for c, kind in kinds.items() if kind in ("Cc", "Cs")):
        raise Wrong(f"message with control characters: {odd[:5]!r}")
    if len(text.splitlines()) > MAX_LINES or not text.strip():
        raise Wrong(f"message of another number of lines: {len(text.splitlines())}")
    if len(text) > MAX_CHARACTERS:
        raise Wrong(f"message too long: {len(text):,} characters")


def speaks_of_memory(error: I3DError) -> bool:
    """Whether a library found too little of it, or says so of a size that it refuses."""
    text = str(error).lower()
    return any(words in text for words in ("memoryerror", "enough memory", "allocate memory"))


def check_finite(value: Any) -> None:
    """Refuse numbers that are not finite, wherever they stand."""
    for leaf in _leaves(value):
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.numpy()
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "fc":
            continue
        if isinstance(leaf, float | np.ndarray | np.floating) and not np.isfinite(leaf).all():
            raise Wrong("result holds numbers that are not finite")


def digest(value: Any) -> str:
    """Equal for equal results."""
    sha = hashlib.sha256()
    for leaf in _leaves(value):
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.numpy()
        if isinstance(leaf, np.ndarray):
            sha.update(f"{leaf.dtype} {leaf.shape}".encode())
            leaf = np.ascontiguousarray(leaf).tobytes()
        sha.update(leaf if isinstance(leaf, bytes) else repr(leaf).encode("utf-8", "replace"))
        sha.update(b"\0")
    return sha.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        for key in value:
            yield key
            yield from _leaves(value[key])
    elif isinstance(value, list | tuple):
        yield len(value)
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        kind: ``refused``, ``read``, or that of a finding.
        where: what tells findings of one cause from others.
        text: message or traceback.
    """

    kind: str
    where: str = ""
    text: str = ""

    @property
    def right(self) -> bool:
        """Whether it is no finding."""
        return self.kind in ("refused", "read")


def judge(target: Target, folder: Path, expected: str | None) -> Outcome:
    """Read a case, and say what came of it.

    Args:
        target: whose.
        folder: its files.
        expected: digest of the sound result where only that is right; None: any that is checked.
    """
    try:
        try:
            result = target.read(folder)
        except I3DError as error:
            try:
                check_message(error)
                if speaks_of_memory(error):
                    check_with_more_memory(target, folder, str(error))
            except Wrong as wrong:
                raise wrong from error
            return Outcome("refused", text=str(error))
        target.check(result)
        if expected is not None and digest(result) != expected:
            raise Wrong("result of a damaged file is another than the sound one's")
        return Outcome("read")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        text = traceback.format_exc(limit=-30)
        cause = error.__cause__ if isinstance(error, Wrong) and error.__cause__ else error
        frames = traceback.extract_tb(cause.__traceback__)
        place = _deepest(frames, ROOT / "i3d") or _deepest(frames, TESTS) or frames[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        kind = str(error).partition(":")[0] if isinstance(error, Wrong) else type(error).__name__
        return Outcome(kind, f"{kind} at {where}", text)


def check_with_more_memory(target: Target, folder: Path, message: str) -> None:
    """Refuse what reads on where it has much more memory than a case may take."""
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:  # nothing is bounded: the library's own words
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit + (MORE_MIB << 20), hard))
    try:
        target.read(folder)
    except I3DError as error:
        if str(error) == message:
            return
    except MemoryError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    raise Wrong(f"memory beyond the bound: {message:.200}")


def _deepest(frames: Sequence[traceback.FrameSummary], folder: Path) -> Any:
    """The last of the frames in files of a folder, or None."""
    return next((f for f in reversed(frames) if Path(f.filename).is_relative_to(folder)), None)


# --- the process that runs cases ------------------------------------------------------------------


def limit_memory(mib: int) -> None:
    """No more than so many MiB beyond what this process has."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    limit = (used << 10) + (mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _quiet(errors: Path) -> None:
    """What libraries print goes nowhere; what a crash leaves goes into a file."""
    target = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable(target)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_cases(
    name: str, seed: int, first: int, corpus: Path, work: Path, connection: Connection
) -> None:
    """Run cases of a target from a number on until the other end hangs up.

    Before a case it sends its number, afterwards what came of it.
    """
    from campaigns.fuzz.targets import find_target

    target = find_target(name)
    _quiet(work / "stderr")
    torch.set_num_threads(1)
    with contextlib.suppress(BrokenPipeError, EOFError, OSError):
        samples = load_samples(target, corpus)
        folder = work / "case"
        expected = []
        for files in samples:
            write_files(folder, files)
            result = target.read(folder)
            target.check(result)
            expected.append(digest(result))
        connection.send(("ready", None, None))
        limit_memory(target.memory_mib)
        number = first
        while True:
            case = make_case(target, samples, seed, number)
            write_files(folder, case.files)
            connection.send(("begin", number, None))
            guarded = target.sealed and not case.resealed
            outcome = judge(target, folder, expected[case.sample] if guarded else None)
            kept = None if outcome.right else case.files
            sound = expected[case.sample] if guarded else ""
            connection.send(("end", number, (outcome, case.how, kept, sound)))
            number += 1


def replay_case(name: str, folder: Path, work: Path, connection: Connection) -> None:
    """Read one case again, under the same bounds; its files are in ``folder``."""
    from campaigns.fuzz.targets import find_target

    target = find_target(name)
    _quiet(work / "stderr")
    torch.set_num_threads(1)
    limit_memory(target.memory_mib)
    shutil.copytree(folder, work / "case", dirs_exist_ok=True)
    connection.send(("begin", 0, None))
    expected = (folder.parent / "expected").read_text() or None
    connection.send(("end", 0, judge(target, work / "case", expected)))


def regenerate(name: str, seed: int, number: int, corpus: Path, connection: Connection) -> None:
    """Make a case again that ended the process which ran it, and do not run it."""
    from campaigns.fuzz.targets import find_target

    target = find_target(name)
    case = make_case(target, load_samples(target, corpus), seed, number)
    connection.send((case.files, case.how))


def load_samples(target: Target, corpus: Path) -> list[Files]:
    """The sound samples, made once and kept."""
    folder = corpus / target.name
    if not (folder / "complete").exists():
        for i, files in enumerate(target.samples()):
            write_files(folder / str(i), files)
        (folder / "complete").touch()
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    return [read_files(folder / str(i)) for i in numbers]
