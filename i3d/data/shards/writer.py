"""Writes shards: tar and sidecar, or nothing."""

import hashlib
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import google_crc32c

from i3d import files
from i3d.data.shards.folder import complete_shards
from i3d.data.shards.format import (
    SUFFIXES,
    TAR_END,
    Failure,
    Member,
    Pictures,
    SampleInfo,
    SampleRecord,
    ShardIndex,
    pad,
    sidecar_name,
    tar_name,
)
from i3d.data.shards.manifest import Manifest, PlannedSample
from i3d.data.shards.pictures import check_jpeg, check_png
from i3d.errors import DatasetError, UsageError
from i3d.files import Location
from i3d.presets import find_preset

_MAX_REASON = 1000  # characters

# Sizes and checksums of pictures, and the file that they lie in: what `PictureWriter` makes.
Spool = tuple[Pictures, IO[bytes]]


class PictureWriter:
    """Collects a stream's pictures in a file, so that a long video needs no memory.

    Attributes:
        file: the pictures end to end; opened by the caller for writing and reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._sizes: list[int] = []
        self._checksums: list[int] = []

    def add(self, picture: bytes) -> None:
        """Append one picture."""
        self.file.write(picture)
        self._sizes.append(len(picture))
        self._checksums.append(google_crc32c.value(picture))

    @property
    def pictures(self) -> Pictures:
        """Sizes and checksums of what was added; the file is flushed, so others may read it."""
        self.file.flush()
        return Pictures(tuple(self._sizes), tuple(self._checksums))


@contextmanager
def write_shard(folder: Location, manifest: Manifest, shard: int) -> Iterator["ShardWriter"]:
    """Write one shard: tar and sidecar appear, in this order, when the block ends.

        with write_shard(folder, manifest, 0) as writer:
            writer.add("abseiling/x", rgb=(pictures.pictures, pictures.file), height=256, width=340)
            writer.fail("abseiling/y", "no video stream")

    Every sample of the shard must be added or failed, in the order of the plan. On any error there
    is nothing. A shard that is there already is replaced, tar and sidecar by one rename each. The
    tar grows in a temporary file, beside its final place or, for a URL, in the local temporary
    folder (about 1 GB); then it is uploaded. Where another run of the same plan has completed the
    folder meanwhile and removed that file, the block may end early, and its shard is taken.
    """
    try:
        name = files.join(folder, tar_name(shard))
        with files.atomic_file(name) as path, path.open("wb") as file:
            writer = ShardWriter(file, manifest, shard)
            yield writer
            index = writer.finish()
    except OSError as error:
        if files.is_gone(error) and complete_shards(folder, manifest, shards=[shard]):
            return
        raise
    files.write(files.join(folder, sidecar_name(shard)), index.to_json())


class ShardWriter:
    """Writes the tar of a shard to an open file; see `write_shard`."""

    def __init__(self, file: IO[bytes], manifest: Manifest, shard: int) -> None:
        self._file = file
        self._fps = find_preset(manifest.preset).fps
        self._manifest = manifest
        self._shard = shard
        self._planned = deque(manifest.shards[shard])
        self._samples: list[SampleRecord] = []
        self._failures: list[Failure] = []
        self._position = 0
        self._sha256 = hashlib.sha256()
        self._crc32c = 0  # of the current sample

    def add(
        self,
        key: str,
        *,
        rgb: Spool,
        flow: Spool | None = None,
        height: int,
        width: int,
        damage: str | None = None,
    ) -> int:
        """Add the next sample.

        Args:
            key: the key of the next sample of the plan.
            rgb: T JPEGs as `encode_rgb` makes them, and the file they are in (`PictureWriter`).
            flow: T - 1 PNGs as `encode_flow` makes them; given exactly if the manifest has flow.
            height: pixels of every frame.
            width: pixels of every frame.
            damage: what was lost of a damaged video, in one line without paths.

        Returns:
            Bytes that the sample takes in the tar.

        Raises:
            UsageError: another sample is next.
            DatasetError: no frames, or pictures that do not belong together. Nothing is written
                then, so `fail` may follow.
        """
        planned = self._next(key)
        try:
            info = self._describe(planned, rgb, flow, height, width, damage)
        except DatasetError as e:
            raise DatasetError(f"{key}: {e}") from e
        start, members = self._position, []
        self._crc32c = 0
        contents = [("json", info.to_json())]
        if planned.class_index is not None:
            contents.append(("cls", str(planned.class_index).encode("ascii")))
        for suffix, content in contents:
            members.append(self._write_member(key, suffix, len(content), [content]))
        for suffix, stream in ((SUFFIXES["rgb"], rgb), (SUFFIXES["flow"], flow)):
            if stream is not None:
                size = sum(stream[0].sizes)
                members.append(self._write_member(key, suffix, size, _reread(stream)))
        record = SampleRecord(key, start, self._position - start, self._crc32c, tuple(members))
        self._samples.append(record)
        self._planned.popleft()
        return record.size

    def fail(self, key: str, reason: str) -> None:
        """Record that the next sample could not be made, and why: one line, without paths."""
        self._next(key)
        self._failures.append(Failure(key, _one_line(reason) or "unknown"))
        self._planned.popleft()

    def finish(self) -> ShardIndex:
        """Write the end of the tar, and say what is in it.

        Raises:
            UsageError: a sample was neither added nor failed.
        """
        if self._planned:
            raise UsageError(
                f"shard {self._shard}: {len(self._planned)} samples were neither added nor failed,"
                f" the first is {self._planned[0].key!r}"
            )
        self._write(TAR_END)
        return ShardIndex(
            manifest=self._manifest.seal,
            shard=self._shard,
            tar_bytes=self._position,
            tar_sha256=self._sha256.hexdigest(),
            samples=tuple(self._samples),
            failures=tuple(self._failures),
        )

    def _next(self, key: str) -> PlannedSample:
        planned = self._planned[0] if self._planned else None
        if planned is None or planned.key != key:
            wanted = "no sample" if planned is None else repr(planned.key)
            raise UsageError(f"shard {self._shard}: {key!r} came where {wanted} was planned")
        return planned

    def _describe(
        self,
        planned: PlannedSample,
        rgb: Spool,
        flow: Spool | None,
        height: int,
        width: int,
        damage: str | None,
    ) -> SampleInfo:
        """The ``json`` member, after a look at every picture."""
        classes, index = self._manifest.classes, planned.class_index
        if (flow is not None) != ("flow" in self._manifest.streams):
            raise DatasetError(f"the manifest has {' and '.join(self._manifest.streams)}")
        info = SampleInfo(
            key=planned.key,
            location=planned.location,
            class_index=index,
            class_name=None if classes is None or index is None else classes.names[index],
            start_seconds=planned.start_seconds,
            end_seconds=planned.end_seconds,
            preset=self._manifest.preset,
            fps=self._fps,
            height=height,
            width=width,
            damage=None if damage is None else _one_line(damage),
            rgb=rgb[0],
            flow=None if flow is None else flow[0],
        )
        for i, jpeg in enumerate(_reread(rgb)):
            check_jpeg(jpeg, i, height=height, width=width)
        for i, png in enumerate(_reread(flow) if flow is not None else ()):
            check_png(png, i, height=height, width=width)
        return info

    def _write_member(self, key: str, suffix: str, size: int, parts: Iterable[bytes]) -> Member:
        self._write(make_header(f"{key}.{suffix}", size))
        offset, checksum = self._position, 0
        for part in parts:
            self._write(part)
            checksum = google_crc32c.extend(checksum, part)
        self._write(bytes(pad(size) - size))
        return Member(suffix, offset, size, checksum)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._crc32c = google_crc32c.extend(self._crc32c, data)
        self._position += len(data)


def _reread(stream: Spool) -> Iterator[bytes]:
    """The pictures in a file, one at a time, verified."""
    pictures, file = stream
    file.seek(0)
    for i, (size, checksum) in enumerate(zip(pictures.sizes, pictures.crc32c, strict=True)):
        picture = file.read(size)
        if google_crc32c.value(picture) != checksum:
            raise DatasetError(f"picture {i} is not in its file any more; is the disk full?")
        yield picture


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON]


def make_header(name: str, size: int) -> bytes:
    """The tar header of a file, the same for every machine and time."""
    info = tarfile.TarInfo(name)  # time, owner and group are 0
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
