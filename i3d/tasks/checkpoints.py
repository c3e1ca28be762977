"""List, download and locate the named checkpoints."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from i3d.errors import CheckpointError
from i3d.models.download import cached_path, download
from i3d.models.released import CHECKPOINTS, Checkpoint


@dataclass(frozen=True)
class Listing:
    """The named checkpoints, for a person (``str``) or a machine (:meth:`as_dict`).

    Attributes:
        rows: record and path of each; None where it is not on disk.
    """

    rows: tuple[tuple[Checkpoint, str | None], ...]

    def as_dict(self) -> dict[str, Any]:
        """One object a checkpoint: its record, ``source``, ``sources`` and ``path``."""
        return {
            "checkpoints": [
                {**asdict(c), "source": c.source, "sources": list(c.sources), "path": path}
                for c, path in self.rows
            ]
        }

    def __str__(self) -> str:
        protocols = list(dict.fromkeys(c.protocol for c, _ in self.rows))
        notes = [f"published accuracy in percent: {protocol}" for protocol in protocols]
        packages = list(dict.fromkeys(c.package for c, _ in self.rows if c.package is not None))
        notes += [f"GitHub, or the {package} from your package index" for package in packages]
        lines = [
            f"{'name':28}{'stream':8}{'classes':13}{'trained from':20}"
            f"{'top-1':>6}{'top-5':>7}{'':6}{'from':14}on disk"
        ]
        for c, path in self.rows:
            top5 = "-" if c.top5 is None else f"{c.top5:.1f}"
            published = f"[{protocols.index(c.protocol) + 1}]"
            source = "GitHub"
            if c.package is not None:
                source += f" [{len(protocols) + packages.index(c.package) + 1}]"
            lines.append(
                f"{c.name:28}{c.stream:8}{c.classes:13}{c.pretraining:20}"
                f"{c.top1:6.1f}{top5:>7} {published:5}{source:14}{path or 'no'}"
            )
        return "\n".join([*lines, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def list_checkpoints() -> Listing:
    """Every named checkpoint, and where it is on disk."""
    paths = {name: cached_path(name) for name in CHECKPOINTS}
    return Listing(
        tuple((c, str(paths[n]) if paths[n].exists() else None) for n, c in CHECKPOINTS.items())
    )


def download_checkpoints(
    names: Iterable[str], *, url: str | None = None, progress: bool = False, force: bool = False
) -> list[Path]:
    """Fetch checkpoints that are not on disk yet; see :func:`i3d.models.download.download`."""
    names = list(names)
    for name in names:
        cached_path(name)  # a wrong name is an error before anything is fetched
    return [download(name, url=url, progress=progress, force=force) for name in names]


def local_checkpoint(name: str) -> Path:
    """Where a named checkpoint is on disk.

    Raises:
        UsageError: no such name.
        CheckpointError: it is not downloaded yet.
    """
    path = cached_path(name)
    if not path.exists():
        raise CheckpointError(f"{path}: not there yet; run i3d checkpoints download {name}")
    return path
