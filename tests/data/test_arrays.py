"""Arrays from outside: what is no array is one line, whatever NumPy and zipfile raise over it."""

import io
import struct
import zipfile

import numpy as np
import pytest
from support.command import exit_code

from i3d.data import arrays
from i3d.data.arrays import open_arrays
from i3d.errors import DatasetError

GOOD = np.arange(24, dtype=np.float32).reshape(6, 4)


def npy(array=GOOD, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_header(text, *, version=1, size=None, data=bytes(96)):
    header = text if isinstance(text, bytes) else text.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(header) if size is None else size)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def header(descr="'<f4'", order="False", shape="(6, 4)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


DAMAGED = {
    "empty file": b"",
    "wrong magic": b"\x92" + npy()[1:],
    "wrong version": npy()[:6] + b"\x09" + npy()[7:],
    "cut in the magic": npy()[:7],
    "cut in the header": npy()[:40],
    "cut in the data": npy()[:-1],
    "header of 4 GB": with_header(header(), version=2, size=0xFFFFFFFF),
    "header of 10 MB": with_header(" " * 10_000_000, version=2),
    "no Python": with_header("{'descr': \x00\n"),
    "an open bracket": with_header("{'descr': '<f4', 'shape': (6,"),
    "an open text": with_header("{'descr': '''<f4, 'shape': (6,"),
    "nested too deep": with_header("(" * 9000),
    "nested lists": with_header("[" * 3000 + "]" * 3000),
    "signs": with_header("-" * 9000 + "1"),
    "no dict": with_header("[1, 2]"),
    "other keys": with_header("{'descr': '<f4'}"),
    "not UTF-8": with_header(b"{'descr': '\xff\xfe'}", version=3),
    "no type": with_header(header(descr="'nothing'")),
    "a number for a type": with_header(header(descr="7")),
    "a type of a list": with_header(header(descr="[('a', '<f4', (-1,))]")),
    "a type that is empty": with_header(header(descr="'V0'")),
    "a type of gigabytes": with_header(header(descr="'S2000000000'")),
    "negative shape": with_header(header(shape="(-6, 4)")),
    "two negative sides": with_header(header(shape="(-6, -4)")),
    "zero size": with_header(header(shape="(0, 4)")),
    "shape is a number": with_header(header(shape="6")),
    "shape of texts": with_header(header(shape="('6', 4)")),
    "shape of floats": with_header(header(shape="(6.0, 4)")),
    "shape over 64 bits": with_header(header(shape=f"({1 << 70}, 4)")),
    "shape that overflows": with_header(header(shape=f"({1 << 32}, {1 << 32})")),
    "shape of exabytes": with_header(header(shape=f"({1 << 60},)")),
    "too many axes": with_header(header(shape=str((1,) * 100))),
    "order is a text": with_header(header(order="'yes'")),
    "objects": npy(np.array([{"a": 1}], object), allow_pickle=True),
    "elements of nothing": with_header(header(descr="'|S0'", shape="(2,)")),
    "version 3": with_header(header(), version=3),
    "objects in fields": with_header(header(descr="[('a', '|O')]", shape="(2,)")),
}


def refusal(path):
    with pytest.raises(DatasetError) as caught, open_arrays(path):
        pass
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_is_no_array(tmp_path, data, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("videos.npy", data)
    refusal(path)


def test_a_header_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    """The file has them, as a hole."""
    path = tmp_path / "x.npy"
    path.write_bytes(with_header(header(), version=2, size=0xFFFFFF00))
    with path.open("r+b") as file:
        file.truncate(1 << 33)
    monkeypatch.setattr(np.lib.format, "open_memmap", None)  # which would read it
    assert "a header of 4294967040 bytes; at most 10000 are read" in refusal(path)


@pytest.mark.parametrize("seed", range(100))
def test_a_byte_of_a_file_is_another(tmp_path, seed):
    """It is an array or one line."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    if seed % 2:
        np.savez_compressed(buffer, videos=GOOD)
    else:
        buffer.write(npy())
    data = bytearray(buffer.getvalue())
    for place in rng.integers(len(data), size=3):
        data[place] = rng.integers(256)
    path = tmp_path / ("x.npz" if seed % 2 else "x.npy")
    path.write_bytes(data)
    try:
        with open_arrays(path) as found:
            assert found.arrays
    except DatasetError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


def zipped(path, method=zipfile.ZIP_DEFLATED, name="videos.npy", data=None):
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr(name, npy() if data is None else data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_unread(tmp_path, method):
    """A kilobyte of bzip2 may give gigabytes at once."""
    zipped(tmp_path / "x.npz", method)
    assert f"'videos.npy' is compressed by method {method}" in refusal(tmp_path / "x.npz")


def test_other_members(tmp_path):
    zipped(tmp_path / "x.npz")
    zipped(tmp_path / "x.npz", name="read me.txt", data=b"hello")
    assert "'read me.txt' is no array" in refusal(tmp_path / "x.npz")
    zipped(tmp_path / "y.npz")
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path / "y.npz")
    assert "'videos.npy' is there twice" in refusal(tmp_path / "y.npz")
    for i in range(arrays.MAX_MEMBERS + 1):
        zipped(tmp_path / "z.npz", name=f"{i}.npy", data=b"")
    assert "65 arrays; 1 to 64 are read" in refusal(tmp_path / "z.npz")
    zipfile.ZipFile(tmp_path / "e.npz", "w").close()
    assert "0 arrays" in refusal(tmp_path / "e.npz")


def test_a_name_over_two_lines(tmp_path):
    zipped(tmp_path / "x.npz", name="a\nb.npy")
    assert "'a\\nb.npy' has a name that cannot be shown" in refusal(tmp_path / "x.npz")


def test_an_encrypted_member(tmp_path):
    path = tmp_path / "x.npz"
    zipped(path)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    assert "'videos.npy' is encrypted" in refusal(path)


def test_folders_that_are_called_so(tmp_path):
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).mkdir()
        assert "is a folder" in refusal(tmp_path / name)


def test_what_is_an_array(tmp_path):
    """Fortran's order, other byte orders and precisions, and Python 2's header."""
    for array in (
        np.asfortranarray(GOOD),
        GOOD.astype(">f8"),
        GOOD.astype(np.float16),
        np.array(7),
    ):
        np.save(tmp_path / "x.npy", array)
        with open_arrays(tmp_path / "x.npy") as found:
            np.testing.assert_array_equal(found.only()[1], array)
    (tmp_path / "x.npy").write_bytes(with_header(header(shape="(6L, 4L)"), data=GOOD.tobytes()))
    with open_arrays(tmp_path / "x.npy") as found:
        np.testing.assert_array_equal(found.only()[1], GOOD)


FVD = {  # what is given for both sets, and what is said
    "structured": (np.zeros((4, 3), [("a", "<f4")]), 2, "features are float (N, D)"),
    "complex": (np.zeros((4, 3), np.complex64), 2, "is complex64 (4, 3); features are float"),
    "integers": (np.zeros((4, 3), np.int64), 2, "is int64 (4, 3); features are float"),
    "texts": (np.full((4, 3), "x"), 2, "features are float (N, D)"),
    "one axis": (np.zeros(4, np.float32), 2, "videos; those are uint8 or floats (N, T, H, W, C)"),
    "float videos": (
        np.zeros((2, 16, 8, 8, 3), np.float32),
        2,
        "(2, 16, 8, 8, 3): floats do not",
    ),
    "signed videos": (np.zeros((2, 16, 8, 8, 3), np.int8), 2, "videos are uint8 or"),
    "too wide": (np.zeros((2, 1 << 15), np.float32), 2, "is float32 (2, 32768)"),
    "NaN": (np.array([[0, 1], [0, np.nan], [1, 1]]), 1, "row 1, column 1 is nan"),
    "half infinity": (np.array([[0, 1], [np.inf, 0]], np.float16), 1, "row 1, column 0 is inf"),
    "beyond float64": (np.full((3, 2), np.longdouble("1e4000")), 1, "row 0, column 0 is inf"),
    "huge": (np.array([[1e200, 0], [0, -1e200], [5, 5]]), 1, "row 0, column 0 is 1e+200"),
}


@pytest.mark.parametrize(("array", "code", "words"), FVD.values(), ids=FVD)
def test_fvd_of_other_arrays_is_one_line(tmp_path, capfd, array, code, words):
    path = tmp_path / "x.npy"
    np.save(path, array)
    assert exit_code("fvd", path, path, "--device", "cpu", "--json") == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("i3d: ") and err.count("\n") == 1, err
    assert words in err and str(path) in err


def test_features_over_a_hole_are_refused_before_they_are_kept(tmp_path, capfd):
    path = tmp_path / "x.npy"
    path.write_bytes(with_header(header(shape=f"({1 << 23}, 1024)")))
    with path.open("r+b") as file:
        file.truncate((1 << 35) + 4096)
    assert exit_code("fvd", path, path, "--kvd", "--device", "cpu") == 2
    err = capfd.readouterr().err
    assert err.startswith(f"i3d: {path}: 8388608 x 1024 features take 64 GiB when all are kept")
    assert err.count("\n") == 1
