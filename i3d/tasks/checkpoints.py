"""List, download and locate the named checkpoints."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from i3d.errors import CheckpointError
from i3d.models.checkpoints import CHECKPOINTS, cached_path, download


def list_checkpoints() -> list[dict[str, Any]]:
    """One dict a named checkpoint: its record, ``source``, and ``path`` where it is on disk."""
    rows = []
    for checkpoint in CHECKPOINTS.values():
        path = cached_path(checkpoint.name)
        on_disk = str(path) if path.exists() else None
        rows.append({**asdict(checkpoint), "source": checkpoint.source, "path": on_disk})
    return rows


def format_checkpoints(rows: Iterable[dict[str, Any]]) -> str:
    """The list as text for a person."""
    lines = [
        f"{'name':28}{'stream':8}{'classes':13}{'trained from':20}{'top-1':>6}{'top-5':>7}  on disk"
    ]
    protocols = []
    for row in rows:
        if row["protocol"] not in protocols:
            protocols.append(row["protocol"])
        top5 = "-" if row["top5"] is None else f"{row['top5']:.1f}"
        note = protocols.index(row["protocol"]) + 1
        lines.append(
            f"{row['name']:28}{row['stream']:8}{row['classes']:13}{row['pretraining']:20}"
            f"{row['top1']:6.1f}{top5:>7}  {row['path'] or 'no'} [{note}]"
        )
    notes = [f"[{i}] published accuracy in percent: {p}" for i, p in enumerate(protocols, 1)]
    return "\n".join([*lines, *notes])


def download_checkpoints(
    names: Iterable[str], *, url: str | None = None, progress: bool = False, force: bool = False
) -> list[Path]:
    """Fetch checkpoints that are not on disk yet; see :func:`i3d.models.checkpoints.download`."""
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
