"""A folder that the Chainer program precomputed, as a dataset like our shards."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import cv2
import numpy as np
import simplejpeg

from i3d import files
from i3d.classes import ClassList, class_list, numbered_classes, readable
from i3d.data.chainer.samples import (
    MAX_LABEL,
    PictureMembers,
    SampleTable,
    find_sample_pictures,
    find_zip_pictures,
    read_table,
)
from i3d.data.shards import Manifest, PlannedSample, Sample
from i3d.data.shards.pictures import EVERYTHING, Box, decode_rgb
from i3d.data.zip_directory import REMEDY, Member, read_members
from i3d.errors import DatasetError, UsageError
from i3d.files import Location
from i3d.presets import CHAINER_I3D, STREAMS, Stream

_THREADS = 8  # for small reads
_MAX_PIXELS = 1 << 26  # of a frame; as for videos and shards
_SHARD = re.compile(r"shard_(?:(\d{1,9})_)?(\d{1,9})\.zip")
_CLASS_FOLDER = re.compile(r"class_(\d{1,9})")
_SAMPLE_FILE = re.compile(r"sample_(\d{1,18})\.zip")
_PARTS: dict[Stream, tuple[str, ...]] = {"rgb": ("rgb",), "flow": ("flow_x", "flow_y")}


def decode_flow_pairs(
    pairs: Sequence[tuple[bytes, bytes]], *, height: int, width: int, box: Box = EVERYTHING
) -> np.ndarray:
    """Stored flow, uint8 (T, H, W, 2), from T pairs of gray JPEGs, x and y; or a box of each.

    Raises:
        DatasetError: a picture is damaged, not gray, or of another size.
    """
    rows, columns = len(range(height)[box[0]]), len(range(width)[box[1]])
    flow = np.empty((len(pairs), rows, columns, 2), np.uint8)
    for i, pair in enumerate(pairs):
        planes = []
        for jpeg in pair:
            try:
                found = simplejpeg.decode_jpeg_header(jpeg)
                if found[:3] != (height, width, "Gray"):
                    raise DatasetError(
                        f"flow {i} is a {found[2]} JPEG of {found[1]}x{found[0]}; expected a gray"
                        f" one of {width}x{height}"
                    )
                planes.append(simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", fastdct=False))
            except ValueError as error:
                raise DatasetError(f"flow {i} is a damaged JPEG ({error})") from error
        cv2.merge([plane[:, :, 0][box] for plane in planes], flow[i])
    return flow


@dataclass(frozen=True)
class ZipVideoInfo:
    """What is known of a video in a zip; see `i3d.data.shards.SampleInfo`."""

    key: str
    class_index: int | None
    height: int
    width: int
    lengths: Mapping[Stream, int]
    damage: str | None = None

    def length(self, stream: Stream) -> int:
        """Number of pictures of a stream."""
        return self.lengths[stream]


class ZipSample(Sample):
    """Pictures as they were read: flow is a pair of JPEGs, x and y."""

    decoders: ClassVar = {"rgb": decode_rgb, "flow": decode_flow_pairs}
    members: ClassVar = {"rgb": "rgb", "flow": "flow_x and flow_y"}
    remedy: ClassVar = REMEDY


@dataclass(frozen=True)
class _Place:
    """Where a video is: entries ``start`` to ``stop`` of a zip's directory, or zips of its own.

    Attributes:
        zips: of rgb, flow_x and flow_y; of rgb alone where that zip has all of it.
        number: k of ``sample_k`` in a zip of many.
        start: see above.
        stop: 0 for zips of its own.
    """

    zips: Mapping[str, str]
    number: int = 0
    start: int = 0
    stop: int = 0

    def find_pictures(self, parts: Sequence[str]) -> PictureMembers:
        if self.stop:
            return find_sample_pictures(
                self.zips["rgb"], self.start, self.stop, number=self.number, parts=parts
            )
        return {p: find_zip_pictures(self.zips[p]) if p in self.zips else () for p in parts}


class StoredZipVideo:
    """A video where it lies, of which it reads what it is asked for."""

    def __init__(self, place: _Place, planned: PlannedSample, streams: Sequence[Stream]) -> None:
        self._place, self._planned, self._streams = place, planned, streams
        self._where = f"{place.zips['rgb']}, {planned.key}"

    @cached_property
    def _pictures(self) -> PictureMembers:
        parts = [part for s in dict.fromkeys(("rgb", *self._streams)) for part in _PARTS[s]]
        try:
            pictures = self._place.find_pictures(parts)
        except DatasetError as error:
            raise DatasetError(f"{self._where}: {error}") from error
        counts = {part: len(members) for part, members in pictures.items()}
        if not counts["rgb"]:
            raise DatasetError(f"{self._where}: there are no RGB frames; {REMEDY}")
        if any(n != counts["rgb"] - 1 for part, n in counts.items() if part != "rgb"):
            shown = ", ".join(f"{n} {part}" for part, n in counts.items())
            raise DatasetError(
                f"{self._where}: {shown}; there must be one flow less than frames; {REMEDY}"
            )
        return pictures

    @cached_property
    def info(self) -> ZipVideoInfo:
        """How many pictures there are of what is read, and their size: that of the first frame.

        Raises:
            DatasetError: damage.
        """
        first = self._read("rgb", self._pictures["rgb"][:1])[0]
        try:
            height, width = simplejpeg.decode_jpeg_header(first)[:2]
        except ValueError as error:
            raise DatasetError(f"{self._where}: frame 0 is no JPEG ({error}); {REMEDY}") from error
        if not 1 <= height * width <= _MAX_PIXELS:
            raise DatasetError(f"{self._where}: frames of {width}x{height} pixels; {REMEDY}")
        lengths: dict[Stream, int] = {
            stream: len(self._pictures.get(_PARTS[stream][0], ())) for stream in STREAMS
        }
        planned = self._planned
        return ZipVideoInfo(planned.key, planned.class_index, height, width, lengths)

    def read(self, start: int = 0, stop: int | None = None) -> ZipSample:
        """Read and verify its pictures ``start:stop``.

        Raises:
            DatasetError: damage.
        """
        info, part = self.info, slice(start, stop)
        read = {
            name: self._read(name, self._pictures[name][part])
            for stream in self._streams
            for name in _PARTS[stream]
        }
        rgb = tuple(read["rgb"]) if "rgb" in read else None
        flow = None
        if "flow" in self._streams:
            flow = tuple(zip(read["flow_x"], read["flow_y"], strict=True))
        return ZipSample(info, part.indices(info.length("rgb"))[0], rgb, flow, self._where)

    def _read(self, part: str, members: Sequence[Member]) -> list[bytes]:
        zips = self._place.zips
        return read_members(zips.get(part, zips["rgb"]), members)


class ChainerDataset:
    """A folder of zips, read by sample; `open_chainer_folder` makes it.

    It holds no open file, so it may be used in forked or spawned workers.

    Attributes:
        folder: path or URL.
        manifest: what precompute would have planned: the samples in the program's own order.
    """

    def __init__(
        self,
        folder: Location,
        manifest: Manifest,
        places: Mapping[str, _Place],
        failures: Mapping[str, str],
        flows: Mapping[str, int] | None,
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._places, self._failures, self._flows = places, failures, flows
        self._planned: dict[str, PlannedSample] = {}

    @property
    def found(self) -> int:
        """Number of videos."""
        return self.manifest.found

    def failure(self, key: str) -> str | None:
        """Why a video cannot be used, where that was seen at once."""
        return self._failures.get(key)

    def find_zips(self, key: str) -> tuple[str, ...]:
        """The locations of the zips that hold a video."""
        return tuple(self._places[key].zips.values())

    def find_pictures(self, stream: Stream) -> dict[str, bool]:
        """Key of every readable video -> whether it has pictures of a stream."""
        keys = [key for key in self._places if key not in self._failures]
        if stream == "rgb":
            return dict.fromkeys(keys, True)
        if self._flows is not None:
            return {key: self._flows[key] > 0 for key in keys}
        return {key: "flow_x" in self._places[key].zips for key in keys}

    def find_sample(self, key: str, *, streams: Sequence[Stream] | None = None) -> StoredZipVideo:
        """Where a video lies; see `i3d.data.shards.ShardDataset.find_sample`.

        Raises:
            DatasetError: no such key, or a video that cannot be used.
            UsageError: an unknown stream, or flow where there is none.
        """
        chosen = self.manifest.streams if streams is None else tuple(streams)
        for stream in chosen:
            if stream not in self.manifest.streams:
                raise UsageError(f"{self.folder} was made without {stream}")
        if key not in self._places:
            raise DatasetError(f"{self.folder}: no video {key!r} in it")
        if (reason := self.failure(key)) is not None:
            raise DatasetError(f"{self.folder}: {key!r}: {reason}")
        if not self._planned:
            self._planned = {sample.key: sample for sample in self.manifest.samples()}
        return StoredZipVideo(self._places[key], self._planned[key], chosen)

    def read_sample(
        self,
        key: str,
        *,
        streams: Sequence[Stream] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> ZipSample:
        """Pictures ``start:stop`` of a video; see `find_sample`."""
        return self.find_sample(key, streams=streams).read(start, stop)


# --- opening --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A sample before classes are known; ``label`` is -1 where it cannot be used, and why."""

    key: str
    location: str
    place: _Place
    label: int
    failure: str | None
    flows: int | None


def is_chainer_folder(folder: Location) -> bool:
    """Whether a folder holds zips as the Chainer program named them."""
    if not files.is_dir(folder):
        return False
    with readable(os.fspath(folder)):
        names = files.names_in(folder)
        if any(_SHARD.fullmatch(name) for name in names):
            return True
        rgb = files.join(folder, "rgb")
        return "rgb" in names and files.is_dir(rgb) and any(_class_folders(rgb))


def open_chainer_folder(
    folder: Location,
    *,
    classes: Location | ClassList | None = None,
    say: Callable[[str], None] | None = None,
) -> ChainerDataset:
    """Open a folder of either layout.

    Args:
        folder: path or URL.
        classes: names that the labels index, see `i3d.classes.class_list`; None: the labels are
            numbers, see `i3d.classes.numbered_classes`.
        say: takes what the user should know, a line at a time.

    Raises:
        DatasetError: a zip is damaged, has members that the program did not write, or none of the
            samples a label below the number of classes.
        UsageError: classes that have no meaning here.
    """
    where = os.fspath(folder).rstrip("/")
    if classes == "folders":
        raise UsageError(
            f"--classes folders: {where} holds no names, only their numbers; write the sorted names"
            " of the class folders that were there to a file, or name kinetics400 or kinetics600"
        )
    tell = say or (lambda line: None)
    with readable(where):
        names = files.names_in(where)
    if any(map(_SHARD.fullmatch, names)):
        groups, size = _find_in_shards(where, names, tell)
    else:
        groups, size = _find_in_classes(where)
    found = [sample for group in groups for sample in group]
    labels = [sample.label for sample in found]
    chosen = class_list(classes) if classes is not None else _number(max(labels))
    for sample in found if chosen is not None else ():
        if sample.label >= len(chosen or ()):
            raise DatasetError(
                f"{where}: label {sample.label} of {sample.key}, and --classes has"
                f" {len(chosen or ())} names (0 to {len(chosen or ()) - 1}); name another list"
            )
    streams: tuple[Stream, ...] = STREAMS if any(s.flows != 0 for s in found) else ("rgb",)
    manifest = Manifest(
        dataset=where.rpartition("/")[2] or "videos",
        classes=chosen,
        preset=CHAINER_I3D.name,
        streams=streams,
        parameters={"zips": len(groups), "zip_bytes": size},
        versions={},
        shards=tuple(
            tuple(
                PlannedSample(s.key, s.location, s.label if s.label >= 0 else None) for s in group
            )
            for group in groups
        ),
    )
    counted = all(sample.flows is not None for sample in found)
    return ChainerDataset(
        folder,
        manifest,
        {sample.key: sample.place for sample in found},
        {sample.key: sample.failure for sample in found if sample.failure is not None},
        {sample.key: sample.flows or 0 for sample in found} if counted else None,
    )


def _number(largest: int) -> ClassList | None:
    return numbered_classes(largest + 1) if largest >= 0 else None


def _find_in_shards(
    folder: str, names: Sequence[str], tell: Callable[[str], None]
) -> tuple[list[list[_Found]], int]:
    """The samples of every ``shard_0_1.zip``, in the order of ranks and numbers; bytes of zips."""
    matches = [match for match in map(_SHARD.fullmatch, names) if match]
    matches.sort(key=lambda match: (int(match[1] or -1), int(match[2]), match[0]))
    others = [n for n in names if n.endswith(".zip") and not _SHARD.fullmatch(n)]
    if others:
        tell(f"warning: {folder}: {others[0]!r} and its like ({len(others)}) are left out")
    locations = [files.join(folder, match[0]) for match in matches]
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(read_table, locations))
    groups = []
    for match, location, table in zip(matches, locations, tables, strict=True):
        numbers = table.number.tolist()
        if numbers[-1] != len(numbers) - 1:
            gap = next(k for k, number in enumerate(numbers) if k != number)
            tell(
                f"warning: {location}: there is no sample_{gap}, where the Chainer program stopped;"
                f" all {len(numbers)} that are there are read"
            )
        groups.append(_list_samples(match[0], location, table))
    return groups, sum(table.zip_bytes for table in tables)


def _list_samples(name: str, location: str, table: SampleTable) -> list[_Found]:
    zips = {"rgb": location}
    columns = table.number, table.start, table.stop, table.label, table.flows
    return [
        _Found(
            f"{name.removesuffix('.zip')}/sample_{number}",
            f"{name}/sample_{number}",
            _Place(zips, number, start, stop),
            label,
            table.bad_labels.get(row),
            flows,
        )
        for row, (number, start, stop, label, flows) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]


def _class_folders(folder: str) -> list[str]:
    return [name for name in files.names_in(folder) if _CLASS_FOLDER.fullmatch(name)]


def _find_in_classes(folder: str) -> tuple[list[list[_Found]], int]:
    """The samples of every ``rgb/class_7``, in the order of labels and numbers."""
    parts = [part for parts in _PARTS.values() for part in parts]
    with readable(folder):
        there = [p for p in parts if files.is_dir(files.join(folder, p))]
        classes = {p: _class_folders(files.join(folder, p)) for p in there}
        places = [(p, c) for p in there for c in classes[p]]
        with ThreadPoolExecutor(_THREADS) as pool:
            listed = pool.map(lambda place: files.names_in(files.join(folder, *place)), places)
            zips = {(*place, n) for place, found in zip(places, listed, strict=True) for n in found}
    samples = []
    for part, class_folder, name in zips:
        label, sample = _CLASS_FOLDER.fullmatch(class_folder), _SAMPLE_FILE.fullmatch(name)
        if part == "rgb" and label and sample:
            samples.append((int(label[1]), int(sample[1]), class_folder, name))
    groups: dict[str, list[_Found]] = {}
    for label_number, _, class_folder, name in sorted(samples):
        mine = [p for p in there if (p, class_folder, name) in zips]
        failure = None
        if label_number > MAX_LABEL:
            failure = f"the label of {class_folder} must be a number up to {MAX_LABEL}"
        elif len(mine) == 2:  # RGB and one of x and y
            lacking = next(p for p in parts if p not in mine)
            failure = f"{lacking}/{class_folder}/{name} is missing"
        place = _Place({p: files.join(folder, p, class_folder, name) for p in mine})
        groups.setdefault(class_folder, []).append(
            _Found(
                f"{class_folder}/{name.removesuffix('.zip')}",
                f"rgb/{class_folder}/{name}",
                place,
                -1 if label_number > MAX_LABEL else label_number,
                failure,
                None if len(mine) > 1 else 0,
            )
        )
    if not groups:
        raise DatasetError(f"{folder}: there is no rgb/class_N/sample_N.zip in it")
    return list(groups.values()), 0
