"""The bundle reader: what TensorFlow wrote, and every way in which a file can be wrong."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bundles
from support.golden import shared

from i3d.errors import CheckpointError
from i3d.models.foreign import tf_bundle as bundle
from i3d.models.foreign.names import TENSORFLOW
from i3d.models.foreign.readers import PARAMETERS
from i3d.models.foreign.tf_bundle import open_bundle, parse_index

RELEASED = {
    "rgb_imagenet": ("RGB/inception_i3d/", 230, 50_818_176),
    "rgb_scratch": ("RGB/inception_i3d/", 230, 50_818_176),
    "flow_imagenet": ("Flow/inception_i3d/", 230, 50_730_368),
    "flow_scratch": ("Flow/inception_i3d/", 230, 50_730_368),
    "rgb_scratch_kin600": ("", 346, 103_218_112),
}


@pytest.mark.parametrize("name", RELEASED)
def test_every_variable_of_the_released_indices_maps(name):
    path = shared("reference", "tensorflow_index", f"{name}.index")
    scope, tensors, size = RELEASED[name]
    shards, entries = parse_index(path.read_bytes(), str(path))
    assert shards == 1
    assert len(entries) == tensors
    assert sum(e.size for e in entries.values()) == size
    ours = {scope + key for p in PARAMETERS if (key := TENSORFLOW.key(p))}
    assert len(ours) == 230
    assert ours <= set(entries)
    assert all(n.endswith("/Momentum") for n in set(entries) - ours)


def test_the_index_of_tf_hub_is_that_of_rgb_scratch():
    """Compressed, and BatchNorm has the shape [1, 1, 1, 1, C]; the tensors' bytes are the same."""
    path = shared("reference", "tfhub", "variables.index")
    shards, hub = parse_index(path.read_bytes(), str(path))
    assert shards == 1
    for name, same in (("rgb_scratch", 230), ("rgb_imagenet", 0)):
        path = shared("reference", "tensorflow_index", f"{name}.index")
        _, released = parse_index(path.read_bytes(), str(path))
        assert set(hub) == set(released)
        assert sum(hub[n].crc32c == released[n].crc32c for n in hub) == same
        for n, entry in hub.items():
            norm = (1, 1, 1, 1) if "batch_norm" in n else ()
            assert entry.shape == norm + released[n].shape
            assert (entry.offset, entry.size) == (released[n].offset, released[n].size)


ARRAYS = {
    "a/w": np.arange(24, dtype="<f4").reshape(2, 3, 4),
    "a/w/Momentum": np.ones((2, 3, 4), "<f4"),
    "b": np.zeros((), "<f4"),
    "step": np.array([7], "<i8"),
}


def items(**wrong):
    step = {"dtype": 9} | wrong.pop("step", {})
    return bundles.items_of(ARRAYS, step=step, **wrong)


SNAPPY = {"compression": 1, "compress": bundles.snappy}


@pytest.mark.parametrize("per_block", [1, 2, 100])
@pytest.mark.parametrize("options", [{}, SNAPPY], ids=["plain", "snappy"])
def test_reads_what_was_written(tmp_path, per_block, options):
    prefix = bundles.write(tmp_path, ARRAYS, items(), per_block=per_block, **options)
    for place in (prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001", tmp_path):
        found = open_bundle(place)
        assert set(found.entries) == set(ARRAYS)
        tensors = dict(found.tensors({"a/w", "b"}))
        assert set(tensors) == {"a/w", "b"}
        np.testing.assert_array_equal(tensors["a/w"], ARRAYS["a/w"])
        assert tensors["b"].shape == ()


def test_reads_several_data_files_and_urls(tmp_path):
    import fsspec

    two = {b"": bundles.field(1, 2), b"a": bundles.entry(ARRAYS["a/w"], 0, shard=1)}
    memory = fsspec.filesystem("memory")
    memory.pipe("/ck/m.index", bundles.table(two))
    memory.pipe("/ck/m.data-00001-of-00002", ARRAYS["a/w"].tobytes())
    ((name, array),) = open_bundle("memory://ck/m").tensors({"a"})
    assert name == "a"
    np.testing.assert_array_equal(array, ARRAYS["a/w"])


def test_saved_model_folder(tmp_path):
    bundles.write(tmp_path / "variables", ARRAYS, items())
    for path in (tmp_path / "variables").iterdir():
        path.rename(path.with_name(path.name.replace("model.ckpt", "variables")))
    assert set(open_bundle(tmp_path).entries) == set(ARRAYS)


GOOD = bundles.table(items())
HUGE = 2**62


MALFORMED = [
    (b"", "0 bytes"),
    (GOOD[:40], "40 bytes"),
    (GOOD[:-1], "magic"),
    (GOOD + b"\0", "magic"),
    (GOOD[1:], "CRC32C|outside"),
    (GOOD[:100] + b"\0" + GOOD[100:], "CRC32C|outside"),
    (GOOD[:20] + bytes([GOOD[20] ^ 1]) + GOOD[21:], "CRC32C of the block"),
    (bundles.table(items(), compression=2), r"compression 2; 0 \(none\) and 1 \(Snappy\)"),
    (bundles.table(items(), compression=1), "block at bytes 0.*: Snappy block holds more than"),
    (bundles.table(items(), compression=1, compress=lambda _: b"\x05\0a"), "ends after 1"),
    (bundles.table(items(), compression=1, compress=lambda _: b"\1\1\1"), "back where 0 are"),
    (bundles.table(items(), compression=1, compress=lambda _: b"\0"), "restart count"),
    (
        bundles.table(items(), compression=1, compress=lambda _: b"\xff\xff\xff\xff\x0f\0a"),
        "Snappy block of 4,294,967,295 bytes",
    ),
    (bundles.table({b"a": bundles.entry(ARRAYS["b"], 0)}), "bundle header"),
    (bundles.table({b"": bundles.field(1, HUGE)}), "data files"),
    (bundles.table({b"": bundles.field(2, 1)}), "endian"),
    (bundles.table(dict(reversed(items().items()))), "out of order"),
    (bundles.table(items(b={"dtype": 99})), "b: unknown dtype 99"),
    (bundles.table(items(b={"dtype": 0})), "b: unknown dtype 0"),
    (bundles.table(items(b={"shape": (1 << 30,) * 4})), "b: .* tensor"),
    (bundles.table(items(b={"shape": (-1,)})), "absurd shape"),
    (bundles.table(items(b={"shape": (1,) * 17})), "16 axes"),
    (bundles.table(items(b={"size": HUGE})), "b: .* bytes for"),
    (bundles.table(items(b={"shard": 1})), "data file 1 of 1"),
    (bundles.table({b"": bundles.HEADER, b"b": bundles.entry(ARRAYS["b"], -8)}), "offset -8"),
    (bundles.table({b"": bundles.HEADER, b"b": b"\x0f"}), "integer|wire type"),
    (bundles.table({b"": bundles.HEADER, b"b": bundles.field(4, b"x")}), "another type"),
    (bundles.table({b"": bundles.HEADER, b"b": bundles.field(7, b"")}), "partitioned"),
    (bundles.table({b"": bundles.HEADER, b"b": b"\xff" * 12}), "64 bits"),
    (bundles.table({b"": bundles.HEADER, b"\xff": b""}), "UTF-8"),
    (bundles.table({b"": bundles.HEADER, b"x" * 1025: b""}), "key of 1025 bytes"),
    (
        bundles.table(
            {
                b"": bundles.HEADER,
                b"a": bundles.entry(ARRAYS["a/w"], 0),
                b"b": bundles.entry(ARRAYS["a/w"], 4),
            }
        ),
        "a and b overlap",
    ),
]


@pytest.mark.parametrize(("index", "words"), MALFORMED, ids=[words for _, words in MALFORMED])
def test_a_malformed_index_is_one_clear_error(tmp_path, index, words):
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(index)
    with pytest.raises(CheckpointError) as caught:
        open_bundle(path)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlong_index_is_not_read(tmp_path):
    path = tmp_path / "model.ckpt.index"
    with path.open("wb") as f:
        f.truncate(1 << 40)  # sparse
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="too many for a checkpoint's index"):
        open_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "its blocks have more than 7,000 bytes together"),
        (SNAPPY, r"Snappy block of 3,0\d\d bytes \(at most 9\d\d\)"),  # what is left for the third
    ],
    ids=["plain", "snappy"],
)
def test_all_blocks_together_are_bounded(monkeypatch, options, words):
    unknown = bundles.field(9, bytes(3000))  # a field that is skipped
    three = {
        b"": bundles.HEADER + unknown,
        b"a": bundles.entry(ARRAYS["b"], 0) + unknown,
        b"b": bundles.entry(ARRAYS["b"], 4) + unknown,
    }
    table = bundles.table(three, per_block=1, **options)
    assert len(table) < 1000 or not options
    assert set(parse_index(table, "x")[1]) == {"a", "b"}
    monkeypatch.setattr(bundle, "MAX_INDEX_BYTES", 7_000)
    with pytest.raises(CheckpointError, match=words):
        parse_index(table, "x")


def test_many_handles_to_one_block_are_refused():
    contents = bundles.block({b"": bundles.HEADER})
    handle = bundles.varint(0) + bundles.varint(len(contents))
    data = bundles.with_trailer(contents)
    index = bundles.block({b"%06d" % i: handle for i in range(1000)})
    footer = bundles.varint(0) * 2 + bundles.varint(len(data)) + bundles.varint(len(index))
    magic = bundle.TABLE_MAGIC.to_bytes(8, "little")
    table = data + bundles.with_trailer(index) + footer.ljust(40, b"\0") + magic
    with pytest.raises(CheckpointError, match="overlaps"):
        parse_index(table, "x")


def test_wrong_data_is_a_clear_error(tmp_path):
    prefix = bundles.write(tmp_path, ARRAYS, items())
    data = Path(f"{prefix}.data-00000-of-00001")
    right = data.read_bytes()
    for position, name in ((0, "a/w"), (24 * 4, "a/w/Momentum"), (len(right) - 1, "step")):
        wrong = bytearray(right)
        wrong[position] ^= 0x10
        data.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=f"wrong CRC32C of {name} "):
            list(open_bundle(prefix).tensors({"a/w"}))
    data.write_bytes(right[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        list(open_bundle(prefix).tensors({"a/w"}))
    data.unlink()
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: no such file"):
        list(open_bundle(prefix).tensors({"a/w"}))
    with pytest.raises(CheckpointError, match="step is int64"):
        data.write_bytes(right)
        list(open_bundle(prefix).tensors({"step"}))


def test_missing_bundles_are_clear_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.ckpt.index: no such file"):
        open_bundle(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"no checkpoint in this folder"):
        open_bundle(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.index").write_bytes(GOOD)
    with pytest.raises(CheckpointError, match="holds 2 checkpoints"):
        open_bundle(tmp_path)


def parses_or_refuses(data: bytes) -> None:
    try:
        shards, entries = parse_index(data, "x")
    except CheckpointError:
        return
    assert 1 <= shards <= bundle.MAX_SHARDS
    assert all(0 <= e.shard < shards for e in entries.values())


@given(st.binary(max_size=300))
def test_fuzz_whole_file(data):
    parses_or_refuses(data + GOOD[-8:])


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_fuzz_changed_bytes_never_pass_the_checksums(changes):
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    parses_or_refuses(bytes(data))


@settings(max_examples=300)
@given(
    st.dictionaries(st.binary(max_size=12), st.binary(max_size=40), max_size=5),
    st.integers(1, 3),
    st.sampled_from([{}, SNAPPY]),
)
def test_fuzz_contents_under_right_checksums(contents, per_block, options):
    # Right checksums let the fuzzer reach the parser of entries, which random bytes never do.
    ordered = {b"": bundles.HEADER} | contents
    ordered = dict(sorted(ordered.items()))
    parses_or_refuses(bundles.table(ordered, per_block=per_block, **options))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 1))
def test_fuzz_block_under_right_checksum(contents, compression):
    data = bundles.with_trailer(contents, compression)
    index = bundles.block({b"a": bundles.varint(0) + bundles.varint(len(contents))})
    footer = bundles.varint(0) * 2 + bundles.varint(len(data)) + bundles.varint(len(index))
    magic = bundle.TABLE_MAGIC.to_bytes(8, "little")
    parses_or_refuses(data + bundles.with_trailer(index) + footer.ljust(40, b"\0") + magic)
