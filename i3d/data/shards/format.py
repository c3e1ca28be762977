"""Precomputed shards: RGB frames and flow of many videos in a few large files.

    manifest.json      the plan: dataset, classes, settings, versions, the samples of every shard
    shard-00000.tar    the pictures, in WebDataset's layout
    shard-00000.json   its sidecar: where everything is in the tar, checksums, failures
    ...
    failures.csv       `video,reason` of every video that is in no shard, once all are there

All of it depends on data and settings alone, never on time, machine or number of processes, so the
same inputs give the same bytes. Of the source files the manifest keeps the sizes and, behind a URL,
the ETags. A tar becomes visible before its sidecar: a shard is complete when its sidecar is there,
and a tar without one is made again.

**Tar.** ustar headers (pax ones for long or non-ASCII names), mode 644, time and owner 0; samples
in the order of the manifest, each as these members without a gap; 1,024 zeros at the end.

    KEY.json         what the sample is, and of every picture its size in bytes and checksum
    KEY.cls          class index as decimal text; absent when unlabelled
    KEY.rgb.mjpeg    T frames: JPEGs (of quality 95, 4:2:0), end to end
    KEY.flow.mpng    T - 1 flows: gray 8-bit PNGs of height 2H, x above y, quantised as
                     `i3d.clips.quantize_flow`, end to end; absent without flow

A key holds no dot: WebDataset takes what follows a base name's first dot for a suffix.

**JSON.** Field names are those of `Manifest` (in ``manifest.py``), and below of `ShardIndex` (the
sidecar) and `SampleInfo` (``KEY.json``). Manifest and sidecar are ASCII; their last field is a
seal, the SHA-256 of all bytes before its line (``head -n -2 manifest.json | sha256sum``), so that
any change is noticed. The sidecar names the manifest that it belongs to by its seal.

**Checksums.** CRC32C of each picture, each member and each sample, whose bytes run from its first
header to the end of its last padding. Samples lie end to end from 0, so with the zeros at the end
every byte of a tar is covered. The SHA-256 of the tar is for ``sha256sum``, after a copy.

Reading never trusts: sizes are bounded, types and checksums checked, a picture's header compared
with its sample before it is decoded. Damage raises `DatasetError` with shard, key, member and
remedy.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, Self, cast

from i3d.data.shards.manifest import Manifest, PlannedSample
from i3d.errors import DatasetError
from i3d.presets import Stream
from i3d.records import parse, plain, read_sealed, seal

FAILURES_FILE = "failures.csv"
SUFFIXES: dict[Stream, str] = {"rgb": "rgb.mjpeg", "flow": "flow.mpng"}

BLOCK = 512  # bytes; a tar consists of these
TAR_END = bytes(2 * BLOCK)
REMEDY = "copy the shard again, or delete its .tar and .json and run precompute again"

# Bounds for files that come from elsewhere, far above what is written.
_MAX_SIDE = 1 << 14  # pixels
_MAX_PIXELS = 1 << 26  # of a frame; as for videos
_MAX_PICTURE_HEADER = 1 << 16  # bytes of a picture besides its pixels


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """A video that is in no shard, and why: one line without paths."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of one stream of a sample, which lie end to end in one member.

    Attributes:
        sizes: bytes of each picture.
        crc32c: checksum of each picture.
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


class VideoInfo(Protocol):
    """What is known of a video before its pictures are read.

    Attributes:
        key: unique name.
        class_index: position in the class list; None when unlabelled.
        height: pixels of a frame.
        width: pixels of a frame.
        damage: what was lost of a damaged video; None for a sound one.
    """

    @property
    def key(self) -> str: ...  # noqa: D102 (above)
    @property
    def class_index(self) -> int | None: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def damage(self) -> str | None: ...  # noqa: D102

    def length(self, stream: Stream) -> int:
        """Number of pictures of a stream."""


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What a sample's ``json`` member says: enough to use it without manifest and sidecar.

    Attributes:
        key: unique name, see `PlannedSample`.
        location: path of the file, see `PlannedSample`.
        class_index: position in the class list; None when unlabelled.
        class_name: the name in the class list; None when unlabelled.
        start_seconds: where the video begins in the file, see `PlannedSample`.
        end_seconds: where it ends, see `PlannedSample`.
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
        # JPEG and PNG of this size need fewer bytes, however little they compress.
        most = 4 * self.height * self.width + _MAX_PICTURE_HEADER
        for pictures in (self.rgb, self.flow):
            if pictures is not None and max(pictures.sizes, default=0) > most:
                raise DatasetError(
                    f"a picture of {max(pictures.sizes):,} bytes; one of {self.width}x{self.height}"
                    f" has at most {most:,}"
                )
        if not len(self.rgb) or (self.flow is not None and len(self.flow) != len(self.rgb) - 1):
            raise DatasetError("a sample has at least one frame, and one flow less than frames")

    def pictures(self, stream: Stream) -> Pictures:
        """The pictures of a stream that the shards have."""
        return cast(Pictures, self.rgb if stream == "rgb" else self.flow)

    def length(self, stream: Stream) -> int:
        """Number of pictures of a stream that the shards have."""
        return len(self.pictures(stream))

    def to_json(self) -> bytes:
        """As stored in the member."""
        return (
            json.dumps({"format": "i3d sample 1", **plain(self)}, allow_nan=False).encode("ascii")
            + b"\n"
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DatasetError: of another format, or a value that makes no sense.
        """
        return parse("i3d sample 1", cls, data, where)


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
        shard: number of the shard.
        tar_bytes: size of the tar.
        tar_sha256: checksum of the whole tar, as ``sha256sum`` prints it.
        samples: the samples in the tar, in order.
        failures: the other samples of the plan.
    """

    manifest: str
    shard: int
    tar_bytes: int
    tar_sha256: str
    samples: tuple[SampleRecord, ...]
    failures: tuple[Failure, ...]

    def to_json(self) -> bytes:
        """As stored in the sidecar."""
        return seal("i3d shard 1", self)

    @classmethod
    def from_json(cls, data: bytes, manifest: Manifest, shard: int, where: str) -> Self:
        """Read what `to_json` wrote for this shard of the manifest.

        Raises:
            DatasetError: damaged, of another manifest or shard, or not what was planned.
        """
        index = read_sealed("i3d shard 1", cls, data, where)
        if index.manifest != manifest.seal:
            raise DatasetError(
                f"{where} belongs to another manifest ({index.manifest[:12]}..., not"
                f" {manifest.seal[:12]}...); {REMEDY}"
            )
        if index.shard != shard:
            raise DatasetError(f"{where} is the sidecar of shard {index.shard}; {REMEDY}")
        _check_layout(index, manifest, where)
        return index


def _check_layout(index: ShardIndex, manifest: Manifest, where: str) -> None:
    """Refuse samples that were not planned, members that do not lie as in a tar, and gaps."""
    plan = manifest.shards[index.shard]
    failed = {failure.key for failure in index.failures}
    planned = [sample for sample in plan if sample.key not in failed]
    made = [record.key for record in index.samples]
    if made != [s.key for s in planned] or len(made) + len(index.failures) != len(plan):
        raise DatasetError(f"{where}: not the samples that the manifest plans; {REMEDY}")
    end = 0
    for record, sample in zip(index.samples, planned, strict=True):
        fits = [m.suffix for m in record.members] == _suffixes(sample, manifest.streams)
        fits = fits and record.offset == end
        for m in record.members:
            fits = fits and m.size >= 0 and m.offset >= end + BLOCK and m.offset % BLOCK == 0
            end = m.offset + pad(m.size)
        if not fits or end != record.offset + record.size:
            raise DatasetError(f"{where}, {record.key}: offsets are not those of a tar; {REMEDY}")
    if end + len(TAR_END) != index.tar_bytes:
        raise DatasetError(f"{where}: the samples do not fill the tar; {REMEDY}")


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


def pad(size: int) -> int:
    """The bytes that a file of that size takes in a tar."""
    return -(-size // BLOCK) * BLOCK
