"""Precomputed shards: RGB frames and flow of many videos in a few large files.

    manifest.json      the plan: dataset, classes, settings, versions, the samples of every shard
    shard-00000.tar    the pictures, in WebDataset's layout
    shard-00000.json   its sidecar: where everything is in the tar, checksums, failures
    ...
    failures.csv       `video,reason` of every video that is in no shard, once all are there

All of it depends on data and settings alone, never on time, machine or number of processes, so the
same inputs give the same bytes. A tar becomes visible before its sidecar: a shard is complete when
its sidecar is there, and a tar without one is made again.

**Tar.** ustar headers (pax ones for long or non-ASCII names), mode 644, time and owner 0; samples
in the order of the manifest, each as these members without a gap; 1,024 zeros at the end.

    KEY.json         what the sample is, and of every picture its size in bytes and checksum
    KEY.cls          class index as decimal text; absent when unlabelled
    KEY.rgb.mjpeg    T frames: JPEGs (of quality 95, 4:2:0), end to end
    KEY.flow.mpng    T - 1 flows: gray 8-bit PNGs of height 2H, x above y, quantised as
                     `i3d.clips.quantize_flow`, end to end; absent without flow

A key holds no dot: WebDataset takes what follows a base name's first dot for a suffix.

**JSON.** Field names are those of `Manifest`, `ShardIndex` (the sidecar) and `SampleInfo`
(``KEY.json``) below. Manifest and sidecar are ASCII; their last field is a seal, the SHA-256 of all
bytes before its line (``head -n -2 manifest.json | sha256sum``), so that any change is noticed. The
sidecar names the manifest that it belongs to by its seal.

**Checksums.** CRC32C of each picture, each member and each sample, whose bytes run from its first
header to the end of its last padding. Samples lie end to end from 0, so with the zeros at the end
every byte of a tar is covered. The SHA-256 of the tar is for ``sha256sum``, after a copy.

Reading never trusts: sizes are bounded, types and checksums checked, a picture's header compared
with its sample before it is decoded. Damage raises `DatasetError` with shard, key, member and
remedy.
"""

import csv
import hashlib
import io
import json
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from typing import IO, Self, cast

import google_crc32c
import numpy as np

from i3d import files
from i3d.classes import ClassList, readable
from i3d.data.shards.pictures import (
    EVERYTHING,
    Box,
    Scalar,
    check_jpeg,
    check_png,
    decode_flow,
    decode_rgb,
)
from i3d.errors import DatasetError, UsageError
from i3d.files import Location
from i3d.presets import Stream, find_preset
from i3d.records import MAX_TEXT, parsed, plain, sealed, split_seal, unsealed

MANIFEST_FILE = "manifest.json"
FAILURES_FILE = "failures.csv"
SUFFIXES: dict[Stream, str] = {"rgb": "rgb.mjpeg", "flow": "flow.mpng"}

CLIPS_PER_SHARD = 128  # about 1 GB with flow: large reads, and little to repeat after a crash
_BLOCK = 512  # bytes; a tar consists of these
_TAR_END = bytes(2 * _BLOCK)
_READ_AHEAD = 1  # samples that are read while one is used; 6 to 10 MB each
_THREADS = 16  # for small files: a request to S3 takes 20 ms or more

# Bounds for files that come from elsewhere, far above what is written.
_MAX_JSON_BYTES = 1 << 29  # the manifest of Kinetics-700's 650,000 videos has about 100 MB
_MAX_REASON = 1000  # characters
_MAX_SIDE = 1 << 14  # pixels
_MAX_PIXELS = 1 << 26  # of a frame; as in video.py
_MAX_SECONDS = 1e9

# Names between slashes, without dots, control characters or surrogates.
_KEY = re.compile(r"[^./\x00-\x1f\x7f\ud800-\udfff]+(?:/[^./\x00-\x1f\x7f\ud800-\udfff]+)*")
_SKIPPED_BY_WEBDATASET = re.compile(r"__[^/]*__/")

_REMEDY = "copy the shard again, or delete its .tar and .json and run precompute again"
_CHECKSUM = "its checksum (CRC32C) does not match"
_NOT_MADE = "its shard is missing; run precompute again to make it"


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """A video that is in no shard, and why: one line without paths."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One video of the plan.

    Attributes:
        key: unique, safe as a tar member's name: parts between slashes, no dots.
        location: the file, relative to the dataset's folder.
        class_index: position in the class list; None when unlabelled.
        start_seconds: where the video is cut; None for the whole file.
        end_seconds: as above.

    Raises:
        DatasetError: a key that a tar or WebDataset would not give back; an absolute location;
            times that make no sense.
    """

    key: str
    location: str
    class_index: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or len(self.key) > MAX_TEXT:
            raise DatasetError(
                f"key {self.key[:200]!r} must be names between slashes, without dots and control"
                " characters; percent-encode them"
            )
        if _SKIPPED_BY_WEBDATASET.match(self.key):
            raise DatasetError(
                f"key {self.key!r}: WebDataset skips folders like __this__; rename the folder"
            )
        if self.location.startswith("/") or "://" in self.location:
            raise DatasetError(
                f"{self.key}: location {self.location!r} must be relative to the dataset's folder"
            )
        for name in ("start_seconds", "end_seconds"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not 0 <= seconds <= _MAX_SECONDS:
                raise DatasetError(f"{self.key}: {name} {seconds!r} is no time in seconds")
            object.__setattr__(self, name, float(seconds))  # 3 and 3.0 are the same bytes


def plan_shards(
    samples: Iterable[PlannedSample], *, clips_per_shard: int = CLIPS_PER_SHARD, seed: int = 0
) -> tuple[tuple[PlannedSample, ...], ...]:
    """Shuffle samples and cut them into shards, so that every shard has all kinds of classes.

    The order is that of the SHA-256 of ``seed:key``; it depends on nothing else.

    Raises:
        UsageError: ``clips_per_shard`` is not at least 1.
    """
    if clips_per_shard < 1:
        raise UsageError(f"clips_per_shard={clips_per_shard} must be at least 1")
    shuffled = sorted(samples, key=lambda s: hashlib.sha256(f"{seed}:{s.key}".encode()).digest())
    return tuple(
        tuple(shuffled[start : start + clips_per_shard])
        for start in range(0, len(shuffled), clips_per_shard)
    )


@dataclass(frozen=True)
class Manifest:
    """The plan of a folder of shards: what `evaluate` needs to know, and what `precompute` resumes.

    Attributes:
        dataset: a name for people.
        classes: what class indices refer to; None when unlabelled.
        preset: name of the preprocessing settings.
        streams: ``("rgb",)`` or ``("rgb", "flow")``.
        parameters: every other setting that changes the bytes.
        versions: of the libraries that change the bytes.
        shards: the samples of every shard, in order.

    Raises:
        DatasetError: no samples, a key twice, a class index outside the list.
    """

    dataset: str
    classes: ClassList | None
    preset: str
    streams: tuple[Stream, ...]
    parameters: Mapping[str, Scalar]
    versions: Mapping[str, str]
    shards: tuple[tuple[PlannedSample, ...], ...]

    def __post_init__(self) -> None:
        if self.streams not in (("rgb",), ("rgb", "flow")):
            raise DatasetError(f"streams {self.streams} must be ('rgb',) or ('rgb', 'flow')")
        if not self.shards or not all(self.shards):
            raise DatasetError("a plan needs at least one sample, and every shard of it too")
        count = 0 if self.classes is None else len(self.classes)
        seen = set()
        for sample in self.samples():
            if sample.key in seen:
                raise DatasetError(f"key {sample.key!r} is there twice; keys must be unique")
            seen.add(sample.key)
            if sample.class_index is not None and not 0 <= sample.class_index < count:
                raise DatasetError(
                    f"{sample.key}: class index {sample.class_index}, but there are {count} classes"
                )

    def samples(self) -> Iterator[PlannedSample]:
        """All samples, shard by shard."""
        return (sample for shard in self.shards for sample in shard)

    @cached_property
    def found(self) -> int:
        """Number of videos in the plan."""
        return sum(map(len, self.shards))

    @cached_property
    def seal(self) -> str:
        """The manifest's SHA-256, by which a sidecar names it: 64 hexadecimal digits."""
        return split_seal(self.to_json())[1]

    def to_json(self) -> bytes:
        """As stored in ``manifest.json``; equal manifests give the same bytes."""
        return sealed("i3d manifest 1", self)

    @classmethod
    def from_json(cls, data: bytes, where: str = MANIFEST_FILE) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DatasetError: damaged, edited, of another format, or a value that makes no sense.
        """
        manifest = unsealed("i3d manifest 1", cls, data, where)
        if manifest.to_json() != data:
            raise DatasetError(f"{where} is not written as i3d writes it; restore it")
        return manifest

    def differences(self, other: Self) -> list[str]:
        """Where ``other`` is another plan, one line a field: ``preset: 'a', now 'b'``."""
        before, now = _settings(self), _settings(other)
        # With other numbers of classes every name may differ, which says nothing more.
        aligned = before["number of classes"] == now["number of classes"]
        lines = [
            f"{name}: {before.get(name, 'absent')}, now {now.get(name, 'absent')}"
            for name in [*before, *(now.keys() - before.keys())]
            if before.get(name) != now.get(name) and (aligned or not name.startswith("class "))
        ]
        if self.shards != other.shards:
            lines.append(_sample_difference(self, other))
        return lines


def _settings(manifest: Manifest) -> dict[str, str]:
    """Every setting of a manifest by its name, to compare and to print."""
    names = () if manifest.classes is None else manifest.classes.names
    return {
        "dataset": repr(manifest.dataset),
        "classes": "none" if manifest.classes is None else repr(manifest.classes.name),
        "number of classes": str(len(names)),
        **{f"class {i}": repr(name) for i, name in enumerate(names)},
        "preset": repr(manifest.preset),
        "streams": "+".join(manifest.streams),
        **{f"parameter {k}": repr(v) for k, v in sorted(manifest.parameters.items())},
        **{f"version of {k}": repr(v) for k, v in sorted(manifest.versions.items())},
    }


def _sample_difference(before: Manifest, now: Manifest) -> str:
    """The first sample that differs, in words."""
    old = {s.key: (i, s) for i, shard in enumerate(before.shards) for s in shard}
    new = {s.key: (i, s) for i, shard in enumerate(now.shards) for s in shard}
    if gone := sorted(old.keys() - new.keys()):
        return f"samples: {len(old):,}, now {len(new):,}; {gone[0]!r} is no longer there"
    if more := sorted(new.keys() - old.keys()):
        return f"samples: {len(old):,}, now {len(new):,}; {more[0]!r} was not there"
    moved = [key for key in sorted(old) if old[key] != new[key]]
    if not moved:
        return "samples: another order within the shards"
    (shard, was), (other_shard, is_now) = old[moved[0]], new[moved[0]]
    if was != is_now:
        return f"samples: {was}, now {is_now}"
    return f"samples: {moved[0]!r} was in shard {shard}, now in {other_shard}"


def read_manifest(folder: Location) -> Manifest:
    """The manifest of a folder.

    Raises:
        DatasetError: not there, damaged, or of another format.
    """
    location = files.join(folder, MANIFEST_FILE)
    return Manifest.from_json(_read_small(location), location)


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Write the manifest first of all, or find that it is there already.

    Every process may do it at once: one writes, the others compare.

    Raises:
        UsageError: the folder has another plan; the message names the differences.
        DatasetError: the manifest that is there is damaged.
    """
    location = files.join(folder, MANIFEST_FILE)
    data = manifest.to_json()
    Manifest.from_json(data, "the new manifest")  # what cannot be read is never written
    try:
        files.create(location, data)
        return
    except FileExistsError:
        there = _read_small(location)
    if there != data:
        lines = Manifest.from_json(there, location).differences(manifest)
        more = f" (and {len(lines) - 5} more)" if len(lines) > 5 else ""
        raise UsageError(
            f"{folder} was begun with other settings: {'; '.join(lines[:5])}{more}."
            " Use the same settings, or another output folder"
        )


# What a shard holds


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of one stream of a sample, which lie end to end in one member.

    Attributes:
        sizes: bytes of each.
        crc32c: checksum of each.
    """

    sizes: tuple[int, ...]
    crc32c: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.crc32c) or min(self.sizes, default=0) < 0:
            raise DatasetError("pictures need a size and a checksum each")

    def __len__(self) -> int:
        return len(self.sizes)

    def span(self, part: slice) -> tuple[int, int]:
        """Where those pictures lie in the member: offset and length in bytes."""
        start = part.indices(len(self))[0]
        return sum(self.sizes[:start]), sum(self.sizes[part])

    def split(self, data: bytes, part: slice = slice(None)) -> tuple[bytes, ...]:
        """Those pictures, from their bytes."""
        ends = accumulate(self.sizes[part], initial=0)
        return tuple(data[start:end] for start, end in pairwise(ends))


class PictureWriter:
    """Collects a stream's pictures in a file, so that a long video needs no memory.

    Attributes:
        file: where they are, end to end; opened by the caller for writing and reading.
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


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What a sample's ``json`` member says: enough to use it without manifest and sidecar.

    Attributes:
        key: as in the manifest; so are location, class_index, start_seconds and end_seconds.
        location: see `PlannedSample`.
        class_index: likewise.
        class_name: the name in the class list; None when unlabelled.
        start_seconds: see `PlannedSample`.
        end_seconds: likewise.
        preset: name of the preprocessing settings.
        fps: frames a second.
        height: pixels of a frame.
        width: pixels of a frame.
        damage: what was lost of a damaged video; None for a sound one.
        rgb: the T frames.
        flow: the T - 1 flows; flow i lies between frames i and i + 1. None without flow.
    """

    key: str
    location: str
    class_index: int | None
    class_name: str | None
    start_seconds: float | None
    end_seconds: float | None
    preset: str
    fps: int
    height: int
    width: int
    damage: str | None
    rgb: Pictures
    flow: Pictures | None

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        if min(sides) < 1 or max(sides) > _MAX_SIDE or self.height * self.width > _MAX_PIXELS:
            raise DatasetError(f"frames of {self.width}x{self.height} pixels make no sense")
        if not len(self.rgb) or (self.flow is not None and len(self.flow) != len(self.rgb) - 1):
            raise DatasetError("a sample has at least one frame, and one flow less than frames")

    def pictures(self, stream: Stream) -> Pictures:
        """Of a stream that the shards have."""
        return cast(Pictures, self.rgb if stream == "rgb" else self.flow)

    def to_json(self) -> bytes:
        """As stored in the member."""
        return json.dumps({"format": "i3d sample 1", **plain(self)}).encode("ascii") + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DatasetError: of another format, or a value that makes no sense.
        """
        return parsed("i3d sample 1", cls, data, where)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the tar: its contents are the ``size`` bytes at ``offset``."""

    suffix: str
    offset: int
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """Where a sample lies in the tar: all its members with their headers and padding."""

    key: str
    offset: int
    size: int
    crc32c: int
    members: tuple[Member, ...]

    def member(self, suffix: str) -> Member:
        """The member of that suffix, which must be there."""
        return next(m for m in self.members if m.suffix == suffix)


@dataclass(frozen=True)
class ShardIndex:
    """A shard's sidecar.

    Attributes:
        manifest: seal of the manifest that the shard belongs to.
        shard: its number.
        tar_bytes: size of the tar.
        tar_sha256: of the whole tar, as ``sha256sum`` prints it.
        samples: those that are in the tar, in order.
        failures: the others of the plan.
    """

    manifest: str
    shard: int
    tar_bytes: int
    tar_sha256: str
    samples: tuple[SampleRecord, ...]
    failures: tuple[Failure, ...]

    def to_json(self) -> bytes:
        """As stored in the sidecar."""
        return sealed("i3d shard 1", self)

    @classmethod
    def from_json(cls, data: bytes, manifest: Manifest, shard: int, where: str) -> Self:
        """Read what `to_json` wrote for this shard of the manifest.

        Raises:
            DatasetError: damaged, of another manifest or shard, or not what was planned.
        """
        index = unsealed("i3d shard 1", cls, data, where)
        if index.manifest != manifest.seal:
            raise DatasetError(
                f"{where} belongs to another manifest ({index.manifest[:12]}..., not"
                f" {manifest.seal[:12]}...); {_REMEDY}"
            )
        if index.shard != shard:
            raise DatasetError(f"{where} is the sidecar of shard {index.shard}; {_REMEDY}")
        _check_layout(index, manifest, where)
        return index


def _check_layout(index: ShardIndex, manifest: Manifest, where: str) -> None:
    """Refuse samples that were not planned, members that do not lie as in a tar, and gaps."""
    plan = manifest.shards[index.shard]
    failed = {failure.key for failure in index.failures}
    planned = [sample for sample in plan if sample.key not in failed]
    made = [record.key for record in index.samples]
    if made != [s.key for s in planned] or len(made) + len(index.failures) != len(plan):
        raise DatasetError(f"{where}: not the samples that the manifest plans; {_REMEDY}")
    end = 0
    for record, sample in zip(index.samples, planned, strict=True):
        fits = [m.suffix for m in record.members] == _suffixes(sample, manifest.streams)
        fits = fits and record.offset == end
        for m in record.members:
            fits = fits and m.size >= 0 and m.offset >= end + _BLOCK and m.offset % _BLOCK == 0
            end = m.offset + _padded(m.size)
        if not fits or end != record.offset + record.size:
            raise DatasetError(f"{where}, {record.key}: offsets are not those of a tar; {_REMEDY}")
    if end + len(_TAR_END) != index.tar_bytes:
        raise DatasetError(f"{where}: the samples do not fill the tar; {_REMEDY}")


def _suffixes(sample: PlannedSample, streams: Sequence[Stream]) -> list[str]:
    """The members of a sample, in order."""
    label = [] if sample.class_index is None else ["cls"]
    return ["json", *label, *(SUFFIXES[stream] for stream in streams)]


def tar_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.tar"


def sidecar_name(shard: int) -> str:
    """File name of a shard's sidecar, which says that the shard is complete."""
    return f"shard-{shard:05d}.json"


# Writing


@contextmanager
def write_shard(folder: Location, manifest: Manifest, shard: int) -> Iterator["ShardWriter"]:
    """Write one shard: tar and sidecar appear, in this order, when the block ends.

        with write_shard(folder, manifest, 0) as writer:
            writer.add("abseiling/x", rgb=(pictures.pictures, pictures.file), height=256, width=340)
            writer.fail("abseiling/y", "no video stream")

    Every sample of the shard must be added or failed, in the order of the plan. On any error there
    is nothing. A shard that is there already is replaced. The tar grows in a temporary file, beside
    its final place or, for a URL, in the local temporary folder (about 1 GB); then it is uploaded.
    """
    sidecar = files.join(folder, sidecar_name(shard))
    with files.atomic_file(files.join(folder, tar_name(shard))) as path, path.open("wb") as file:
        writer = ShardWriter(file, manifest, shard)
        yield writer
        index = writer.finish()
        files.remove(sidecar)  # of a tar that is about to be replaced
    files.write(sidecar, index.to_json())


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
        rgb: tuple[Pictures, IO[bytes]],
        flow: tuple[Pictures, IO[bytes]] | None = None,
        height: int,
        width: int,
        damage: str | None = None,
    ) -> int:
        """Add the next sample.

        Args:
            key: of the next sample of the plan.
            rgb: T JPEGs as `encode_rgb` makes them, and the file they are in (`PictureWriter`).
            flow: T - 1 PNGs as `encode_flow` makes them; given exactly if the manifest has flow.
            height: pixels of every frame.
            width: likewise.
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
                members.append(self._write_member(key, suffix, size, _read_pictures(stream)))
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
        self._write(_TAR_END)
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
        rgb: tuple[Pictures, IO[bytes]],
        flow: tuple[Pictures, IO[bytes]] | None,
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
        for i, jpeg in enumerate(_read_pictures(rgb)):
            check_jpeg(jpeg, i, height=height, width=width)
        for i, png in enumerate(_read_pictures(flow) if flow is not None else ()):
            check_png(png, i, height=height, width=width)
        return info

    def _write_member(self, key: str, suffix: str, size: int, parts: Iterable[bytes]) -> Member:
        self._write(_tar_header(f"{key}.{suffix}", size))
        offset, checksum = self._position, 0
        for part in parts:
            self._write(part)
            checksum = google_crc32c.extend(checksum, part)
        self._write(bytes(_padded(size) - size))
        return Member(suffix, offset, size, checksum)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._crc32c = google_crc32c.extend(self._crc32c, data)
        self._position += len(data)


def _read_pictures(stream: tuple[Pictures, IO[bytes]]) -> Iterator[bytes]:
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


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # time, owner and group are 0
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def complete_shards(
    folder: Location, manifest: Manifest, *, shards: Iterable[int] | None = None
) -> list[int]:
    """Which of the shards (default: all) need not be made again, in order.

    A shard is complete when its sidecar is sound and of this manifest, and its tar has the size
    that the sidecar says. The tar's bytes are not read.
    """
    wanted = range(len(manifest.shards)) if shards is None else shards
    if not files.exists(folder):
        return []
    names = _names(folder)
    there = [i for i in wanted if names >= {tar_name(i), sidecar_name(i)}]

    def is_complete(shard: int) -> bool:
        try:
            index = _read_index(folder, manifest, shard)
            _check_size(folder, index)
        except DatasetError:
            return False
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            i for i, complete in zip(there, pool.map(is_complete, there), strict=True) if complete
        ]


def finish_folder(folder: Location, manifest: Manifest) -> bool:
    """If all shards are there, write ``failures.csv`` and remove what killed writers left behind.

    Every process calls it after its last shard; the last one finds all sidecars. When two do, both
    write the same bytes.

    Returns:
        Whether all shards are there.

    Raises:
        DatasetError: a sidecar is damaged or of another manifest.
    """
    names = _names(folder)
    shards = range(len(manifest.shards))
    if not names >= {sidecar_name(i) for i in shards}:
        return False
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "reason"])
    writer.writerows((f.key, f.reason) for f in sorted(shard_failures(folder, manifest, shards)))
    data = text.getvalue().encode(errors="backslashreplace")
    files.write(files.join(folder, FAILURES_FILE), data)
    mine = {"manifest", *(f"shard-{i:05d}" for i in shards)}
    for name in names:
        if files.temporary_stem(name) in mine:
            files.remove(files.join(folder, name))
    return True


# Reading


@dataclass(frozen=True)
class Sample:
    """A sample as it was read: verified, not yet decoded.

    Attributes:
        info: what it is.
        start: the frame of the video that ``rgb[0]`` is, and the flow that ``flow[0]`` is.
        rgb: JPEGs; None if not asked for.
        flow: PNGs; None if not asked for, or not in these shards.
        where: tar and key, for messages.
    """

    info: SampleInfo
    start: int
    rgb: tuple[bytes, ...] | None
    flow: tuple[bytes, ...] | None
    where: str

    @property
    def key(self) -> str:
        """The video's key."""
        return self.info.key

    @property
    def class_index(self) -> int | None:
        """Position in the class list; None when unlabelled."""
        return self.info.class_index

    def frames(
        self, start: int = 0, stop: int | None = None, *, box: Box = EVERYTHING
    ) -> np.ndarray:
        """Decode frames ``rgb[start:stop]`` and no others: uint8 (T, H, W, 3), or a box of each.

        Raises:
            DatasetError: a picture does not decode.
            UsageError: RGB was not read.
        """
        return self._decode("rgb", self.rgb, decode_rgb, slice(start, stop), box)

    def stored_flow(
        self, start: int = 0, stop: int | None = None, *, box: Box = EVERYTHING
    ) -> np.ndarray:
        """Decode flows ``flow[start:stop]`` and no others: uint8 (T, H, W, 2), or a box of each.

        128 is no motion.

        Raises:
            DatasetError: a picture does not decode.
            UsageError: flow was not read.
        """
        return self._decode("flow", self.flow, decode_flow, slice(start, stop), box)

    def _decode(
        self,
        stream: Stream,
        pictures: tuple[bytes, ...] | None,
        decode: Callable[..., np.ndarray],
        part: slice,
        box: Box,
    ) -> np.ndarray:
        if pictures is None:
            raise UsageError(f"{self.where}: {stream} was not read; name it in `streams`")
        try:
            return decode(pictures[part], height=self.info.height, width=self.info.width, box=box)
        except DatasetError as e:
            raise DatasetError(f"{self.where}, member {SUFFIXES[stream]}: {e}; {_REMEDY}") from e


class ShardDataset:
    """A folder of shards, read by shard or by sample; `open_dataset` makes it.

    It holds no open file, so it may be used in forked or spawned workers.

    Attributes:
        folder: path or URL.
        manifest: the plan.
        shards: numbers of those that are there; all of them unless it was opened as partial.
    """

    def __init__(self, folder: Location, manifest: Manifest, shards: Sequence[int]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.shards = tuple(shards)
        self._indexes: dict[int, ShardIndex] = {}
        self._places: dict[str, tuple[int, int]] | None = None

    @property
    def found(self) -> int:
        """Number of videos in the plan: those in the shards and the failures together."""
        return self.manifest.found

    def index(self, shard: int) -> ShardIndex:
        """The sidecar of a shard; read once.

        Raises:
            DatasetError: missing, damaged, or of another manifest.
        """
        if shard not in self._indexes:
            self._indexes[shard] = _read_index(self.folder, self.manifest, shard)
        return self._indexes[shard]

    def failures(self) -> list[Failure]:
        """Every planned video that cannot be read, sorted by key; reads all sidecars.

        Those of missing shards are among them: found = readable samples + failures.
        """
        missing = sorted(set(range(len(self.manifest.shards))) - set(self.shards))
        return sorted(
            [
                *shard_failures(self.folder, self.manifest, self.shards),
                *(Failure(s.key, _NOT_MADE) for i in missing for s in self.manifest.shards[i]),
            ]
        )

    def stream(
        self, shards: Iterable[int] | None = None, *, streams: Sequence[Stream] | None = None
    ) -> Iterator[Sample]:
        """The samples of some shards (default: all that are there), one shard after the other."""
        for shard in self.shards if shards is None else shards:
            yield from self.stream_shard(shard, streams=streams)

    def stream_shard(
        self, shard: int, *, streams: Sequence[Stream] | None = None
    ) -> Iterator[Sample]:
        """The samples of a shard in order, one request each, the next one while this is used.

        With all streams (the default) every byte of the tar is verified, each sample before it is
        handed out; with fewer, what is read.

        Raises:
            DatasetError: damage; the message names shard, key, member and what to do.
        """
        index = self.index(shard)
        streams = self._streams(streams)
        _check_size(self.folder, index)
        planned = {sample.key: sample for sample in self.manifest.shards[shard]}
        pending: deque[Future[Sample]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for record in index.samples:
                task = reader.submit(self._read, shard, record, planned[record.key], streams)
                pending.append(task)
                if len(pending) > _READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        if self._range(shard, index.tar_bytes - len(_TAR_END), len(_TAR_END)) != _TAR_END:
            location = files.join(self.folder, tar_name(shard))
            raise DatasetError(f"{location}: the end of the tar is damaged; {_REMEDY}")

    def read_sample(
        self,
        key: str,
        *,
        streams: Sequence[Stream] | None = None,
        start: int = 0,
        stop: int | None = None,
        choose: Callable[[SampleInfo], tuple[int, int]] | None = None,
    ) -> Sample:
        """One sample by range reads: all of it in one, else a small one and one per stream.

        Args:
            key: of the video.
            streams: ``("rgb",)``, ``("flow",)`` or both; default: what the shards have.
            start: first frame, and first flow.
            stop: frame and flow before which to stop; None for the end.
            choose: gives start and stop instead, once it is known how long the video is.

        Raises:
            DatasetError: no such key, a video that failed, damage.
        """
        streams = self._streams(streams)
        if self._places is None:
            self._places = {
                sample.key: (shard, i)
                for shard, samples in enumerate(self.manifest.shards)
                for i, sample in enumerate(samples)
            }
        if key not in self._places:
            raise DatasetError(f"{self.folder}: no video {key!r} in the manifest")
        shard, i = self._places[key]
        if shard not in self.shards:
            raise DatasetError(f"{self.folder}: {key!r} is in {tar_name(shard)}: {_NOT_MADE}")
        index = self.index(shard)
        for failure in index.failures:
            if failure.key == key:
                raise DatasetError(f"{self.folder}: {key!r} was not precomputed: {failure.reason}")
        record = next(record for record in index.samples if record.key == key)
        planned = self.manifest.shards[shard][i]
        if choose is None:
            part = None if (start, stop) == (0, None) else slice(start, stop)
            return self._read(shard, record, planned, streams, part)
        return self._read(shard, record, planned, streams, lambda info: slice(*choose(info)))

    def _streams(self, streams: Sequence[Stream] | None) -> tuple[Stream, ...]:
        chosen = self.manifest.streams if streams is None else tuple(streams)
        for stream in chosen:
            if stream not in SUFFIXES:
                raise UsageError(f"stream {stream!r} is not one of {', '.join(SUFFIXES)}")
            if stream not in self.manifest.streams:
                raise UsageError(f"{self.folder} was made without {stream}")
        return chosen

    def _range(self, shard: int, start: int, length: int) -> bytes:
        location = files.join(self.folder, tar_name(shard))
        with readable(location):
            data = files.read_range(location, start, length)
        if len(data) != length:
            raise DatasetError(f"{location} ends at {start + len(data):,} bytes; {_REMEDY}")
        return data

    def _read(
        self,
        shard: int,
        record: SampleRecord,
        planned: PlannedSample,
        streams: tuple[Stream, ...],
        part: slice | Callable[[SampleInfo], slice] | None = None,
    ) -> Sample:
        """Read and verify a sample, or the pictures ``part`` of some streams."""
        where = f"{files.join(self.folder, tar_name(shard))}, sample {record.key!r}"
        pictures: dict[Stream, tuple[bytes, ...]] = {}
        if streams == self.manifest.streams and part is None:
            data = self._range(shard, record.offset, record.size)
            _verify(record, data, where)
            info = _info(record, _content(record, data, "json"), planned, where)
            for s in streams:
                pictures[s] = info.pictures(s).split(_content(record, data, SUFFIXES[s]))
        else:
            member = record.member("json")
            data = self._range(shard, member.offset, member.size)
            if google_crc32c.value(data) != member.crc32c:
                raise DatasetError(f"{where}, member json is damaged: {_CHECKSUM}; {_REMEDY}")
            info = _info(record, data, planned, where)
            part = part(info) if callable(part) else part or slice(None)
            for s in streams:
                table, member = info.pictures(s), record.member(SUFFIXES[s])
                offset, length = table.span(part)
                pictures[s] = table.split(self._range(shard, member.offset + offset, length), part)
                if tuple(map(google_crc32c.value, pictures[s])) != table.crc32c[part]:
                    raise DatasetError(
                        f"{where}, member {member.suffix} is damaged: {_CHECKSUM}; {_REMEDY}"
                    )
        start = part.indices(len(info.rgb))[0] if isinstance(part, slice) else 0
        return Sample(info, start, pictures.get("rgb"), pictures.get("flow"), where)


def open_dataset(folder: Location, *, partial: bool = False) -> ShardDataset:
    """Open a folder that `precompute` wrote.

    Args:
        folder: path or URL.
        partial: also take a folder in which shards are missing.

    Raises:
        DatasetError: no manifest, a damaged one, or missing shards; says how many and what to do.
    """
    manifest = read_manifest(folder)
    names = _names(folder)
    shards = range(len(manifest.shards))
    there = [i for i in shards if names >= {tar_name(i), sidecar_name(i)}]
    if len(there) < len(shards) and not partial:
        first = next(i for i in shards if i not in set(there))
        lacking = sidecar_name(first) if sidecar_name(first) not in names else tar_name(first)
        raise DatasetError(
            f"{folder}: {len(shards) - len(there)} of {len(shards)} shards are not complete (the"
            f" first lacks {lacking}); run precompute again to finish it, or pass --partial"
        )
    return ShardDataset(folder, manifest, there)


def _content(record: SampleRecord, data: bytes, suffix: str) -> bytes:
    """A member's contents, from the sample's bytes."""
    member = record.member(suffix)
    return data[member.offset - record.offset :][: member.size]


def _verify(record: SampleRecord, data: bytes, where: str) -> None:
    """Compare a sample's bytes with its checksum; a mismatch is traced to the member."""
    if google_crc32c.value(data) == record.crc32c:
        return
    for member in record.members:
        if google_crc32c.value(_content(record, data, member.suffix)) != member.crc32c:
            raise DatasetError(
                f"{where}, member {member.suffix} is damaged: {_CHECKSUM}; {_REMEDY}"
            )
    raise DatasetError(f"{where}: a tar header or padding is damaged: {_CHECKSUM}; {_REMEDY}")


def _info(record: SampleRecord, data: bytes, planned: PlannedSample, where: str) -> SampleInfo:
    """The contents of the ``json`` member, which must fit the plan and the other members."""
    info = SampleInfo.from_json(data, f"{where}, member json")
    if any(getattr(info, f.name) != getattr(planned, f.name) for f in fields(planned)):
        raise DatasetError(f"{where}: member json is not what was planned; {_REMEDY}")
    for suffix, pictures in (("rgb.mjpeg", info.rgb), ("flow.mpng", info.flow)):
        sizes = [m.size for m in record.members if m.suffix == suffix]
        if sizes != ([] if pictures is None else [sum(pictures.sizes)]):
            raise DatasetError(f"{where}: member json does not fit {suffix}; {_REMEDY}")
    return info


def _names(folder: Location) -> set[str]:
    with readable(str(folder)):
        return set(files.names_in(folder))


def _read_small(location: str) -> bytes:
    with readable(location), files.open_read(location) as file:
        data = file.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise DatasetError(f"{location} has more than {_MAX_JSON_BYTES >> 20} MiB")
    return data


def _read_index(folder: Location, manifest: Manifest, shard: int) -> ShardIndex:
    location = files.join(folder, sidecar_name(shard))
    return ShardIndex.from_json(_read_small(location), manifest, shard, location)


def shard_failures(folder: Location, manifest: Manifest, shards: Iterable[int]) -> list[Failure]:
    """The videos of complete shards that could not be encoded, by key; reads the sidecars.

    Raises:
        DatasetError: a sidecar is missing, damaged or of another manifest.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        indexes = pool.map(lambda shard: _read_index(folder, manifest, shard), shards)
        return sorted(failure for index in indexes for failure in index.failures)


def _check_size(folder: Location, index: ShardIndex) -> None:
    location = files.join(folder, tar_name(index.shard))
    with readable(location):
        size = files.size(location)
    if size != index.tar_bytes:
        raise DatasetError(
            f"{location} has {size:,} bytes, but its sidecar says {index.tar_bytes:,}; {_REMEDY}"
        )
