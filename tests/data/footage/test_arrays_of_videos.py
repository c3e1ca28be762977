"""Arrays of videos: every layout, type and range, what must be said of them, and hostile files."""

import io
import json
import pickle
import re
import struct
import zipfile

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from support.footage import make_videos

from i3d.data.footage import tensors
from i3d.data.footage.layouts import find_layout
from i3d.data.footage.opening import check_options, open_footage
from i3d.data.footage.options import FootageOptions
from i3d.data.footage.tensors import open_array_file
from i3d.errors import DatasetError, I3DError, UsageError

VIDEOS = make_videos(3, 5, frames=16)
UNIT = torch.from_numpy(VIDEOS) / 255  # float32


def frames_of(location, **options):
    with open_footage(location, FootageOptions(**options)) as opened:
        found = []
        for i in range(len(opened.footage.keys)):
            with opened.footage.open(i) as video:
                found.append(list(video.read(range(video.count_frames()))))
        return np.array(found)


# --- layouts --------------------------------------------------------------------------------------

THWC, TCHW, CTHW, GRAY = (9, 40, 52, 3), (9, 3, 40, 52), (3, 9, 40, 52), (9, 40, 52)


@pytest.mark.parametrize(
    ("shape", "many", "given", "found"),
    [
        (THWC, False, None, "THWC"),
        (TCHW, False, None, "TCHW"),
        (CTHW, False, None, "CTHW"),
        ((9, 1, 40, 52), False, None, "TCHW"),
        (GRAY, False, None, "THW"),
        ((5, *THWC), True, None, "THWC"),
        ((5, *TCHW), True, None, "TCHW"),
        ((3, *CTHW), True, None, "CTHW"),
        ((5, *GRAY), True, None, "THW"),
        ((3, 3, 40, 52), False, "TCHW", "TCHW"),
        ((3, 3, 40, 52), False, "NCTHW", "CTHW"),
        ((5, 3, 3, 40, 52), True, "NCTHW", "CTHW"),
        ((5, 9, 40, 3), True, "NTHW", "THW"),
        (TCHW, False, "THWC", "TCHW"),  # the other set's
    ],
)
def test_axes_are_found(shape, many, given, found):
    assert find_layout(shape, given, many=many, what="x") == found


@pytest.mark.parametrize(
    ("shape", "many", "given", "message"),
    [
        ((3, 3, 40, 52), False, None, "can be TCHW, CTHW; say which by --layout TCHW"),
        ((5, 3, 3, 40, 52), True, None, "can be NTCHW, NCTHW; say which by --layout NTCHW"),
        ((3, 3, 40, 52), False, "THWC", "can be TCHW, CTHW, and not THWC; say which"),
        ((9, 40, 52, 4), False, None, "can be none of THWC, TCHW, CTHW with 1 or 3 channels"),
        ((9, 40, 52, 4), False, "THWC", "can be none of THWC"),
        ((5, 9, 40, 52, 2), True, None, "can be none of NTHWC"),
        (THWC, True, None, "may be one video (THWC) or gray ones (NTHW)"),
        (GRAY, True, None, "one video alone is no set: give a folder"),
        ((5, *THWC), False, None, "in a folder each file is one video"),
        ((4, 4), False, None, "can be none of"),
    ],
)
def test_axes_are_not_guessed(shape, many, given, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        find_layout(shape, given, many=many, what=f"x: uint8 {shape}")


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors"])
@pytest.mark.parametrize("channels", [1, 0])
def test_gray_has_three_equal_channels(tmp_path, suffix, channels):
    gray = VIDEOS[..., :1] if channels else VIDEOS[..., 0]
    path = tmp_path / f"x.{suffix}"
    tensor = torch.from_numpy(np.ascontiguousarray(gray))
    match suffix:
        case "npy":
            np.save(path, gray)
        case "npz":
            np.savez(path, gray)
        case "pt":
            torch.save(tensor, path)
        case _:
            save_file({"x": tensor}, path)
    found = frames_of(path, layout=None if channels else "NTHW")  # 3 could be channels
    np.testing.assert_array_equal(found, np.repeat(VIDEOS[..., :1], 3, -1))


@pytest.mark.parametrize("name", ["video", "videos", "frames"])
def test_the_array_that_is_meant_has_a_name(tmp_path, name):
    arrays = {"labels": np.arange(3), name: VIDEOS}
    np.savez(tmp_path / "x.npz", **arrays)
    torch.save({k: torch.from_numpy(a) for k, a in arrays.items()}, tmp_path / "x.pt")
    for path in (tmp_path / "x.npz", tmp_path / "x.pt"):
        np.testing.assert_array_equal(frames_of(path), VIDEOS)


# --- values ---------------------------------------------------------------------------------------

AXES = {"NTHWC": (0, 1, 2, 3, 4), "NTCHW": (0, 1, 4, 2, 3), "NCTHW": (0, 4, 1, 2, 3)}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("one_file", [True, False])
def test_floats_are_the_pixels_again(tmp_path, kind, axes, one_file):
    """Within what the type's own rounding makes of a 255th; from 0..1 float32 it is exact."""
    tensor = UNIT.to(getattr(torch, kind)).permute(AXES[axes]).contiguous()
    if one_file:
        torch.save(tensor, tmp_path / "x.pt")
    else:
        for i, video in enumerate(tensor):
            save_file({"x": video}, tmp_path / f"{i}.safetensors")
    found = frames_of(tmp_path / "x.pt" if one_file else tmp_path, value_range="0..1")
    assert found.dtype == np.float32
    largest = {"float16": 0.063, "bfloat16": 0.5, "float32": 0, "float64": 0}[kind]
    assert np.abs(found - VIDEOS).max() <= largest  # measured 0.0621, 0.496, 0, 0


def test_ranges(tmp_path):
    """-1..1 as four programs compute it: within float32's rounding of numbers near -1."""
    levels = torch.from_numpy(VIDEOS).float()
    for signed in (levels / 127.5 - 1, levels / 255 * 2 - 1, (levels / 255 - 0.5) / 0.5):
        np.save(tmp_path / "x.npy", signed.numpy())
        found = frames_of(tmp_path / "x.npy", value_range="-1..1")
        assert np.abs(found - VIDEOS).max() < 1e-5  # measured 7.6e-6
    np.save(tmp_path / "x.npy", levels.numpy().astype(">f4"))
    np.testing.assert_array_equal(frames_of(tmp_path / "x.npy", value_range="0..255"), VIDEOS)
    np.save(tmp_path / "x.npy", (UNIT.numpy() * 1.0009).astype(np.float64))
    assert frames_of(tmp_path / "x.npy", value_range="0..1").max() == 255  # clipped


def test_every_level_is_exact():
    """x / 255 * 255 in float32."""
    level = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(level / np.float32(255) * np.float32(255), level)


@pytest.mark.parametrize(
    ("value", "value_range", "message"),
    [
        (np.nan, "0..1", "frame 9 holds nan, which is no pixel"),
        (np.inf, "0..255", "frame 9 holds inf, which is outside of --range 0..255"),
        (1.002, "0..1", "frame 9 holds 1.002, which is outside of --range 0..1"),
        (-0.5, "0..1", "frame 9 holds -0.5, which is outside"),
        (-1.01, "-1..1", "frame 9 holds -1.01, which is outside"),
        (255.5, "0..255", "frame 9 holds 255.5, which is outside"),
    ],
)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_values_beyond_the_range_are_that_videos_error(tmp_path, value, value_range, message, kind):
    videos = np.array(UNIT.numpy(), kind)
    videos[1, 9, 5, 5, 1] = value
    np.save(tmp_path / "x.npy", videos)
    with open_footage(tmp_path / "x.npy", FootageOptions(value_range=value_range)) as opened:
        footage = opened.footage
        for i in (0, 1, 2):
            with footage.open(i) as video:
                assert len(list(video.read(range(9)))) == 9
                if i == 1:
                    with pytest.raises(DatasetError, match=re.escape(message)):
                        list(video.read([9]))


def test_what_must_be_said_is_asked_for(tmp_path):
    """Once, of the set, in one line with file, type, shape and option; and is refused in vain."""
    np.save(tmp_path / "all.npy", UNIT.numpy())
    with pytest.raises(UsageError) as caught:
        open_footage(tmp_path / "all.npy").__enter__()
    assert str(caught.value) == (
        f"{tmp_path}/all.npy: float32 (3, 16, 40, 52, 3): floats do not say what white is; give "
        "--range 0..1, -1..1 or 0..255"
    )
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "a.npy", UNIT[0].numpy())
    np.save(tmp_path / "set" / "b.npy", VIDEOS[1])
    np.save(tmp_path / "set" / "c.npy", VIDEOS[1].astype(np.int64))
    with pytest.raises(UsageError, match=r"a.npy: float32 \(16, 40, 52, 3\): floats do not say"):
        open_footage(tmp_path / "set").__enter__()
    options = FootageOptions(value_range="0..1", layout="NTHWC")
    with open_footage(tmp_path / "set", options) as opened:
        assert opened.footage.origin == "array:0..1" and opened.uses == {"layout", "range"}
        with opened.footage.open(1) as video:
            np.testing.assert_array_equal(list(video.read(range(16))), VIDEOS[1])
        with (
            pytest.raises(DatasetError, match=r"c.npy: int64 .*: videos are uint8 or floats"),
            opened.footage.open(2),
        ):
            pass
        check_options([opened], options)
    np.save(tmp_path / "set" / "a.npy", VIDEOS[0])
    with open_footage(tmp_path / "set", options) as opened:
        assert opened.footage.origin == "array"
        with pytest.raises(UsageError, match=r"--range 0..1: .*set hold no floats; leave"):
            check_options([opened], options)
    options = FootageOptions(layout="TCHW")
    with (
        open_footage(tmp_path / "set", options) as opened,
        pytest.raises(UsageError, match=r"--layout TCHW: .* hold no array with these axes"),
    ):
        check_options([opened], options)


def test_a_bad_file_of_a_folder_is_that_videos_error(tmp_path):
    (tmp_path / "0.npy").write_bytes(b"nothing")
    np.savez(tmp_path / "1.npz", a=VIDEOS[0], b=VIDEOS[1])
    np.save(tmp_path / "2.npy", VIDEOS[2])
    with open_footage(tmp_path) as opened:
        footage = opened.footage
        assert footage.keys == ("0", "1", "2")
        with pytest.raises(DatasetError, match=r"0\.npy: array is not a readable"):
            footage.open(0).__enter__()
        with pytest.raises(DatasetError, match=r"holds 2 arrays .* call the one that is meant"):
            footage.open(1).__enter__()
        with footage.open(2) as video:
            assert video.count_frames() == 16


def test_arrays_behind_a_url(tmp_path):
    fs = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(VIDEOS), buffer)
    fs.pipe_file("/arrays/all.pt", buffer.getvalue())
    fs.pipe_file("/set/deep/a.safetensors", save({"x": torch.from_numpy(VIDEOS[0])}))
    np.testing.assert_array_equal(frames_of("memory://arrays/all.pt"), VIDEOS)
    np.testing.assert_array_equal(frames_of("memory://set"), VIDEOS[:1])


def test_an_array_of_terabytes_is_not_read(tmp_path):
    """It is a hole; only the frames that are asked for are touched."""
    shape = (64, 1 << 14, 1024, 1024, 3)
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        text = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, text)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)))
    with open_footage(path) as opened, opened.footage.open(63) as video:
        assert video.count_frames() == 1 << 14
        assert next(video.read([1 << 13])).shape == (1024, 1024, 3)


# --- hostile files --------------------------------------------------------------------------------


def torch_bytes(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


TENSOR = torch.from_numpy(VIDEOS)


def with_program(program, data=None):
    """A PyTorch file whose data.pkl is another."""
    source = zipfile.ZipFile(io.BytesIO(torch_bytes(TENSOR) if data is None else data))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, program(content) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


class Opens:
    """What a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def recompressed(data):
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def larger(program):
    """The tensor's storage has 2^31 elements, and its shape more than the file has bytes."""
    count, shape = int(np.prod(VIDEOS.shape)), b"(K\x03K\x10"
    assert shape in program
    longer = program.replace(struct.pack("<i", count), struct.pack("<i", 0x7FFFFFFF))
    return longer.replace(shape, b"(K\xffK\x10")


def doubled(depth):
    """A program of lists that hold the one before twice, which is then called, and so shown."""
    lists = [b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(depth)]
    return b"\x80\x02]q\x00" + b"".join(lists) + b")R."


def called(function, arguments):
    return b"\x80\x02c%s\n%s%sR." % (*function, arguments)


def with_two_lists(data):
    """Its end names a list of members that is not the one before it."""
    at = data.rindex(b"PK\6\6") + 48
    return (
        data[:at] + struct.pack("<Q", struct.unpack_from("<Q", data, at)[0] - 46) + data[at + 8 :]
    )


BAD_TORCH = {
    "nothing": (b"", "format that torch.save has had since PyTorch 1.6"),
    "legacy": (
        torch_bytes(TENSOR, _use_new_zipfile_serialization=False),
        "format that torch.save has had since PyTorch 1.6",
    ),
    "no zip": (b"PK\3\4" + bytes(100), "is cut short"),
    "cut": (torch_bytes(TENSOR)[:-30], "is cut short"),
    "compressed": (recompressed(torch_bytes(TENSOR)), "is compressed"),
    "object": (torch_bytes({"x": Opens("/nowhere")}), "which makes no plain tensor"),
    "list": (torch_bytes([TENSOR]), "it holds a list, neither tensor nor dict"),
    "no tensor": (torch_bytes({"epoch": 3}), "it holds 0 tensors"),
    "integers": (torch_bytes(TENSOR.long()), "videos are uint8 or floats"),
    "sparse": (torch_bytes(TENSOR[0, 0, ..., 0].to_sparse()), "makes no plain tensor"),
    "negative": (
        torch_bytes(torch.complex(TENSOR.float(), TENSOR.float()).conj().imag),
        "whose numbers are not those that are stored",
    ),
    "larger": (with_program(larger), "in a storage of"),
    "no pickle": (with_program(lambda p: b"\x80\x02abc"), "not a PyTorch file"),
    "endless": (with_program(lambda p: p[:-1]), "not a PyTorch file"),
    "empty program": (with_program(lambda p: b""), "not a PyTorch file"),
    "other stack": (with_program(lambda p: b"\x80\x02t."), "not a PyTorch file"),
    "pops too much": (with_program(lambda p: b"\x80\x02\x85."), "not a PyTorch file"),
    "builds": (with_program(lambda p: b"\x80\x02}}b."), "Can only build Tensor"),
    "long program": (with_program(lambda p: p + bytes(1 << 20)), "1,048,576 are read"),
    "doubled": (with_program(lambda p: doubled(40)), "it refers to one thing twice"),
    "text": (
        with_program(lambda p: b"\x80\x02](X\0\1\1\0" + b"x" * 65792 + b"q\0h\0e."),
        "refers twice to a text of 65,792 characters",
    ),
    "number": (
        with_program(lambda p: called((b"__builtin__", b"bytearray\n"), b"J\0\0\0\x7f\x85")),
        "'__builtin__ bytearray', which makes no plain tensor",
    ),
    "dict of things": (
        with_program(lambda p: called((b"collections", b"OrderedDict\n"), b"](]]ee\x85")),
        "an OrderedDict of other things than none",
    ),
    "long ending": (torch_bytes(TENSOR) + bytes(1 << 16), "is cut short"),
    "two lists": (with_two_lists(torch_bytes(TENSOR)), "does not lie before its end"),
    "two ends": (
        torch_bytes(TENSOR).replace(b"PK\6\6", b"PK\6\0"), "its list of members has two ends"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD_TORCH.values(), ids=BAD_TORCH)
def test_a_bad_pytorch_file_is_one_line(tmp_path, data, message):
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(I3DError, match=re.escape(message)) as caught:
        open_footage(path).__enter__()
    text = str(caught.value)
    assert text.startswith(f"{path}") and "\n" not in text


def test_no_pickle_is_loaded(tmp_path, monkeypatch):
    """But by torch.load with ``weights_only``, which sees no program with other calls."""
    for name in ("Unpickler", "load", "loads"):
        monkeypatch.setattr(pickle, name, None)
    torch_load, asked = torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *a, **options: asked.append(options) or torch_load(*a, **options)
    )
    (tmp_path / "x.pt").write_bytes(torch_bytes({"video": TENSOR, "o": Opens(tmp_path / "made")}))
    with pytest.raises(DatasetError, match=r"it calls '\w*io open', which makes no plain"):
        open_footage(tmp_path / "x.pt").__enter__()
    assert not (tmp_path / "made").exists() and not asked
    (tmp_path / "x.pt").write_bytes(torch_bytes(torch.nn.Parameter(TENSOR / 255)))
    assert frames_of(tmp_path / "x.pt", value_range="0..1").shape == VIDEOS.shape
    assert asked and all(options["weights_only"] and options["mmap"] for options in asked)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[1:, ::2, 5:30],
        lambda t: t.permute(4, 3, 2, 1, 0)[:, 3:, :, :, 1],
        lambda t: t[:, :1].expand(-1, 9, -1, -1, -1),
        lambda t: t.bfloat16()[..., 1],
    ],
)
def test_views_lie_where_pytorch_reads_them(tmp_path, view):
    """Offsets and strides, against torch.load."""
    tensor = view(TENSOR)
    torch.save({"epoch": 7, "video": tensor, "other": TENSOR.double()}, tmp_path / "x.pt")
    with open_array_file(tmp_path / "x.pt") as arrays:
        found = arrays["video"].values(arrays["video"].map())
    theirs = torch.load(tmp_path / "x.pt", weights_only=True)["video"]
    np.testing.assert_array_equal(found, theirs.float() if found.dtype != np.uint8 else theirs)


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_a_worker_maps_the_file_itself(tmp_path, suffix):
    """What is sent to it is small, and a file that was replaced is told."""
    path = tmp_path / f"x.{suffix}"
    write = {
        "npy": lambda v: np.save(path, v),
        "pt": lambda v: torch.save(torch.from_numpy(v), path),
        "safetensors": lambda v: save_file({"x": torch.from_numpy(v)}, path),
    }[suffix]
    write(VIDEOS)
    with open_footage(path) as opened:
        sent = pickle.dumps(opened.footage)
        assert len(sent) < 1000
        footage = pickle.loads(sent)  # noqa: S301 (our own)
        with footage.open(2) as video:
            np.testing.assert_array_equal(list(video.read(range(16))), VIDEOS[2])
        path.unlink()
        write(VIDEOS[:, :3].copy())
        with (
            pytest.raises(DatasetError, match=r"x\.\w+ was replaced while it was read"),
            footage.open(2),
        ):
            pass


def safetensors_bytes(header, data=bytes(24), size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype="U8", shape=(2, 3, 4), offsets=(0, 24)):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BAD_SAFETENSORS = {
    "nothing": (b"", "header too small"),
    "short": (b"\1\0\0", "header too small"),
    "long header": (safetensors_bytes({}, size=1 << 60), "a header of 1152921504606846976 bytes"),
    "header beyond": (safetensors_bytes({}, size=1000), "invalid header length"),
    "no JSON": (safetensors_bytes(b"{'x'"), "not a readable .safetensors"),
    "deep": (safetensors_bytes(b"[" * 100_000), "not a readable .safetensors"),
    "list": (safetensors_bytes([]), "not a readable .safetensors"),
    "no entry": (safetensors_bytes({"x": 3}), "not a readable .safetensors"),
    "type": (safetensors_bytes(entry(dtype="F8_E5M2")), "can be none of"),
    "type is a list": (safetensors_bytes(entry(dtype=[])), "not a readable .safetensors"),
    "shape": (safetensors_bytes(entry(shape=(2, 3, 5))), "invalid shape"),
    "negative": (safetensors_bytes(entry(shape=(-2, -3, 4))), "not a readable .safetensors"),
    "true": (safetensors_bytes(entry(shape=(True, 24))), "expected usize"),
    "overflow": (safetensors_bytes(entry(shape=[1 << 62, 1 << 62, 0], offsets=[0, 0])), "overflow"),
    "outside": (safetensors_bytes(entry(offsets=(8, 32))), "invalid offset"),
    "backwards": (safetensors_bytes(entry(offsets=(24, 0))), "invalid offset"),
    "axes": (safetensors_bytes(entry(shape=[1] * 20, offsets=(0, 1)), b"x"), "of shape (1, 1,"),
    "empty": (safetensors_bytes(entry(shape=(2, 0), offsets=(0, 0)), b""), "of shape (2, 0)"),
    "two": (
        safetensors_bytes(
            {n: entry(offsets=(24 * i, 24 * i + 24))["x"] for i, n in enumerate("xy")}, bytes(48)
        ),
        "holds 2 arrays ('x', 'y')",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS)
def test_a_bad_safetensors_file_is_one_line(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(I3DError, match=re.escape(message)) as caught:
        open_footage(path).__enter__()
    text = str(caught.value)
    assert text.startswith(f"{path}") and "\n" not in text


def test_bounds_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_TENSORS", 1)
    many = {"video": TENSOR, "other": TENSOR.clone()}
    save_file(many, tmp_path / "x.safetensors")
    torch.save(many, tmp_path / "x.pt")
    with pytest.raises(DatasetError, match=r"2 tensors; at most 1"):
        open_footage(tmp_path / "x.safetensors").__enter__()
    with pytest.raises(DatasetError, match=r"2 tensors; 1 to 1 are read"):
        open_footage(tmp_path / "x.pt").__enter__()
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 20_000, 1, 1), np.uint8))
    with pytest.raises(UsageError, match=r"frames of 1x20000; at most 16384 pixels a side"):
        open_footage(tmp_path / "x.npy").__enter__()
