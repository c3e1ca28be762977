"""The plan of a folder of shards, which stands in its ``manifest.json``."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from i3d import files
from i3d.classes import ClassList, readable
from i3d.data.shards.pictures import Scalar
from i3d.errors import DatasetError, UsageError
from i3d.files import Location
from i3d.presets import CLIPS_PER_SHARD, Stream
from i3d.records import (
    MAX_TEXT,
    added,
    differences,
    plain,
    read_sealed,
    refuse_other_settings,
    seal,
    split_seal,
)

MANIFEST_FILE = "manifest.json"
FORMATS = "i3d manifest 1", "i3d manifest 2"  # without and with the sizes of the videos' files

# Bounds for files that come from elsewhere, far above what is written.
_MAX_JSON_BYTES = 1 << 29  # the manifest of Kinetics-700's 650,000 videos has about 100 MB
_MAX_SECONDS = 1e9

# Names between slashes, without dots, control characters or surrogates.
_KEY = re.compile(r"[^./\x00-\x1f\x7f\ud800-\udfff]+(?:/[^./\x00-\x1f\x7f\ud800-\udfff]+)*")
_SKIPPED_BY_WEBDATASET = re.compile(r"__[^/]*__/")


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One video of the plan.

    Attributes:
        key: unique name, safe as a tar member's: parts between slashes, no dots.
        location: path of the file, relative to the dataset's folder.
        class_index: position in the class list; None when unlabelled.
        start_seconds: where the video begins in the file; None for its start.
        end_seconds: where it ends; None for the end of the file.
        file_bytes: size of the file, or of the files that hold it together; None where unknown.
        etag: what the server of a URL calls this version of the file; None without.

    Raises:
        DatasetError: a key that a tar or WebDataset would not give back; an absolute location;
            times or a size that make no sense.
    """

    key: str
    location: str
    class_index: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    file_bytes: int | None = added()
    etag: str | None = added()

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
        if self.file_bytes is not None and self.file_bytes < 0:
            raise DatasetError(f"{self.key}: file_bytes {self.file_bytes} is no size")
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
        classes: names that class indices refer to; None when unlabelled.
        preset: name of the preprocessing settings.
        streams: ``("rgb",)`` or ``("rgb", "flow")``.
        parameters: every other setting that changes the bytes.
        versions: library -> version, where it changes the bytes.
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

    @property
    def format(self) -> str:
        """The oldest format that has room for it."""
        sized = any(s.file_bytes is not None or s.etag is not None for s in self.samples())
        return FORMATS[sized]

    def to_json(self) -> bytes:
        """As stored in ``manifest.json``; equal manifests give the same bytes."""
        return seal(self.format, self)

    @classmethod
    def from_json(cls, data: bytes, where: str = MANIFEST_FILE) -> Self:
        """Read what `to_json` wrote.

        Raises:
            DatasetError: damaged, edited, of another format, or a value that makes no sense.
        """
        manifest = read_sealed(FORMATS, cls, data, where)
        if manifest.to_json() != data:
            raise DatasetError(f"{where} is not written as i3d writes it; restore it")
        return manifest

    def differences(self, other: Self) -> list[str]:
        """Where ``other`` is another plan, one line a field: ``preset: "a", now "b"``.

        Of the same plan with other files, see `changed_files`.
        """
        before, now = _name_settings(self), _name_settings(other)
        if before["number of classes"] != now["number of classes"]:
            # Every name may differ then, which says nothing more.
            before, now = (
                {name: value for name, value in settings.items() if not name.startswith("class ")}
                for settings in (before, now)
            )
        lines = differences(before, now)
        if self.shards == other.shards:
            same = self.to_json() == other.to_json()
        else:
            same = bool(self.changed_files(other))
            if not same:
                lines.append(_find_sample_difference(self, other))
        if not lines and not same:
            # Equal to Python, and other bytes: 1, 1.0 and true; or null and nothing.
            was, now_is = (json.dumps(plain(m.parameters), allow_nan=False) for m in (self, other))
            lines.append(f"parameters: {was}, now {now_is}")
        return lines

    def changed_files(self, other: Self) -> list[str]:
        """Which videos of the same plan have another file in ``other``, one line a video."""
        old, new = list(self.samples()), list(other.samples())
        if list(map(_without_file, old)) != list(map(_without_file, new)):
            return []
        return [
            f"{was.key!r} ({was.location}): {_describe_file(was)}, now {_describe_file(now)}"
            for was, now in zip(old, new, strict=True)
            if was != now
        ]


def _without_file(sample: PlannedSample) -> PlannedSample:
    return replace(sample, file_bytes=None, etag=None)


def _describe_file(sample: PlannedSample) -> str:
    size = "unknown size" if sample.file_bytes is None else f"{sample.file_bytes:,} bytes"
    return size if sample.etag is None else f"{size} and ETag {sample.etag}"


def _name_settings(manifest: Manifest) -> dict[str, Any]:
    """Every setting of a manifest by its name, to compare and to print."""
    names = () if manifest.classes is None else manifest.classes.names
    return {
        "format": manifest.format,
        "dataset": manifest.dataset,
        "classes": None if manifest.classes is None else manifest.classes.name,
        "number of classes": len(names),
        **{f"class {i}": name for i, name in enumerate(names)},
        "preset": manifest.preset,
        "streams": "+".join(manifest.streams),
        **{f"parameter {name}": value for name, value in sorted(manifest.parameters.items())},
        **{f"version of {name}": value for name, value in sorted(manifest.versions.items())},
    }


def _find_sample_difference(before: Manifest, now: Manifest) -> str:
    """The first sample that differs, in words."""
    old, new = (
        {s.key: (i, _without_file(s)) for i, shard in enumerate(manifest.shards) for s in shard}
        for manifest in (before, now)
    )
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
    return Manifest.from_json(read_document(location), location)


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Write the manifest first of all, or find that it is there already.

    Every process may do it at once: one writes, the others compare.

    Raises:
        UsageError: the folder has another plan, or was begun with other files; the message names
            the differences.
        DatasetError: the manifest that is there is damaged.
    """
    location = files.join(folder, MANIFEST_FILE)
    data = manifest.to_json()
    Manifest.from_json(data, "the new manifest")  # what cannot be read is never written
    try:
        files.create(location, data)
        return
    except FileExistsError:
        there = read_document(location)
    if there != data:
        before = Manifest.from_json(there, location)
        refuse_other_settings(folder, before.differences(manifest))
        refuse_other_settings(folder, before.changed_files(manifest), what="files")


def read_document(location: str) -> bytes:
    """The bytes of a manifest or sidecar.

    Raises:
        DatasetError: not there, or larger than any that is written.
    """
    with readable(location), files.open_read(location) as file:
        data = files.read_bounded(file, _MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise DatasetError(f"{location} has more than {_MAX_JSON_BYTES >> 20} MiB")
    return data
