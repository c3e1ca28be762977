"""What TensorBoard shows of a run, in its own format."""

import io
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i3d import files


class Events:
    """A file of scalars, which TensorBoard shows live; its packages are imported here alone.

    PyTorch's ``SummaryWriter`` writes in a thread, which shows a traceback where the disk is full.

    Args:
        folder: of the events; every start of a run adds a file.
        step: the one after which the run goes on. Events after it are of a run that died;
            TensorBoard drops them.

    Raises:
        OSError: it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now, host = int(time.time()), socket.gethostname()
        name = f"events.out.tfevents.{now:010d}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._path = folder / name
        purged = {"step": step + 1} if step else {}
        self._append(file_version="brain.Event:2", **purged)
        if step:
            self._append(session_log={"status": "START"}, **purged)

    def add(self, scalars: Mapping[str, float], *, step: int) -> None:
        """The scalars of a step, by name."""
        values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
        self._append(summary={"value": values}, step=step)

    def _append(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        files.append(self._path, record.getvalue())
