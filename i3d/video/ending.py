"""Whether a file was cut short, by what its container says of its own length.

FFmpeg takes most files that break off for shorter ones. What tells them apart:

    Matroska, WebM   the Segment's size; unknown in a live recording: the last Cluster or block
    MP4, MOV         the last box
    AVI              the last chunk
    MPEG-TS          the last packet of 188, 192 or 204 bytes
    MPEG-PS          the last packet
    FLV              onMetaData's filesize, the last tag
    ASF, WMV         the File Properties' size
    Ogg              the last page, which is marked as such
    GIF              the trailer, after more than one picture

Other formats say nothing of it. An element counts if its kind is known, it begins inside the file
and ends past the file's end; what other programs append to a sound file does no harm. A live
recording or a transport stream that breaks off exactly between two elements looks sound.

Only the file's beginning and what follows the last packet is read.
"""

import math
import struct
from collections.abc import Callable

import av

from i3d.video.source import SourceFile

HEAD_BYTES = 4096  # of the file's beginning, where it claims its size
MAX_ELEMENTS = 10_000  # from the last packet on, before nothing is said
MAX_TAIL_BYTES = 1 << 24  # of a GIF's last frame and what follows, before nothing is said

EBML_HEADER_BYTES = 4 + 8  # at most: name, size
SEGMENT, CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")
EBML_FILE_PARTS = ("1a45dfa3", "ec", "bf")  # the file's header, Void, CRC-32
# Cues, Tags, SeekHead, Info, Tracks, Chapters, Attachments
SEGMENT_PARTS = ("1c53bb6b", "1254c367", "114d9b74", "1549a966", "1654ae6b", "1043a770", "1941a469")
CLUSTER_PARTS = ("a3", "a0", "af", "e7", "a7", "ab", "5854")  # blocks, Timestamp, Position, ...
EBML_NAMES = [SEGMENT, CLUSTER] + [
    bytes.fromhex(name) for name in (*EBML_FILE_PARTS, *SEGMENT_PARTS, *CLUSTER_PARTS)
]
MP4_BOXES = (
    b"ftyp styp moov moof mfra mdat free skip wide udta meta uuid sidx ssix emsg prft".split()
)
AVI_STREAM_CHUNKS = (b"dc", b"db", b"wb", b"tx", b"pc")  # after the stream's two digits
AVI_CHUNKS = (b"JUNK", b"idx1", b"LIST", b"RIFF")
AVI_LISTS = (b"AVIX", b"movi", b"rec ")  # whose chunks are gone through
FLV_TAGS = (8, 9, 18)  # sound, video, data
FLV_FILE_SIZE = b"\x00\x08filesize\x00"  # AMF: the name's length, the name; a float64 follows
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_BROADCAST = 1  # flag: the size was not known
OGG_END_OF_STREAM = 4  # flag of a page
TS_SYNC = 0x47
TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # (bytes, of which before the sync byte)
TS_SYNCS = (5, 20)  # of so many sync bytes at least, and up to so many, the packets are told


def find_cut(
    file: SourceFile, head: bytes, container: av.container.InputContainer, last: int | None
) -> str | None:
    """What shows that the file was cut short, in a few words; None: nothing does.

    Args:
        file: is asked for little more than its last packet.
        head: the file's first HEAD_BYTES.
        container: the file, after FFmpeg has read it to the end.
        last: position of the last video packet, where FFmpeg tells.

    Raises:
        VideoError: the file cannot be read.
        StorageError: a URL's server fails.
    """
    size, name = file.size, container.format.name
    if size is None:
        return None
    claimed = CLAIMS[name](head) if name in CLAIMS else None
    if claimed:  # 0: FLV's muxer did not come back to write it
        return f"the file ends after {size:,} of {claimed:,} bytes" if claimed > size else None
    if name == "gif" and last is not None:
        data = file.peek(last, MAX_TAIL_BYTES)
        whole = last + len(data) == size
        return "the file ends without a GIF's trailer" if whole and _breaks_off(data) else None
    end = None
    if name == "mpegts":
        end = _find_end_of_ts(file, size)
    elif name in ELEMENTS:
        begin = _find_last_element(container, last)
        if begin is None or begin < 0:
            return None
        end, element = _walk(file, size, begin, *ELEMENTS[name])
        if name == "ogg" and end == size and element and not element[5] & OGG_END_OF_STREAM:
            return "the file ends without an Ogg stream's last page"
    if end is not None and end > size:
        return f"the file ends after {size:,} of at least {end:,} bytes"
    return None


# --- the size that the file's beginning claims ----------------------------------------------------


def _claim_of_matroska(head: bytes) -> int | None:
    position = 0
    while position < len(head):
        element = _read_ebml(head[position : position + EBML_HEADER_BYTES])
        if element is None:
            return None
        name, header, size = element
        if size is None:
            return None
        position += header + size
        if name == SEGMENT:
            return position
    return None


def _claim_of_flv(head: bytes) -> int | None:
    place = head.find(FLV_FILE_SIZE) + len(FLV_FILE_SIZE)
    if place < len(FLV_FILE_SIZE) or place + 8 > len(head):
        return None
    (size,) = struct.unpack_from(">d", head, place)
    return int(size) if math.isfinite(size) else None


def _claim_of_asf(head: bytes) -> int | None:
    place = head.find(ASF_FILE_PROPERTIES)
    if place < 0 or place + 92 > len(head):
        return None
    (size,) = struct.unpack_from("<Q", head, place + 40)
    (flags,) = struct.unpack_from("<I", head, place + 88)
    return None if flags & ASF_BROADCAST else size


CLAIMS: dict[str, Callable[[bytes], int | None]] = {
    "matroska,webm": _claim_of_matroska,
    "flv": _claim_of_flv,
    "asf": _claim_of_asf,
}


# --- the elements from the last packet on ---------------------------------------------------------


def _find_last_element(container: av.container.InputContainer, last: int | None) -> int | None:
    """Where an element near the file's end begins."""
    name = container.format.name
    if name == "avi":
        return None if last is None else last - 8  # the chunk of the packet
    if name not in ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"):
        return last
    newest = [s.index_entries[-1] for s in container.streams if len(s.index_entries)]
    # Matroska's index has the Cluster of every key frame, and no sizes; the box of MP4's samples
    # ends with the last of any stream.
    return max((entry.pos + entry.size for entry in newest), default=None)


def _walk(
    file: SourceFile,
    size: int,
    begin: int,
    header: int,
    align: int,
    measure: Callable[[bytes], int | None],
) -> tuple[int | None, bytes]:
    """Where the elements from ``begin`` on end, and the beginning of the last.

    The end is the file's ``size``, more, or None where something unknown follows.

    Args:
        header: bytes of an element that ``measure`` is given, less at the file's end.
        align: elements begin at multiples of so many bytes.
        measure: an element's length, as far as these bytes tell; None: it is not known.
    """
    position, element = begin, b""
    for _ in range(MAX_ELEMENTS):
        if position >= size:  # MP4's samples may lie past the end
            return max(size, begin), element
        element = file.peek(position, header)
        length = measure(element) if element else None
        if length is None:
            break
        if position + length > size:
            return position + length, element
        position += length
        position += -position % align  # the last may lack its padding
    return None, element


def _read_ebml(head: bytes) -> tuple[bytes, int, int | None] | None:
    """Name, header's length and size (None: unknown) of an element; None: it is no known one.

    Where the file ends within the header, that is one byte longer than what is there.
    """
    name = next((name for name in EBML_NAMES if head.startswith(name[: len(head)])), None)
    if name is None:
        return None
    rest = head[len(name) :]
    width = 9 - rest[0].bit_length() if rest else 1
    if width > 8:
        return None
    if len(rest) < width:
        return name, len(head) + 1, 0
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(rest[:width]) & unknown
    return name, len(name) + width, None if size == unknown else size


def _measure_ebml(head: bytes) -> int | None:
    name, header, size = _read_ebml(head) or (b"", 0, None)
    if size is not None:
        return header + size
    # A Cluster of a live recording: its parts follow as if they stood outside.
    return header if name == CLUSTER else None


def _measure_box(head: bytes) -> int | None:
    if len(head) < 8:
        return None
    size, least = int.from_bytes(head[:4]), 8
    if size == 1:  # it stands after the name
        size, least = int.from_bytes(head[8:16].ljust(8, b"\xff")), 16
    # A size of 0: to the end of the file.
    return size if head[4:8] in MP4_BOXES and size >= least else None


def _measure_chunk(head: bytes) -> int | None:
    if len(head) < 8:
        return None
    of_stream = head[:2].isdigit() and head[2:4] in AVI_STREAM_CHUNKS
    of_index = head[:2] == b"ix" and head[2:4].isdigit()
    if not of_stream and not of_index and head[:4] not in AVI_CHUNKS:
        return None
    if head[:4] in (b"LIST", b"RIFF") and head[8:12] in AVI_LISTS:
        return 12
    return 8 + int.from_bytes(head[4:8], "little")


def _measure_tag(head: bytes) -> int | None:
    if head[0] not in FLV_TAGS or any(head[8:11]):  # the stream's number is 0
        return None
    return 11 + int.from_bytes(head[1:4]) + 4 if len(head) == 11 else 15


def _measure_page(head: bytes) -> int | None:
    if not b"OggS\0".startswith(head[:5]):
        return None
    segments = head[26] if len(head) > 26 else 0
    return 27 + segments + sum(head[27 : 27 + segments])


def _measure_ps(head: bytes) -> int | None:
    """The program's end, 00 00 01 B9, is not known: what follows is not looked at."""
    if head[:3] != b"\0\0\1" or len(head) < 4 or head[3] < 0xBA:
        return None
    if head[3] == 0xBA:  # a pack's header: MPEG-1's, or MPEG-2's with stuffing
        mpeg_1 = len(head) > 4 and head[4] >> 4 == 2
        return 12 if mpeg_1 else 14 + (head[13] & 7 if len(head) > 13 else 0)
    length = int.from_bytes(head[4:6])
    return 6 + length if len(head) < 6 or length else None


# by FFmpeg's name of the format: bytes of the header, alignment, what measures
ELEMENTS: dict[str, tuple[int, int, Callable[[bytes], int | None]]] = {
    "matroska,webm": (EBML_HEADER_BYTES, 1, _measure_ebml),
    "mov,mp4,m4a,3gp,3g2,mj2": (16, 1, _measure_box),
    "avi": (12, 2, _measure_chunk),
    "flv": (11, 1, _measure_tag),
    "ogg": (27 + 255, 1, _measure_page),
    "mpeg": (14, 1, _measure_ps),
}


def _find_end_of_ts(file: SourceFile, size: int) -> int | None:
    """The end of the last packet, where it lies past the end of the file; None: it does not.

    The packets are found from the end: they need not begin where the file does, and after damage
    in the middle they begin elsewhere.
    """
    least, most = TS_SYNCS
    tail = file.peek(max(0, size - (most + 1) * 204), (most + 1) * 204)
    for length, before in TS_PACKETS:
        for left in range(length):
            whole = len(tail) - left
            syncs = range(whole - length + before, -1, -length)[:most]
            if len(syncs) < least or any(tail[place] != TS_SYNC for place in syncs):
                continue
            begun = tail[whole + before : whole + before + 1] == bytes([TS_SYNC])
            return size - left + length if begun else None
    return None


def _breaks_off(data: bytes) -> bool:
    """Whether a GIF, from its last frame on, ends without a trailer.

    Some programs leave it out after a single picture, which lacks nothing.
    """
    still = data.startswith(b"GIF8")
    position = 13 + _bytes_of_palette(data[10:11]) if still else 0
    while position < len(data):
        kind = data[position]
        if kind == 0x21:  # extension
            position += 2
        elif kind == 0x2C:  # picture
            position += 10 + _bytes_of_palette(data[position + 9 : position + 10]) + 1
        else:
            return False  # the trailer, or what is none of a GIF
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return not still or position > len(data)


def _bytes_of_palette(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
