"""Zip archives: what takes more memory than the file has bytes is refused before it does."""

import io
import zipfile

import pytest

from i3d import archives
from i3d.archives import check_members, open_archive


def archive_of(*names, method=zipfile.ZIP_STORED, comment=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, b"abc" * 100)
        archive.comment = comment
    return file


def test_members_are_read_as_they_were_written():
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with open_archive(archive_of("a", "b/c", method=method, comment=b"end")) as archive:
            check_members(archive, deflate=True)
            assert [m.filename for m in archive.infolist()] == ["a", "b/c"]
            with archive.open("b/c") as member:
                assert member.read() == b"abc" * 100


@pytest.mark.parametrize(
    ("method", "deflate", "words"),
    [
        (zipfile.ZIP_DEFLATED, False, "'a' is compressed by DEFLATE; nothing compressed is read"),
        (zipfile.ZIP_BZIP2, True, "'a' is compressed by BZIP2; only DEFLATE is read"),
        (zipfile.ZIP_LZMA, True, "'a' is compressed by LZMA; only DEFLATE is read"),
    ],
)
def test_other_compressions_are_named(method, deflate, words):
    with (
        open_archive(archive_of("a", method=method)) as archive,
        pytest.raises(zipfile.BadZipFile, match=words),
    ):
        check_members(archive, deflate=deflate)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused():
    with (
        open_archive(archive_of("a\n", "a\n")) as archive,
        pytest.raises(zipfile.BadZipFile, match=r"member 'a\\n' is there twice"),
    ):
        check_members(archive, deflate=True)


def test_a_long_list_of_members_is_not_read(monkeypatch):
    """Python makes an object of some 600 bytes of each member, of which the list has 46."""
    monkeypatch.setattr(archives, "MAX_READ_BYTES", 10_000)
    with open_archive(archive_of(*map(str, range(100)))) as archive:
        assert len(archive.infolist()) == 100
    with (
        pytest.raises(zipfile.BadZipFile, match="list of members has more than 10,000 bytes"),
        open_archive(archive_of(*map(str, range(300)))),
    ):
        pass


def test_a_declared_length_of_the_list_takes_no_memory():
    file = archive_of("a")
    data = bytearray(file.getvalue())
    at = data.rindex(b"PK\5\6")
    data[at + 12 : at + 16] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(zipfile.BadZipFile), open_archive(io.BytesIO(data)):
        pass
