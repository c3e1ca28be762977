"""Reads shards: whole tars one after the other, or a sample by range reads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from i3d import files
from i3d.classes import readable
from i3d.data.shards.folder import (
    check_size,
    find_shards,
    list_names,
    read_index,
    shard_failures,
)
from i3d.data.shards.format import (
    REMEDY,
    SUFFIXES,
    TAR_END,
    Failure,
    Member,
    SampleInfo,
    SampleRecord,
    ShardIndex,
    VideoInfo,
    sidecar_name,
    tar_name,
)
from i3d.data.shards.manifest import Manifest, PlannedSample, read_manifest
from i3d.data.shards.pictures import EVERYTHING, Box, decode_flow, decode_rgb
from i3d.errors import DatasetError, UsageError
from i3d.files import Location
from i3d.presets import Stream

_THREADS = 16  # for the sidecars: small files
_READ_AHEAD = 1  # samples that are read while one is used; 6 to 10 MB each
# Bounds for files that come from elsewhere: a sparse tar of a few kilobytes may claim gigabytes.
_MAX_READ_BYTES = 1 << 30  # in one request; the ten seconds that are stored by default have 9 MB
_MAX_WHOLE_BYTES = 1 << 26  # of a sample that is read at once, before its sizes are known
_MAX_INFO_BYTES = 1 << 26  # of its ``json`` member: 20 a picture
_CHECKSUM = "its checksum (CRC32C) does not match"
_NOT_MADE = "its shard is missing; run precompute again to make it"


Decoder = Callable[..., np.ndarray]  # of pictures, height, width and box; see `decode_rgb`


@dataclass(frozen=True)
class Sample:
    """A sample as it was read: verified, not yet decoded.

    Attributes:
        info: what the sample's ``json`` member says.
        start: the frame of the video that ``rgb[0]`` is, and the flow that ``flow[0]`` is.
        rgb: JPEGs; None if not asked for.
        flow: PNGs; None if not asked for, or not in these shards.
        where: tar and key, for messages.
    """

    info: VideoInfo
    start: int
    rgb: tuple[bytes, ...] | None
    flow: tuple[Any, ...] | None
    where: str

    # How pictures of a stream are decoded, what they are called, and what to do about damage.
    decoders: ClassVar[Mapping[Stream, Decoder]] = {"rgb": decode_rgb, "flow": decode_flow}
    members: ClassVar[Mapping[Stream, str]] = SUFFIXES
    remedy: ClassVar[str] = REMEDY

    @property
    def key(self) -> str:
        """The video's key."""
        return self.info.key

    @property
    def class_index(self) -> int | None:
        """Position in the class list; None when unlabelled."""
        return self.info.class_index

    def count(self, stream: Stream) -> int:
        """Number of pictures that were read of a stream; 0 if it was not asked for."""
        return len((self.rgb if stream == "rgb" else self.flow) or ())

    def decode(
        self, stream: Stream, start: int = 0, stop: int | None = None, *, box: Box = EVERYTHING
    ) -> np.ndarray:
        """Decode pictures ``start:stop`` of a stream: see `frames` and `stored_flow`."""
        pictures = self.rgb if stream == "rgb" else self.flow
        if pictures is None:
            raise UsageError(f"{self.where}: {stream} was not read; name it in `streams`")
        try:
            return self.decoders[stream](
                pictures[start:stop], height=self.info.height, width=self.info.width, box=box
            )
        except DatasetError as e:
            member = self.members[stream]
            raise DatasetError(f"{self.where}, member {member}: {e}; {self.remedy}") from e

    def frames(
        self, start: int = 0, stop: int | None = None, *, box: Box = EVERYTHING
    ) -> np.ndarray:
        """Decode frames ``rgb[start:stop]`` and no others: uint8 (T, H, W, 3), or a box of each.

        Raises:
            DatasetError: a picture does not decode.
            UsageError: RGB was not read.
        """
        return self.decode("rgb", start, stop, box=box)

    def stored_flow(
        self, start: int = 0, stop: int | None = None, *, box: Box = EVERYTHING
    ) -> np.ndarray:
        """Decode flows ``flow[start:stop]`` and no others: uint8 (T, H, W, 2), or a box of each.

        128 is no motion.

        Raises:
            DatasetError: a picture does not decode.
            UsageError: flow was not read.
        """
        return self.decode("flow", start, stop, box=box)


class StoredSample:
    """A sample where it lies in its tar, of which it reads what it is asked for.

    Args:
        tar: location of the shard.
        record: where the sample lies in it.
        planned: what the manifest says of it.
        streams: names of the streams to read.
        complete: whether these are all streams of the shards.
    """

    def __init__(
        self,
        tar: str,
        record: SampleRecord,
        planned: PlannedSample,
        streams: tuple[Stream, ...],
        *,
        complete: bool,
    ) -> None:
        self._tar, self._record, self._planned = tar, record, planned
        self._streams, self._complete = streams, complete
        self._info: SampleInfo | None = None
        self._where = f"{tar}, sample {record.key!r}"

    @property
    def info(self) -> SampleInfo:
        """What its ``json`` member says: a small request, once.

        Raises:
            DatasetError: damage.
        """
        if self._info is None:
            member = self._record.member("json")
            if member.size > _MAX_INFO_BYTES:
                raise DatasetError(
                    f"{self._where}, member json has {member.size:,} bytes; at most"
                    f" {_MAX_INFO_BYTES:,} are read; {REMEDY}"
                )
            data = read_range(self._tar, member.offset, member.size)
            if google_crc32c.value(data) != member.crc32c:
                raise self._make_error(member)
            self._info = parse_info(self._record, data, self._planned, self._where)
        return self._info

    def read(self, start: int = 0, stop: int | None = None) -> Sample:
        """Read and verify its pictures ``start:stop``.

        All of all streams are one request, unless they are long, and so is a part of one stream.

        Raises:
            DatasetError: damage, or more than 1 GiB.
        """
        whole = self._complete and (start, stop) == (0, None)
        if whole and self._record.size <= _MAX_WHOLE_BYTES:
            return self._read_whole()
        part = slice(start, stop)
        pictures = {stream: self._read_pictures(stream, part) for stream in self._streams}
        return self._make_sample(pictures, part.indices(len(self.info.rgb))[0])

    def _read_whole(self) -> Sample:
        record = self._record
        data = read_range(self._tar, record.offset, record.size)
        if google_crc32c.value(data) != record.crc32c:
            for member in record.members:
                if google_crc32c.value(self._cut_member(data, member.suffix)) != member.crc32c:
                    raise self._make_error(member)
            raise DatasetError(
                f"{self._where}: a tar header or padding is damaged: {_CHECKSUM}; {REMEDY}"
            )
        content = self._cut_member(data, "json")
        self._info = info = parse_info(record, content, self._planned, self._where)
        pictures = {
            stream: info.pictures(stream).split(self._cut_member(data, SUFFIXES[stream]))
            for stream in self._streams
        }
        return self._make_sample(pictures, 0)

    def _cut_member(self, data: bytes, suffix: str) -> bytes:
        """A member's contents, from the sample's bytes."""
        member = self._record.member(suffix)
        start = member.offset - self._record.offset
        return data[start : start + member.size]

    def _read_pictures(self, stream: Stream, part: slice) -> tuple[bytes, ...]:
        table, member = self.info.pictures(stream), self._record.member(SUFFIXES[stream])
        offset, length = table.span(part)
        pictures = table.split(read_range(self._tar, member.offset + offset, length), part)
        if tuple(map(google_crc32c.value, pictures)) != table.crc32c[part]:
            raise self._make_error(member)
        return pictures

    def _make_sample(self, pictures: dict[Stream, tuple[bytes, ...]], start: int) -> Sample:
        return Sample(self.info, start, pictures.get("rgb"), pictures.get("flow"), self._where)

    def _make_error(self, member: Member) -> DatasetError:
        return DatasetError(
            f"{self._where}, member {member.suffix} is damaged: {_CHECKSUM}; {REMEDY}"
        )


def parse_info(record: SampleRecord, data: bytes, planned: PlannedSample, where: str) -> SampleInfo:
    """The contents of the ``json`` member, which must fit the plan and the other members.

    Raises:
        DatasetError: they do not.
    """
    info = SampleInfo.from_json(data, f"{where}, member json")
    both = {f.name for f in fields(planned)} & {f.name for f in fields(info)}
    if any(getattr(info, name) != getattr(planned, name) for name in both):
        raise DatasetError(f"{where}: member json is not what was planned; {REMEDY}")
    for suffix, pictures in ((SUFFIXES["rgb"], info.rgb), (SUFFIXES["flow"], info.flow)):
        sizes = [m.size for m in record.members if m.suffix == suffix]
        if sizes != ([] if pictures is None else [sum(pictures.sizes)]):
            raise DatasetError(f"{where}: member json does not fit {suffix}; {REMEDY}")
    return info


def read_range(tar: str, start: int, length: int) -> bytes:
    """Those bytes of a tar.

    Raises:
        DatasetError: there are not as many, or more than are read at once.
    """
    if length > _MAX_READ_BYTES:
        raise DatasetError(
            f"{tar}: {length:,} bytes of one video; at most {_MAX_READ_BYTES:,} are read at once:"
            " ask for fewer frames of it"
        )
    with readable(tar):
        data = files.read_range(tar, start, length)
    if len(data) != length:
        raise DatasetError(f"{tar} ends at {start + len(data):,} bytes; {REMEDY}")
    return data


class ShardDataset:
    """A folder of shards, read by shard or by sample; `open_dataset` makes it.

    It holds no open file, so it may be used in forked or spawned workers.

    Attributes:
        folder: path or URL.
        manifest: the plan.
        shards: numbers of the shards that are there; all unless it was opened as partial.
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
            self._indexes[shard] = read_index(self.folder, self.manifest, shard)
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

    def failure(self, key: str) -> str | None:
        """Why a planned video is in no shard; None where it is in one, or its shard is missing."""
        shard, _ = self._find_place(key)
        if shard not in self.shards:
            return None
        reasons = {failure.key: failure.reason for failure in self.index(shard).failures}
        return reasons.get(key)

    def find_pictures(self, stream: Stream) -> dict[str, bool]:
        """Key of every readable video -> whether it has pictures of a stream; reads all sidecars.

        Raises:
            DatasetError: a sidecar is damaged.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            indexes = list(pool.map(self.index, self.shards))
        return {
            record.key: record.member(SUFFIXES[stream]).size > 0
            for index in indexes
            for record in index.samples
        }

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
        streams = self._choose_streams(streams)
        check_size(self.folder, index)
        planned = {sample.key: sample for sample in self.manifest.shards[shard]}
        pending: deque[Future[Sample]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for record in index.samples:
                stored = self._stored_sample(shard, record, planned[record.key], streams)
                pending.append(reader.submit(stored.read))
                if len(pending) > _READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        tar = files.join(self.folder, tar_name(shard))
        if read_range(tar, index.tar_bytes - len(TAR_END), len(TAR_END)) != TAR_END:
            raise DatasetError(f"{tar}: the end of the tar is damaged; {REMEDY}")

    def read_sample(
        self,
        key: str,
        *,
        streams: Sequence[Stream] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Sample:
        """One sample by range reads: all of it in one, else a small one and one per stream.

        Args:
            key: the video's key.
            streams: ``("rgb",)``, ``("flow",)`` or both; default: what the shards have.
            start: first frame, and first flow.
            stop: frame and flow before which to stop; None for the end.

        Raises:
            DatasetError: no such key, a video that failed, damage.
        """
        return self.find_sample(key, streams=streams).read(start, stop)

    def find_sample(self, key: str, *, streams: Sequence[Stream] | None = None) -> StoredSample:
        """Where a sample lies: what to read of it may then depend on its ``info``.

        Args:
            key: the video's key.
            streams: ``("rgb",)``, ``("flow",)`` or both; default: what the shards have.

        Raises:
            DatasetError: no such key, or a video that failed.
        """
        chosen = self._choose_streams(streams)
        shard, i = self._find_place(key)
        if shard not in self.shards:
            raise DatasetError(f"{self.folder}: {key!r} is in {tar_name(shard)}: {_NOT_MADE}")
        if (reason := self.failure(key)) is not None:
            raise DatasetError(f"{self.folder}: {key!r} was not precomputed: {reason}")
        record = next(record for record in self.index(shard).samples if record.key == key)
        return self._stored_sample(shard, record, self.manifest.shards[shard][i], chosen)

    def _find_place(self, key: str) -> tuple[int, int]:
        """Shard of a video, and its number there."""
        if self._places is None:
            self._places = {
                sample.key: (shard, i)
                for shard, samples in enumerate(self.manifest.shards)
                for i, sample in enumerate(samples)
            }
        if key not in self._places:
            raise DatasetError(f"{self.folder}: no video {key!r} in the manifest")
        return self._places[key]

    def _stored_sample(
        self, shard: int, record: SampleRecord, planned: PlannedSample, streams: tuple[Stream, ...]
    ) -> StoredSample:
        tar = files.join(self.folder, tar_name(shard))
        complete = streams == self.manifest.streams
        return StoredSample(tar, record, planned, streams, complete=complete)

    def _choose_streams(self, streams: Sequence[Stream] | None) -> tuple[Stream, ...]:
        chosen = self.manifest.streams if streams is None else tuple(streams)
        for stream in chosen:
            if stream not in SUFFIXES:
                raise UsageError(f"stream {stream!r} is not one of {', '.join(SUFFIXES)}")
            if stream not in self.manifest.streams:
                raise UsageError(f"{self.folder} was made without {stream}")
        return chosen


def open_dataset(folder: Location, *, partial: bool = False) -> ShardDataset:
    """Open a folder that `precompute` wrote.

    Args:
        folder: path or URL.
        partial: also take a folder in which shards are missing.

    Raises:
        DatasetError: no manifest, a damaged one, or missing shards; says how many and what to do.
    """
    manifest = read_manifest(folder)
    names = list_names(folder)
    shards = range(len(manifest.shards))
    there = find_shards(names, shards)
    if len(there) < len(shards) and not partial:
        first = next(i for i in shards if i not in set(there))
        lacking = sidecar_name(first) if sidecar_name(first) not in names else tar_name(first)
        raise DatasetError(
            f"{folder}: {len(shards) - len(there)} of {len(shards)} shards are not complete (the"
            f" first lacks {lacking}); run precompute again to finish it, or pass --partial"
        )
    return ShardDataset(folder, manifest, there)
