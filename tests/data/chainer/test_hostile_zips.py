"""Zips that the Chainer program did not write: one line each, that names the zip and the remedy."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chainer_folders import Sample, encode, moving_video, write_classes

from i3d.data import zip_directory
from i3d.data.precomputed import open_precomputed
from i3d.errors import DatasetError

HEIGHT, WIDTH = 40, 60


@pytest.fixture(scope="module")
def sample():
    """A video of four frames with flow."""
    return Sample(1, *moving_video(4, height=HEIGHT, width=WIDTH))


def read_all(folder, streams=None):
    """Open a folder and decode all of it, as an evaluation does."""
    dataset = open_precomputed(folder)
    for planned in dataset.manifest.samples():
        read = dataset.read_sample(planned.key, streams=streams)
        read.frames()
        read.stored_flow()


def refused(folder, *words):
    """The one-line error that reading a folder gives, which has those words."""
    with pytest.raises(DatasetError) as caught:
        read_all(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in ("shard_0_0.zip", *words):
        assert word in message
    return message


def members(sample):
    """Name -> bytes of a whole sample."""
    found = {"sample_0/label": b"1"}
    for part, jpegs in sample.members.items():
        found |= {f"sample_0/{part}/{t}.jpg": jpeg for t, jpeg in enumerate(jpegs)}
    return found


def write(folder, contents, **options):
    with zipfile.ZipFile(folder / "shard_0_0.zip", "w", **options) as file:
        for name, data in contents.items():
            file.writestr(name, data)


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "sample_0/rgb/../0.jpg", "C:\\0.jpg", "x" * 999),
        *("sample_0/rgb/x.jpg", "sample_0/rgb/0.jpg.exe", "sample_0/rgb/\x1b[31m0.jpg"),
        *("sample_1234567890/label", "sample_/label", "sample_0/labels", "sample_0/audio/0.jpg"),
    ],
)
def test_names_that_the_program_did_not_write(tmp_path, sample, name):
    write(tmp_path, members(sample) | {name: b"x"})
    message = refused(tmp_path, "is none that the Chainer program wrote", "move it out")
    assert "\x1b" not in message


@pytest.mark.parametrize("name", ["rgb/2.jpg", "flow_x/1.jpg", "flow_y/2.jpg"])
def test_missing_pictures(tmp_path, sample, name):
    contents = members(sample)
    del contents[f"sample_0/{name}"]
    write(tmp_path, contents)
    refused(tmp_path, "sample_0")
    if not name.startswith("rgb"):  # which does without
        assert open_precomputed(tmp_path).read_sample("shard_0_0/sample_0", streams=["rgb"]).rgb


def test_missing_labels(tmp_path, sample):
    """The video is left out with its reason, and the others are read."""
    for label in (None, b"one", b"-1", b"1.5", b"9" * 17, b"100000", b""):
        contents = members(sample) | {"sample_1/label": b"2"}
        contents |= {
            n.replace("_0", "_1", 1): d for n, d in members(sample).items() if "label" not in n
        }
        if label is None:
            del contents["sample_0/label"]
        else:
            contents["sample_0/label"] = label
        write(tmp_path, contents)
        dataset = open_precomputed(tmp_path)
        assert [s.class_index for s in dataset.manifest.samples()] == [None, 2]
        assert "label" in dataset.failure("shard_0_0/sample_0")
        assert dataset.failure("shard_0_0/sample_1") is None
        assert dataset.read_sample("shard_0_0/sample_1").frames().shape[0] == 4


def test_pictures_of_another_size_or_kind(tmp_path, sample):
    small = encode(np.zeros((HEIGHT, WIDTH - 1, 3), np.uint8))
    gray = encode(np.zeros((HEIGHT, WIDTH), np.uint8))
    cases = {
        ("sample_0/rgb/2.jpg", small): f"expected a YCbCr one of {WIDTH}x{HEIGHT}",
        ("sample_0/rgb/0.jpg", small): f"expected a YCbCr one of {WIDTH - 1}x{HEIGHT}",
        ("sample_0/rgb/1.jpg", gray): "Gray JPEG",
        ("sample_0/flow_y/1.jpg", encode(np.zeros((HEIGHT + 2, WIDTH), np.uint8))): "gray one of",
        ("sample_0/flow_x/0.jpg", sample.members["rgb"][0]): "expected a gray one",
        ("sample_0/flow_x/0.jpg", b""): "damaged JPEG",
        ("sample_0/rgb/0.jpg", b"GIF89a"): "is no JPEG",
        ("sample_0/rgb/3.jpg", sample.members["rgb"][3][:200]): "frame 3",
    }
    for (name, data), words in cases.items():
        write(tmp_path, members(sample) | {name: data})
        refused(tmp_path, words)


def test_a_picture_that_says_it_is_huge(tmp_path, sample):
    """A JPEG's header may claim as much; libjpeg-turbo itself goes up to 65,500."""
    jpeg = bytearray(sample.members["rgb"][0])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    write(tmp_path, members(sample) | {"sample_0/rgb/0.jpg": bytes(jpeg)})
    refused(tmp_path, "frames of 60000x60000 pixels")


def test_bombs(tmp_path, sample, monkeypatch):
    """What would unpack to more than it may, whatever its size is said to be."""
    huge = bytes(zip_directory.MAX_MEMBER_BYTES + 1)
    write(
        tmp_path, members(sample) | {"sample_0/rgb/0.jpg": huge}, compression=zipfile.ZIP_DEFLATED
    )
    refused(tmp_path, "has more than 4,194,304 bytes")
    # the same with a small size in the directory
    path = tmp_path / "shard_0_0.zip"
    data = path.read_bytes().replace(struct.pack("<I", len(huge)), struct.pack("<I", 5000))
    path.write_bytes(data)
    refused(tmp_path, "has another size than the zip's directory says")
    monkeypatch.setattr(zip_directory, "MAX_READ_BYTES", 1000)
    write(tmp_path, members(sample))
    refused(tmp_path, "at most 1,000 are read")
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 100)
    refused(tmp_path, "at most 100 are read")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path, sample, method):
    write(tmp_path, members(sample), compression=method)
    refused(tmp_path, "compressed in an unknown way")


def test_an_encrypted_member(tmp_path, sample):
    write(tmp_path, members(sample))
    path = tmp_path / "shard_0_0.zip"
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    path.write_bytes(data)
    refused(tmp_path, "is encrypted")


def test_a_member_that_is_there_twice(tmp_path, sample):
    contents = [*members(sample).items(), ("sample_0/rgb/1.jpg", b"x")]
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "shard_0_0.zip", "w") as file,
    ):
        for name, data in contents:
            file.writestr(name, data)
    refused(tmp_path, "is there twice")


def test_damage(tmp_path, sample):
    write(tmp_path, members(sample))
    path = tmp_path / "shard_0_0.zip"
    whole = path.read_bytes()
    at = whole.index(sample.members["flow_x"][1])
    path.write_bytes(whole[: at + 300] + bytes([whole[at + 300] ^ 1]) + whole[at + 301 :])
    refused(tmp_path, "flow_x/1.jpg", "checksum (CRC-32) does not match")
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(tmp_path, "shard_0_0.zip", "copy the zip again")
    path.write_bytes(b"PK\5\6" + bytes(18))  # an empty zip
    refused(tmp_path, "no samples")
    wrong_count = bytearray(whole)
    struct.pack_into("<HH", wrong_count, len(whole) - 22 + 8, 3, 3)
    path.write_bytes(wrong_count)
    refused(tmp_path, "and not the 3 that it says")


def test_one_damaged_zip_of_the_oldest_layout_is_one_video(tmp_path, sample):
    write_classes(tmp_path, [sample, sample, sample])
    (tmp_path / "rgb/class_1/sample_0.zip").write_bytes(b"not a zip")
    (tmp_path / "flow_y/class_1/sample_1.zip").unlink()
    dataset = open_precomputed(tmp_path)
    assert dataset.failure("class_1/sample_1") == "flow_y/class_1/sample_1.zip is missing"
    with pytest.raises(DatasetError, match=r"class_1/sample_0.*is no zip"):
        dataset.read_sample("class_1/sample_0")
    assert dataset.read_sample("class_1/sample_2").frames().shape[0] == 4


@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_byte_is_noticed_or_harmless(tmp_path_factory, data):
    """Whatever is changed: an error of ours, or the same pictures."""
    sample = Sample(1, *moving_video(3, height=16, width=24))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members(sample).items():
            file.writestr(name, content)
    whole = bytearray(buffer.getvalue())
    # most changes in what describes the pictures, not in them
    directory = whole.index(b"PK\1\2")
    at = data.draw(st.one_of(st.integers(directory, len(whole) - 1), st.integers(0, directory)))
    whole[at] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("zips")
    (folder / "shard_0_0.zip").write_bytes(whole)
    try:
        dataset = open_precomputed(folder)
        for planned in dataset.manifest.samples():
            if dataset.failure(planned.key) is None:
                read = dataset.read_sample(planned.key, streams=dataset.manifest.streams)
                np.testing.assert_array_equal(read.frames(), sample.pixels("rgb"))
                if "flow" in dataset.manifest.streams:
                    np.testing.assert_array_equal(
                        read.stored_flow()[..., 0], sample.pixels("flow_x")
                    )
    except DatasetError as error:
        assert "\n" not in str(error)


OPEN = """
import resource, sys
from i3d.data.precomputed import open_precomputed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_precomputed(sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(dataset.found, (after - before) // 1024)
"""


@pytest.mark.slow
def test_ten_thousand_samples_open_in_bounded_memory(tmp_path):
    """80 zips as the program wrote them by default: 600 names a sample, 6 million in all."""
    table = make_large_zip(samples=125, frames=200)
    for i in range(80):
        path = tmp_path / f"shard_{i}_0.zip"
        if i == 0:
            path.write_bytes(table)
        else:
            path.hardlink_to(tmp_path / "shard_0_0.zip")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found, megabytes = map(int, done.stdout.split())
    assert found == 10_000
    assert megabytes < 300  # measured 110; the objects of zipfile would have 4,000


def make_large_zip(samples, frames):
    """A zip whose pictures are a byte each: zipfile would take minutes for the names."""
    body, directory, count = io.BytesIO(), io.BytesIO(), 0
    for k in range(samples):
        names = [(f"sample_{k}/label", b"7")]
        for part in ("rgb", "flow_x", "flow_y"):
            names += [(f"sample_{k}/{part}/{t}.jpg", b"J") for t in range(frames - (part != "rgb"))]
        for name, data in names:
            head = struct.pack(
                "<HHHHHIIIHH", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0
            )
            offset = body.tell()
            body.write(b"PK\3\4" + head + name.encode() + data)
            directory.write(
                b"PK\1\2\x14\3" + head + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name.encode()
            )
            count += 1
    start, size = body.tell(), directory.tell()
    end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, start, 0)
    return body.getvalue() + directory.getvalue() + end_64 + locator + end
