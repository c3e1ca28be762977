"""Zip and tar: read where they are, and what an archive from elsewhere may do."""

import gzip
import io
import re
import struct
import tarfile
import zipfile

import fsspec
import numpy as np
import pytest
from support.footage import (
    frame_files,
    make_videos,
    png,
    write_files,
    write_lossless,
    write_tar,
    write_zip,
)

from i3d.data import zip_directory
from i3d.data.footage import archives
from i3d.data.footage.opening import open_footage
from i3d.errors import DatasetError, StorageError, UsageError

VIDEOS = make_videos(3, 9, frames=12)
FRAMES = frame_files(VIDEOS)
PNG = png(VIDEOS[0, 0])


def read(footage, i):
    with footage.open(i) as video:
        return list(video.read(range(video.count_frames())))


def tar_of(*members):
    """A tar of (name, content, how its header differs)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in changes.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["zip", "tar", "tgz"])
def test_a_folder_in_an_archive_is_that_folder(tmp_path, form):
    """Its keys are the same, also with that folder at the top; other files do not matter."""
    write_files(tmp_path / "set", FRAMES)
    more = {"set/readme.txt": b"x", "set/.DS_Store": b"x", "__MACOSX/set/._1.png": b"x"}
    files = {f"set/{name}": data for name, data in FRAMES.items()} | more
    if form == "zip":
        write_zip(tmp_path / "x.zip", files)
    else:
        write_tar(tmp_path / f"x.{form}", files, "w:gz" if form == "tgz" else "w")
    with open_footage(tmp_path / "set") as one, open_footage(tmp_path / f"x.{form}") as other:
        assert one.footage.keys == other.footage.keys == ("class 0/00", "class 0/02", "class 1/01")
        assert one.footage.origin == other.footage.origin == "frames-png"
        for i, video in enumerate((0, 2, 1)):
            np.testing.assert_array_equal(read(other.footage, i), VIDEOS[video])


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_behind_a_url_and_with_strange_names(form):
    files = {f"Ünï cödé/日本 {t}.png": png(frame) for t, frame in enumerate(VIDEOS[0])}
    buffer = io.BytesIO()
    (
        write_zip
        if form == "zip"
        else lambda f, x: f.write(tar_of(*((n, d, {}) for n, d in x.items())))
    )(buffer, files)
    fsspec.filesystem("memory").pipe_file(f"/archives/x.{form}", buffer.getvalue())
    with open_footage(f"memory://archives/x.{form}") as opened:
        np.testing.assert_array_equal(read(opened.footage, 0), VIDEOS[0])


def test_large_zips_have_wide_numbers(tmp_path):
    """Zip64 fields, as programs that write to pipes and archives above 4 GiB have them."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in FRAMES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    # the directory's numbers, too, into extra fields of the first entry
    at = data.find(b"PK\1\2")
    stored, size, name_bytes, extra_bytes = struct.unpack_from("<IIHH", data, at + 20)
    (offset,) = struct.unpack_from("<I", data, at + 42)
    assert not extra_bytes
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 42 : at + 46] = b"\xff" * 4
    extra = struct.pack("<HHQQQ", 1, 24, size, stored, offset)
    data[at + 30 : at + 32] = struct.pack("<H", len(extra))
    data[at + 46 + name_bytes : at + 46 + name_bytes] = extra
    end = data.rfind(b"PK\5\6")
    (length,) = struct.unpack_from("<I", data, end + 12)
    data[end + 12 : end + 16] = struct.pack("<I", length + len(extra))
    (tmp_path / "x.zip").write_bytes(data)
    with open_footage(tmp_path / "x.zip") as opened:
        np.testing.assert_array_equal(read(opened.footage, 0), VIDEOS[0])


def patched(data, mark, at, value):
    place = data.find(mark) + at
    return data[:place] + value + data[place + len(value) :]


ONE = [(f"a/{t}.png", PNG) for t in range(3)]
TAR = [(name, data, {}) for name, data in ONE]
ZIP, TGZ = zip_of(ONE), gzip.compress(tar_of(*TAR))
BAD = {
    "x.zip": {
        "nothing": (b"", "no zip, or cut short"),
        "cut": (ZIP[:-30], "no zip, or cut short"),
        "up": (zip_of([("../a/1.png", PNG)]), "has a name that leads out of the archive"),
        "up within": (zip_of([("a/../../1.png", PNG)]), "leads out of the archive"),
        "absolute": (zip_of([("/etc/a/1.png", PNG)]), "leads out of the archive"),
        "backslash": (zip_of([("a\\..\\1.png", PNG)]), "leads out of the archive"),
        "encrypted": (patched(ZIP, b"PK\1\2", 8, b"\1"), "is encrypted"),
        "unknown method": (zip_of(ONE, zipfile.ZIP_LZMA), "is compressed in an unknown way"),
        "outside": (patched(ZIP, b"PK\1\2", 42, b"\0\0\0\x70"), "lies outside of the zip"),
        "large": (patched(zip_of(ONE, 8), b"PK\1\2", 24, b"\0\0\0\x70"), "at most 268,435,456"),
        "long name": (zip_of([("a" * 600 + "/1.png", PNG)]), "too long a name"),
        "no videos": (zip_of([("readme", b"x")]), "neither folders of pictures nor videos"),
        "empty": (zip_of([]), "neither folders of pictures nor videos"),
        "one video": (zip_of([("1.png", PNG)]), "holds the pictures of one video"),
        "mixed": (zip_of([*ONE, ("b.mp4", b"")]), "1 video (such as 'b.mp4') and 1 folder"),
        "arrays": (zip_of([("a.npy", b"")]), "arrays, which are not read from an archive"),
        "video twice": (zip_of([("a.mp4", b"x"), ("./a.mp4", b"x")]), "is there twice"),
    },
    "x.tar": {
        "nothing": (b"", "is no readable tar"),
        "no tar": (b"x" * 2000, "is no readable tar"),
        "cut": (tar_of(*TAR)[: len(PNG)], "lies outside of the archive, which may be cut short"),
        "up": (tar_of(("../a/1.png", PNG, {})), "has a name that leads out of the archive"),
        "absolute": (tar_of(("/a/1.png", PNG, {})), "leads out of the archive"),
        "link": (
            tar_of(("a/1.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
            "is a link or a device",
        ),
        "hard link": (
            tar_of(*TAR, ("a/4.png", b"", {"type": tarfile.LNKTYPE, "linkname": "a/1.png"})),
            "is a link or a device",
        ),
        "device": (tar_of(("a/1.png", b"", {"type": tarfile.CHRTYPE})), "is a link or a device"),
        "long name": (tar_of(("a" * 600 + "/1.png", PNG, {})), "too long a name"),
        "header of gigabytes": (
            tar_of(("x", b"", {}))[:124] + b"77777777777\0" + tar_of(("x", b"", {}))[136:],
            "is no readable tar",
        ),
    },
    "x.tgz": {
        "nothing": (b"", "is no readable tar"),
        "no gzip": (tar_of(*TAR), "no readable .tar.gz"),
        "cut": (TGZ[:-20], "no readable .tar.gz"),
        "changed": (patched(TGZ, b"\x1f\x8b", 500, b"\0\0\0"), "no readable"),
    },
}  # fmt: skip
CASES = [(name, kind, *case) for name, kinds in BAD.items() for kind, case in kinds.items()]


@pytest.mark.parametrize(
    ("name", "kind", "data", "message"), CASES, ids=[f"{n} {k}" for n, k, *_ in CASES]
)
def test_a_bad_archive_is_one_line(tmp_path, name, kind, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises((DatasetError, UsageError), match=re.escape(message)) as caught:
        open_footage(path).__enter__()
    text = str(caught.value)
    assert text.startswith(("cannot read ", f"{path}")) and "\n" not in text and str(path) in text


def test_a_member_with_a_fault_is_that_videos_error(tmp_path):
    """A changed or duplicate picture, a picture that is a link or larger than it says."""
    members = [("b/1.png", PNG), ("b/2.png", PNG[:-5] + b"xxxxx"), ("c/1.png", b"/etc/passwd")]
    data = zip_of([*ONE, ("a/2.png", PNG), *members])
    data = patched(data, PNG, 60, b"\0\0\0\0")  # a/0.png
    (tmp_path / "x.zip").write_bytes(data)
    bomb = zip_of([("a/1.png", bytes(1 << 20))], zipfile.ZIP_DEFLATED)
    (tmp_path / "bomb.zip").write_bytes(patched(bomb, b"PK\1\2", 24, struct.pack("<I", 1000)))
    with open_footage(tmp_path / "x.zip") as opened:
        with pytest.raises(DatasetError, match=r"2.png and 2.png have the same number"):
            read(opened.footage, 0)
        with pytest.raises(DatasetError, match=r"2.png is a damaged PNG"):
            read(opened.footage, 1)
        with pytest.raises(DatasetError, match=r"1.png is no PNG, JPEG, WebP, BMP or TIFF"):
            read(opened.footage, 2)
    with (
        open_footage(tmp_path / "bomb.zip") as opened,
        pytest.raises(DatasetError, match=r"another size than the zip's directory says"),
    ):
        read(opened.footage, 0)


def test_compressed_videos_are_unpacked_one_at_a_time(tmp_path, monkeypatch):
    write_lossless(tmp_path / "v.mp4", VIDEOS[0])
    content = (tmp_path / "v.mp4").read_bytes()
    data = zip_of([("v.mp4", content), ("w.mp4", content)], zipfile.ZIP_DEFLATED)
    (tmp_path / "x.zip").write_bytes(data)
    directory = data.rfind(b"PK\1\2")
    (tmp_path / "bomb.zip").write_bytes(
        data[: directory + 24] + struct.pack("<I", 1000) + data[directory + 28 :]
    )
    (tmp_path / "changed.zip").write_bytes(patched(data, b"PK\3\4", 3000, b"\0\1\2\3"))
    with open_footage(tmp_path / "bomb.zip") as opened:
        np.testing.assert_array_equal(read(opened.footage, 0), VIDEOS[0])
        with pytest.raises(DatasetError, match=r"w\.mp4 is larger than declared"):
            read(opened.footage, 1)
    with (
        open_footage(tmp_path / "changed.zip") as opened,
        pytest.raises(DatasetError, match=r"v\.mp4 is (damaged|larger)"),
    ):
        read(opened.footage, 0)
    monkeypatch.setattr(archives.copies, "FREE_BYTES", 1 << 60)
    with (
        open_footage(tmp_path / "x.zip") as opened,
        pytest.raises(StorageError, match=r"set TMPDIR to a larger disk, or zip videos with -0"),
    ):
        read(opened.footage, 0)


def test_bounds_hold(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(ZIP)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_of(("a/1.png", bytes(1 << 24), {}))))
    monkeypatch.setenv("I3D_MAX_COPY_GIB", "0.01")
    with pytest.raises(
        StorageError, match=r"more than 0.01 GiB, unpacked from a compressed tar.*gunzip it, or"
    ):
        open_footage(tmp_path / "x.tar.gz").__enter__()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(DatasetError, match=r"has more than 2 members; split it"):
        open_footage(tmp_path / "x.zip").__enter__()
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(DatasetError, match=r"at most 100 are read"):
        open_footage(tmp_path / "x.zip").__enter__()
