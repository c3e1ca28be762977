"""Read TensorFlow checkpoints (V2 bundles) without TensorFlow.

A bundle is a prefix such as ``model.ckpt`` with two or more files beside each other:

    model.ckpt.index                  names -> where each tensor lies, a sorted string table
    model.ckpt.data-00000-of-00001    the tensors, little-endian and row-major, end to end

The index is a LevelDB-style table, all integers little-endian:

    [data block]... [meta block] [index block] [footer: 48 bytes]
    footer = handle of the meta block, handle of the index block, zeros, magic (8 bytes)
    handle = varint offset, varint size
    block  = entries, restart offsets (uint32 each), their number (uint32),
             | compression (1 byte), masked CRC32C of all before it (uint32)    <- not in its size
    compression = 0 none, 1 Snappy: what is stored, and has the size, is the block compressed
    entry  = varint shared, varint unshared, varint value size, key's unshared bytes, value

A key repeats the first ``shared`` bytes of the key before it. The value of key "" is a
BundleHeaderProto, that of a variable's name a BundleEntryProto, both in protobuf's wire format.
Sources: tensorflow/core/util/tensor_bundle, tensorflow/core/protobuf/tensor_bundle.proto and
tensorflow/core/lib/io/table, as documented there.

The files come from outside, so every size is bounded before memory is taken for it, blocks and
tensors may not overlap (nothing is read twice), all blocks of an index together may not be longer
than an index may be, and every checksum is verified.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

import google_crc32c
import numpy as np

from i3d import files
from i3d.errors import CheckpointError
from i3d.models.foreign.snappy import SnappyError, decompress

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
BLOCK_TRAILER_BYTES = 5
CRC_MASK_DELTA = 0xA282EAD8
SNAPPY = 1  # a block's compression

MAX_INDEX_BYTES = 4 << 20  # also of its blocks decompressed; the largest released one has 19,632
MAX_VARIABLES = 20_000
MAX_NAME_BYTES = 1_024
MAX_RANK = 16
MAX_SHARDS = 1_000
CHUNK_BYTES = 1 << 20

# tensorflow/core/framework/types.proto: number -> name, and the sizes that numpy shares.
DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("float64", 8),
    3: ("int32", 4),
    4: ("uint8", 1),
    5: ("int16", 2),
    6: ("int8", 1),
    8: ("complex64", 8),
    9: ("int64", 8),
    10: ("bool", 1),
    14: ("bfloat16", 2),
    17: ("uint16", 2),
    18: ("complex128", 16),
    19: ("float16", 2),
    22: ("uint32", 4),
    23: ("uint64", 8),
}
STRING_DTYPE = 7  # of varying length, with a checksum of its own kind; it holds no weights


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: BundleEntryProto, checked."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int  # masked


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its index is parsed and checked, its data not yet read."""

    prefix: str
    num_shards: int
    entries: dict[str, Entry]

    def shard_file(self, shard: int) -> str:
        """The data file of a shard."""
        return f"{self.prefix}.data-{shard:05d}-of-{self.num_shards:05d}"

    def tensors(self, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Verify the checksum of every tensor and yield those wanted, in the order of the file.

        Memory holds one tensor at a time.

        Raises:
            CheckpointError: a data file is missing or too short, or a checksum is wrong.
        """
        for shard in range(self.num_shards):
            inside = sorted(
                (e for e in self.entries.values() if e.shard == shard), key=lambda e: e.offset
            )
            if inside:
                yield from _read_shard(self.shard_file(shard), inside, wanted)


def open_bundle(location: files.Location) -> Bundle:
    """Open a bundle by its prefix, one of its files, or the folder that holds it.

    Raises:
        CheckpointError: there is no bundle, more than one, or its index is damaged.
    """
    prefix = find_prefix(location)
    index = f"{prefix}.index"
    try:
        size = files.size(index)
        if size > MAX_INDEX_BYTES:
            raise CheckpointError(
                f"{index}: {size:,} bytes are too many for a checkpoint's index "
                f"(at most {MAX_INDEX_BYTES:,}); is it the data file?"
            )
        with files.open_read(index) as f:
            data = files.read_bounded(f, MAX_INDEX_BYTES + 1)
    except OSError as error:
        files.blame_storage(index, error)
        raise CheckpointError(f"{index}: cannot be read ({files.explain(error)})") from error
    num_shards, entries = parse_index(data, index)
    return Bundle(prefix, num_shards, entries)


def find_prefix(location: files.Location) -> str:
    """The bundle's prefix for a prefix, an ``.index`` or ``.data-*`` file, or a folder.

    A folder may also be a SavedModel, whose bundle is ``variables/variables``.
    """
    text = os.fspath(location).rstrip("/")
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5}|meta)$", "", text)
    if files.exists(f"{prefix}.index"):
        return prefix
    if prefix == text and files.is_dir(text):
        found = [n.removesuffix(".index") for n in files.names_in(text) if n.endswith(".index")]
        if len(found) == 1:
            return files.join(text, found[0])
        if len(found) > 1:
            raise CheckpointError(
                f"{text}: holds {len(found)} checkpoints; name one, "
                f"such as {files.join(text, found[0])}"
            )
        saved_model = files.join(text, "variables", "variables")
        if files.exists(f"{saved_model}.index"):
            return saved_model
        raise CheckpointError(
            f"{text}: no checkpoint in this folder, neither TensorFlow's .index nor a "
            ".safetensors that i3d train or save_pretrained writes; name a file"
        )
    raise CheckpointError(
        f"{prefix}.index: no such file; a TensorFlow checkpoint is the pair "
        f"PREFIX.index and PREFIX.data-00000-of-00001"
    )


def parse_index(data: bytes, name: str) -> tuple[int, dict[str, Entry]]:
    """Parse an ``.index`` file's bytes: (number of shards, entries by variable name).

    Args:
        data: the whole file.
        name: what error messages call it.

    Raises:
        CheckpointError: anything is not as the format says.
    """
    try:
        return _parse_index(data)
    except _Malformed as error:
        raise CheckpointError(
            f"{name}: damaged TensorFlow index ({error}); fetch it again"
        ) from None


class _Malformed(Exception):
    """What is wrong, without the file's name."""


def _parse_index(data: bytes) -> tuple[int, dict[str, Entry]]:
    if len(data) < FOOTER_BYTES:
        raise _Malformed(f"{len(data)} bytes, too few for the {FOOTER_BYTES} bytes of a footer")
    footer = data[-FOOTER_BYTES:]
    (magic,) = struct.unpack("<Q", footer[-8:])
    if magic != TABLE_MAGIC:
        raise _Malformed("no table magic in the last 8 bytes: truncated, extended or another file")
    pos = 0
    for _ in range(2):  # the meta block's handle (unused by bundles), then the index block's
        offset, pos = _varint(footer, pos)
        size, pos = _varint(footer, pos)

    blocks = _Blocks(data)
    header: bytes | None = None
    entries: dict[str, Entry] = {}
    previous_key: bytes | None = None
    end_of_previous_block = 0
    for _, handle in _block_entries(blocks.read(offset, size)):
        offset, pos = _varint(handle, 0)
        size, _ = _varint(handle, pos)
        if offset < end_of_previous_block:
            raise _Malformed(f"block at byte {offset} overlaps the one before it")
        end_of_previous_block = offset + size + BLOCK_TRAILER_BYTES
        for key, value in _block_entries(blocks.read(offset, size)):
            if previous_key is not None and key <= previous_key:
                raise _Malformed(f"key {key[:80]!r} out of order")
            previous_key = key
            if key == b"":
                header = value
            elif len(entries) >= MAX_VARIABLES:
                raise _Malformed(f"more than {MAX_VARIABLES:,} variables")
            else:
                entry = _entry(key, value)
                entries[entry.name] = entry
    if header is None:
        raise _Malformed("no bundle header (key '')")
    num_shards = _num_shards(header)
    _check_layout(entries, num_shards)
    return num_shards, entries


class _Blocks:
    """The blocks of an index, which together have :data:`MAX_INDEX_BYTES` at most."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bytes_left = MAX_INDEX_BYTES

    def read(self, offset: int, size: int) -> bytes:
        """The contents of a block whose trailer is checked."""
        end = offset + size
        if end + BLOCK_TRAILER_BYTES > len(self._data) - FOOTER_BYTES:
            raise _Malformed(f"block at bytes {offset}..{end} lies outside the file")
        compression = self._data[end]
        (stored,) = struct.unpack_from("<I", self._data, end + 1)
        if _masked_crc32c(self._data[offset : end + 1]) != stored:
            raise _Malformed(f"wrong CRC32C of the block at bytes {offset}..{end}")
        contents = self._data[offset:end]
        if compression == SNAPPY:
            try:
                contents = decompress(contents, max_bytes=self._bytes_left)
            except SnappyError as error:
                raise _Malformed(f"block at bytes {offset}..{end}: {error}") from None
        elif compression != 0:
            raise _Malformed(
                f"block at bytes {offset}..{end} has compression {compression}; "
                "0 (none) and 1 (Snappy) are read"
            )
        self._bytes_left -= len(contents)
        if self._bytes_left < 0:
            raise _Malformed(f"its blocks have more than {MAX_INDEX_BYTES:,} bytes together")
        return contents


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block."""
    if len(block) < 4:
        raise _Malformed("block without restart count")
    (num_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * num_restarts
    if end < 0:
        raise _Malformed(f"{num_restarts} restarts do not fit into a block of {len(block)} bytes")
    key = b""
    pos = 0
    while pos < end:
        shared, pos = _varint(block, pos, end)
        unshared, pos = _varint(block, pos, end)
        value_size, pos = _varint(block, pos, end)
        if shared > len(key) or unshared + value_size > end - pos:
            raise _Malformed(f"entry at byte {pos} of a block points outside it")
        if shared + unshared > MAX_NAME_BYTES:
            raise _Malformed(f"key of {shared + unshared} bytes (at most {MAX_NAME_BYTES})")
        key = key[:shared] + block[pos : pos + unshared]
        pos += unshared
        yield key, block[pos : pos + value_size]
        pos += value_size


def _varint(data: bytes, pos: int, end: int | None = None) -> tuple[int, int]:
    """A base-128 integer of at most 64 bits: (value, position after it)."""
    end = len(data) if end is None else end
    value = 0
    for shift in range(0, 70, 7):
        if pos >= end:
            raise _Malformed("an integer runs past its end")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, pos
    raise _Malformed("an integer of more than 64 bits")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a protobuf message."""
    pos = 0
    value: int | bytes
    while pos < len(message):
        tag, pos = _varint(message, pos)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, pos = _varint(message, pos)
        elif wire_type in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, pos = _varint(message, pos)
            if size > len(message) - pos:
                raise _Malformed("a protobuf field runs past its message")
            value = message[pos : pos + size]
            pos += size
        else:
            raise _Malformed(f"protobuf wire type {wire_type}")
        yield number, value


def _integer(value: int | bytes) -> int:
    """An int64 field."""
    if isinstance(value, bytes):
        raise _Malformed("a protobuf field of another type than the bundle format's")
    return value - (1 << 64) if value >> 63 else value


def _message(value: int | bytes) -> bytes:
    """A field that holds bytes: an embedded message or a fixed-size number."""
    if isinstance(value, int):
        raise _Malformed("a protobuf field of another type than the bundle format's")
    return value


def _num_shards(header: bytes) -> int:
    num_shards = 1
    for number, value in _fields(header):
        if number == 1:
            num_shards = _integer(value)
        elif number == 2 and _integer(value) != 0:
            raise _Malformed("big-endian data; only little-endian bundles are read")
    if not 1 <= num_shards <= MAX_SHARDS:
        raise _Malformed(f"{num_shards} data files (1 to {MAX_SHARDS} are possible)")
    return num_shards


def _entry(key: bytes, value: bytes) -> Entry:
    try:
        name = key.decode()
    except UnicodeDecodeError:
        raise _Malformed(f"variable name {key[:80]!r} is not UTF-8") from None
    if not name.isprintable():
        raise _Malformed(f"variable name {name[:80]!r} has characters that cannot be shown")
    dtype = shard = offset = size = 0
    crc32c: int | None = None
    shape: tuple[int, ...] = ()
    for number, field in _fields(value):
        if number == 1:
            dtype = _integer(field)
        elif number == 2:
            shape = _shape(_message(field), name)
        elif number == 3:
            shard = _integer(field)
        elif number == 4:
            offset = _integer(field)
        elif number == 5:
            size = _integer(field)
        elif number == 6:
            fixed = _message(field)
            if len(fixed) != 4:
                raise _Malformed(f"{name}: checksum of {len(fixed)} bytes")
            crc32c = int.from_bytes(fixed, "little")
        elif number == 7:
            raise _Malformed(f"{name}: partitioned variables are not read")
    if dtype == STRING_DTYPE:
        return Entry(name, "string", shape, shard, offset, size, crc32c or 0)
    if dtype not in DTYPES:
        raise _Malformed(f"{name}: unknown dtype {dtype}")
    dtype_name, item_bytes = DTYPES[dtype]
    elements = 1
    for n in shape:
        elements *= n  # a Python integer: absurd shapes do not overflow
    if elements * item_bytes != size:
        shown = "x".join(map(str, shape)) or "scalar"
        raise _Malformed(f"{name}: {size} bytes for a {shown} tensor of {dtype_name}")
    if crc32c is None:
        raise _Malformed(f"{name}: no checksum")
    return Entry(name, dtype_name, shape, shard, offset, size, crc32c)


def _shape(message: bytes, name: str) -> tuple[int, ...]:
    shape: list[int] = []
    for number, field in _fields(message):
        if number == 2:
            sizes = [_integer(v) for n, v in _fields(_message(field)) if n == 1]
            shape.append(sizes[-1] if sizes else 0)
        elif number == 3 and field:
            raise _Malformed(f"{name}: unknown rank")
        if len(shape) > MAX_RANK:
            raise _Malformed(f"{name}: more than {MAX_RANK} axes")
    if any(n < 0 or n >> 40 for n in shape):
        raise _Malformed(f"{name}: absurd shape {shape}")
    return tuple(shape)


def _check_layout(entries: dict[str, Entry], num_shards: int) -> None:
    """Tensors lie in existing shards and do not overlap, so that no byte is read twice."""
    for entry in entries.values():
        if not 0 <= entry.shard < num_shards:
            raise _Malformed(f"{entry.name}: in data file {entry.shard} of {num_shards}")
        if entry.offset < 0 or entry.size < 0:
            raise _Malformed(f"{entry.name}: offset {entry.offset}, size {entry.size}")
    ordered = sorted(entries.values(), key=lambda e: (e.shard, e.offset, e.size))
    for a, b in pairwise(ordered):
        if a.shard == b.shard and a.offset + a.size > b.offset:
            raise _Malformed(f"{a.name} and {b.name} overlap in the data file")


def _read_shard(
    location: str, entries: list[Entry], wanted: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    try:
        available = files.size(location)
        with files.open_read(location) as f:
            for entry in entries:
                end = entry.offset + entry.size
                if end > available:
                    raise CheckpointError(
                        f"{location}: has {available:,} bytes, but {entry.name} lies at bytes "
                        f"{entry.offset:,}..{end:,}; the file is truncated or of another "
                        "checkpoint: fetch both again"
                    )
                if entry.dtype == "string":
                    continue
                f.seek(entry.offset)
                if entry.name in wanted:
                    yield entry.name, _read_wanted(f, entry, location)
                else:
                    _check_crc(_crc_of_stream(f, entry.size), entry, location)
    except FileNotFoundError:
        raise CheckpointError(
            f"{location}: no such file; it belongs beside the .index file"
        ) from None
    except OSError as error:
        files.blame_storage(location, error)
        raise CheckpointError(f"{location}: cannot be read ({files.explain(error)})") from error


def _read_wanted(f: IO[bytes], entry: Entry, location: str) -> np.ndarray:
    if entry.dtype != "float32":
        raise CheckpointError(
            f"{location}: {entry.name} is {entry.dtype}; I3D's variables are float32: save it so"
        )
    data = f.read(entry.size)
    _check_crc(google_crc32c.value(data), entry, location)
    return np.frombuffer(data, dtype="<f4").reshape(entry.shape)


def _crc_of_stream(f: IO[bytes], size: int) -> int:
    crc = 0
    while size > 0:
        chunk = f.read(min(size, CHUNK_BYTES))
        if not chunk:
            break  # shorter than it said: the checksum will tell
        crc = google_crc32c.extend(crc, chunk)
        size -= len(chunk)
    return crc


def _check_crc(crc: int, entry: Entry, location: str) -> None:
    if _mask(crc) != entry.crc32c:
        raise CheckpointError(
            f"{location}: wrong CRC32C of {entry.name} (bytes {entry.offset:,}.."
            f"{entry.offset + entry.size:,}); the file is damaged: fetch it again"
        )


def _mask(crc: int) -> int:
    """LevelDB's masking, which keeps checksums of data that contain checksums apart."""
    return (((crc >> 15) | (crc << 17)) + CRC_MASK_DELTA) & 0xFFFFFFFF


def _masked_crc32c(data: bytes) -> int:
    return _mask(google_crc32c.value(data))
