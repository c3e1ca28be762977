"""Snappy's raw blocks: what Google's format says and another implementation wrote, and damage."""

import hashlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bundles

from i3d.models.foreign.snappy import SnappyError, decompress

NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(10))  # nothing in it repeats

# cramjam 2.14.0 (the Rust crate snap): bytes(cramjam.snappy.compress_raw(RIGHT)).
COMPRESSED = [
    (b"", "00"),
    (b"a", "010061"),
    (b"x" + b"ab" * 20, "2908786162960200"),
    (bytes(200), "c8010000fe0100fe0100fe01000d01"),
    (
        b"RGB/inception_i3d/Conv3d_1a_7x7/batch_norm/beta "
        b"RGB/inception_i3d/Conv3d_1a_7x7/batch_norm/moving_mean "
        b"RGB/inception_i3d/Conv3d_2b_1x1/batch_norm/beta",
        "9601c85247422f696e63657074696f6e5f6933642f436f6e7633645f31615f3778372f62617463685f6e6f726d"
        "2f62657461205247429e3000286d6f76696e675f6d65616e6637005432625f3178312f62617463685f6e6f726d"
        "2f62657461",
    ),
    (NOISE[:100], "64f063" + NOISE[:100].hex()),
    (NOISE, "c002f43f01" + NOISE.hex()),
    (
        NOISE + bytes(3000) + NOISE,  # copies from 3320 bytes back
        "b81cf45301" + NOISE.hex() + "00" * 20 + "fe0b00" * 46 + "8e0b00" + "fef80c" * 5,
    ),
]

# Forms that no compressor writes; cramjam.snappy.decompress_raw gives the same for each.
UNUSUAL = [
    (b"xababab", "07087861620f02000000"),  # 4-byte offset
    (b"xababab", "07087861620102"),  # 1-byte offset
    (b"xababab", "07087861620e0200"),  # 2-byte offset
    (b"xab", "03f002786162"),  # lengths of 1 to 4 bytes of their own
    (b"xab", "03f40200786162"),
    (b"xab", "03f8020000786162"),
    (b"xab", "03fc02000000786162"),
    (b"xab", "830008786162"),  # a varint with a byte too many
    (b"ab", "0200610062"),  # literal after literal
]


@pytest.mark.parametrize(("right", "compressed"), COMPRESSED + UNUSUAL)
def test_gives_what_another_program_compressed(right, compressed):
    assert decompress(bytes.fromhex(compressed), max_bytes=len(right)) == right


# cramjam.snappy.decompress_raw refuses every one of these, too.
MALFORMED = {
    "": "without its length",
    "80": "without its length",
    "8080808010": "2^32 bytes or more",
    "ffffffffff01": "2^32 bytes or more",
    "01": "of 1 bytes ends after 0",
    "020061": "of 2 bytes ends after 1",
    "0108": "literal of 3 bytes runs past",
    "0000": "literal of 1 bytes runs past",
    "01f0": "element runs past",
    "01f400": "element runs past",
    "01fcffffffff": "literal of 4,294,967,296 bytes runs past",
    "0401": "element runs past",
    "05006106": "element runs past",
    "0500610f0100": "element runs past",
    "040102": "copy from 2 bytes back where 0 are",
    "0500610100": "copy from 0 bytes back where 1 are",
    "0500610102": "copy from 2 bytes back where 1 are",
    "0500610a0000": "copy from 0 bytes back",
    "0500610f00000000": "copy from 0 bytes back",
    "0500610fffffffff": "copy from 4,294,967,295 bytes back",
    "0100610062": "more than the 1 bytes that it declares",
    "0200610501": "more than the 2 bytes that it declares",
}


@pytest.mark.parametrize(("compressed", "words"), MALFORMED.items())
def test_a_malformed_block_is_one_clear_error(compressed, words):
    with pytest.raises(SnappyError) as caught:
        decompress(bytes.fromhex(compressed), max_bytes=1 << 32)
    assert words in str(caught.value)


@pytest.mark.parametrize("declared", [101, 1 << 22, (1 << 32) - 1])
def test_a_block_beyond_the_bound_takes_no_memory(declared):
    block = bundles.varint(declared) + b"\0a" + b"\xfe\1\0" * 66_000  # 4 MiB and more of "a"
    tracemalloc.start()
    with pytest.raises(SnappyError, match=r"of [\d,]+ bytes \(at most 100\)"):
        decompress(block, max_bytes=100)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


def test_what_comes_out_stops_at_the_declared_length():
    block = bundles.varint(1000) + b"\0a" + b"\xfe\1\0" * 66_000
    tracemalloc.start()
    with pytest.raises(SnappyError, match="more than the 1,000 bytes"):
        decompress(block, max_bytes=1 << 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


def decompresses_or_refuses(data: bytes, max_bytes: int = 500) -> None:
    try:
        out = decompress(data, max_bytes=max_bytes)
    except SnappyError as error:
        assert "\n" not in str(error)
        return
    assert len(out) <= max_bytes


@given(st.binary(max_size=80))
def test_fuzz_random_bytes(data):
    decompresses_or_refuses(data)


@settings(max_examples=300)
@given(
    st.sampled_from([bytes.fromhex(c) for _, c in COMPRESSED[1:]]),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    st.integers(0, 40),
)
def test_fuzz_changed_and_cut_blocks(right, changes, cut):
    data = bytearray(right)
    for position, value in changes:
        data[position % len(data)] = value
    decompresses_or_refuses(bytes(data[: max(0, len(data) - cut)]))


@given(st.lists(st.sampled_from([b"", b"ab", b"abcabcabc", bytes(70), NOISE]), max_size=6))
def test_reads_the_encoder_that_the_tests_of_bundles_use(parts):
    right = b"".join(parts)
    assert decompress(bundles.snappy(right), max_bytes=len(right)) == right
