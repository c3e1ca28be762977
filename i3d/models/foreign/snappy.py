"""Decompress Snappy's raw block format, which a TensorFlow index may use for its blocks.

    block   = varint: length of what comes out (below 2^32), elements
    element = tag byte, its low two bits say which:
    00 literal: length - 1 in the tag's upper six bits; 60..63 there: in the next 1..4 bytes
    01 copy:    length - 4 in bits 2..4, offset in bits 5..7 (its top) and the next byte
    10 copy:    length - 1 in the upper six bits, offset in the next 2 bytes
    11 copy:    length - 1 in the upper six bits, offset in the next 4 bytes

Integers are little-endian. A copy repeats what lies ``offset`` bytes back in what has come out so
far, and may run into what it writes itself: offset 1 repeats one byte.
Source: google/snappy, format_description.txt (revised 2020-10-13).

The bytes come from outside: every length is checked against the input, the declared length and the
caller's bound before memory is taken for it. An element of two bytes or more writes 64 bytes at
most unless it brings them along, so time is bounded by the input.
"""

MAX_LENGTH_BYTES = 5  # a varint below 2^32
LONG_LITERAL = 60  # from here on, the tag says how many bytes of length follow


class SnappyError(Exception):
    """What is wrong with a compressed block."""


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """Decompress one block.

    Args:
        data: the whole block.
        max_bytes: a block that declares more is refused before any of it is decompressed.

    Raises:
        SnappyError: it is not as the format says, or too long.
    """
    length, pos = _declared_length(data)
    if length > max_bytes:
        raise SnappyError(f"Snappy block of {length:,} bytes (at most {max_bytes:,})")
    out = bytearray()
    while pos < len(data):
        tag = data[pos]
        kind, upper = tag & 3, tag >> 2
        pos += 1
        if kind == 0:
            extra = max(0, upper - LONG_LITERAL + 1)
            size = (_little_endian(data, pos, extra) if extra else upper) + 1
            pos += extra
            if size > len(data) - pos:
                raise SnappyError(f"Snappy literal of {size:,} bytes runs past its block")
            _check_room(out, size, length)
            out += data[pos : pos + size]
            pos += size
            continue
        extra = (1, 2, 4)[kind - 1]
        offset = _little_endian(data, pos, extra)
        size = upper + 1
        if kind == 1:
            offset |= tag >> 5 << 8
            size = (upper & 7) + 4
        pos += extra
        if not 1 <= offset <= len(out):
            raise SnappyError(f"Snappy copy from {offset:,} bytes back where {len(out):,} are")
        _check_room(out, size, length)
        start = len(out) - offset
        repeated = out[start : start + size]  # what is there of it: `offset` bytes at most
        out += (repeated * -(-size // len(repeated)))[:size]
    if len(out) != length:
        raise SnappyError(f"Snappy block of {length:,} bytes ends after {len(out):,}")
    return bytes(out)


def _declared_length(data: bytes) -> tuple[int, int]:
    """The length of what comes out, and where the elements begin."""
    length = 0
    for pos, byte in enumerate(data[:MAX_LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * pos
        if byte < 0x80:
            if length >> 32:
                break
            return length, pos + 1
    if len(data) < MAX_LENGTH_BYTES:
        raise SnappyError("Snappy block without its length")
    raise SnappyError("Snappy block of 2^32 bytes or more")


def _little_endian(data: bytes, pos: int, size: int) -> int:
    if size > len(data) - pos:
        raise SnappyError("Snappy element runs past its block")
    return int.from_bytes(data[pos : pos + size], "little")


def _check_room(out: bytearray, size: int, length: int) -> None:
    if size > length - len(out):
        raise SnappyError(f"Snappy block holds more than the {length:,} bytes that it declares")
