"""Arrays out of pickles, of which nothing runs: NumPy's own pickles are what is compared with."""

import io
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d.errors import CheckpointError
from i3d.models.foreign.array_pickle import read_array_pickle

TREE = {
    "params": {
        "unit": {
            "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "bias": np.ones(3, "f4"),
        },
        "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    },
    "batch_stats": {"unit": {"mean": np.float32([[1.5]]), "empty": np.zeros((0, 7), "f4")}},
}


def refuse(data: bytes, words: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_array_pickle(data, "some.ckpt")
    assert str(caught.value).startswith("some.ckpt: ")


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_what_numpy_pickled_is_what_is_read(module):
    """Of NumPy 2, and under the name that NumPy 1 gave its function."""
    data = pickle.dumps(TREE, protocol=4)
    if module not in data.decode("latin-1"):
        old, new = b"numpy._core.multiarray", module.encode()
        data = data.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        start = data.index(b"\x95")  # the frame is as much shorter
        size = struct.unpack_from("<Q", data, start + 1)[0] - len(old) + len(new)
        data = data[: start + 1] + struct.pack("<Q", size) + data[start + 9 :]
    found = read_array_pickle(data, "some.ckpt")
    assert list(found) == [
        "params/unit/kernel",
        "params/unit/bias",
        "params/turned",
        "batch_stats/unit/mean",
        "batch_stats/unit/empty",
    ]
    np.testing.assert_array_equal(found["params/unit/kernel"], TREE["params"]["unit"]["kernel"])
    np.testing.assert_array_equal(found["params/turned"], TREE["params"]["turned"])
    assert found["batch_stats/unit/empty"].shape == (0, 7)
    assert all(array.dtype == np.float32 for array in found.values())


class Runs:
    """What an attacker would store."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.mkdir, ("made",)),
        (eval, ("open('made', 'w')",)),
        (np.ndarray, ((1 << 40,),)),
        (np.frombuffer, (b"1234",)),
        (io.open, ("made", "w")),
    ],
)
def test_another_name_is_refused_and_nothing_runs(tmp_path, monkeypatch, function, arguments):
    monkeypatch.chdir(tmp_path)
    refuse(pickle.dumps({"a": Runs(function, *arguments)}, protocol=4), "no array|not a file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 5])
def test_other_protocols_are_refused(protocol):
    refuse(pickle.dumps(TREE, protocol=protocol))


@pytest.mark.parametrize(
    "tree",
    [
        {"a": np.zeros(3)},
        {"a": np.zeros(3, ">f4")},
        {"a": np.zeros(3, "i4")},
        {"a": np.array([object()])},
        {"a": np.zeros(3, [("x", "f4")])},
        {"a": 1},
        {"a": "text"},
        {1: np.zeros(3, "f4")},
        np.zeros(3, "f4"),
        ("a", "b"),
        None,
    ],
    ids=repr,
)
def test_what_is_no_dict_of_float32_arrays_is_refused(tree):
    refuse(pickle.dumps(tree, protocol=4))


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


RECONSTRUCT = text("numpy.core.multiarray") + text("_reconstruct") + b"\x93"
DTYPE = text("numpy") + text("dtype") + b"\x93"


@pytest.mark.parametrize(
    "data",
    [
        program(b"}", b"r\xff\xff\xff\xff"),  # LONG_BINPUT: a memo of 64 GB
        program(b"\x96" + struct.pack("<Q", 1 << 40)),  # BYTEARRAY8 of 1 TB
        program(b"B" + struct.pack("<I", (1 << 32) - 1)),  # bytes that are not there
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",  # a frame as long
        program(b"\x8a\xff" + bytes(255)),  # a long integer
        program(b"}2" + b"2" * 50),  # DUP
        program(b"}" * 200_000),
        program(b"(" * 150_000),
        b"",
        b"\x80",
        b"\x80\x04",
        program(b"0"),
        program(b"h\x07"),  # a memo that nobody wrote
        program(RECONSTRUCT, b"}", b"b"),  # BUILD of the function itself
        program(RECONSTRUCT, b"N}" + text("__code__") + text("x") + b"s\x86b"),
        program(DTYPE, b"N}" + text("__defaults__") + b")s\x86b"),
        program(RECONSTRUCT, b")R"),
        program(b"}" + text("a") + RECONSTRUCT + b")Rs"),  # an array without content
    ],
    ids=lambda data: repr(data[:24]),
)
def test_programs_by_hand_are_refused_in_little_memory(data):
    tracemalloc.start()
    try:
        refuse(data)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    read_array_pickle(pickle.dumps(TREE, protocol=4), "still.ckpt")  # nothing of ours was changed


def test_a_shape_needs_its_bytes():
    data = pickle.dumps({"a": np.zeros(3, "f4")}, protocol=4)
    assert data.count(b"K\x03\x85") == 1  # the shape (3,)
    for shape in (b"K\x04\x85", b"J\xff\xff\xff\xff\x85"):
        changed = data.replace(b"K\x03\x85", shape)
        start = changed.index(b"\x95")
        size = struct.pack("<Q", len(changed) - start - 9)
        refuse(changed[: start + 1] + size + changed[start + 9 :], "shape")


def test_one_dict_in_a_thousand_places_is_not_walked_for_ever():
    tree = {"a": np.zeros(1, "f4")}
    for _ in range(12):
        tree = {"a": tree, "b": tree, "c": tree}
    refuse(pickle.dumps(tree, protocol=4), "more than")
    deep = {"a": np.zeros(1, "f4")}
    for _ in range(40):
        deep = {"a": deep}
    refuse(pickle.dumps(deep, protocol=4), "deep")


@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    end=st.one_of(st.none(), st.integers(0, 2_000)),
)
def test_mutations_give_arrays_or_the_one_error(changes, end):
    data = bytearray(pickle.dumps(TREE, protocol=4))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        found = read_array_pickle(bytes(data[:end]), "mutated.ckpt")
    except CheckpointError:
        return
    assert all(a.dtype == np.float32 and a.nbytes < len(data) for a in found.values())


@given(st.binary(max_size=200))
def test_random_bytes_give_arrays_or_the_one_error(data):
    try:
        read_array_pickle(program(data), "random.ckpt")
    except CheckpointError:
        return


def test_pickletools_knows_every_word():
    from i3d.models.foreign.array_pickle import WORDS

    assert {opcode.name for opcode in pickletools.opcodes} >= WORDS
