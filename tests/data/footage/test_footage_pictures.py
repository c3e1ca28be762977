"""Folders of pictures: what OpenCV reads of every kind, their order, and what is refused."""

import io
import re
import struct
import zlib
from contextlib import suppress

import cv2
import fsspec
import numpy as np
import pytest
from PIL import Image
from support.footage import make_videos, png, write_files

from i3d.data.footage.opening import open_footage
from i3d.data.footage.pictures import decode_picture, order_frames
from i3d.errors import DatasetError, UsageError

PICTURE = make_videos(1, 7, frames=1)[0, 0]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode):
    image = Image.fromarray(PICTURE)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(PICTURE[..., 0]))
    return image.quantize(200) if mode == "P" else image.convert(mode)


KINDS = [("PNG", m, {}) for m in ("RGB", "RGBA", "P", "L", "LA", "1")]
KINDS += [("PNG", "P", {"transparency": t}) for t in (3, bytes(range(200)))]
KINDS += [("PNG", "RGB", {"transparency": (1, 2, 3)}), ("PNG", "L", {"transparency": 7})]
KINDS += [("PNG", "P", {"bits": 4}), ("PNG", "L", {"bits": 2})]
KINDS += [("WEBP", m, {"lossless": True, "exact": True}) for m in ("RGB", "RGBA", "L")]
KINDS += [("WEBP", m, {"quality": 80, "exact": True}) for m in ("RGB", "RGBA")]
KINDS += [("BMP", m, {}) for m in ("RGB", "RGBA", "P", "L", "1")]
KINDS += [
    ("TIFF", m, {"compression": c})
    for m in ("RGB", "RGBA", "P", "L", "1")
    for c in (None, "tiff_lzw", "packbits", "tiff_adobe_deflate")
]
KINDS += [("TIFF", "RGB", {"compression": "jpeg", "quality": 95})]
KINDS += [("JPEG", m, {"quality": 90, "subsampling": s}) for m in ("RGB", "L") for s in (0, 2)]


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS, ids=str)
def test_pixels_are_what_opencv_reads(kind, mode, options):
    """Palettes in their colours, gray in three channels, without what is transparent."""
    data = encode(picture(mode), kind, **options)
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), how)[..., ::-1]
    if (kind, mode) == ("TIFF", "RGBA"):  # OpenCV multiplies with transparency
        theirs = PICTURE
    ours = decode_picture(data, "x")
    assert ours.dtype == np.uint8 and ours.flags.writeable
    np.testing.assert_array_equal(ours, theirs)


def test_a_tiff_that_holds_more_than_colours():
    """Transparency that the colours were multiplied with; gray with transparency."""
    opaque, shade = (Image.new("L", (52, 40), level) for level in (255, 128))
    for alpha in (opaque, shade):
        image = Image.fromarray(PICTURE)
        image.putalpha(alpha)
        assert (decode_picture(encode(image, "TIFF"), "x") == PICTURE).all()
        multiplied = image.convert("RGBa")
        stored = Image.frombytes("RGBA", image.size, multiplied.tobytes())
        data = retagged(encode(stored, "TIFF"), 338, 338, 1)
        difference = np.abs(decode_picture(data, "x").astype(int) - PICTURE)
        assert difference.max() <= (alpha is shade)
    gray = Image.merge("LA", (Image.fromarray(PICTURE[..., 0]), shade))
    assert (decode_picture(encode(gray, "TIFF"), "x") == PICTURE[..., :1]).all()


def test_a_changed_byte_of_a_png_changes_no_pixel():
    """What zlib alone does not see, its checksums tell (362 of 4,402 bytes)."""
    for place in range(0, len(PNG), 5):
        data = patched(PNG, place, bytes([PNG[place] ^ 1 << place % 8]))
        with suppress(DatasetError):
            np.testing.assert_array_equal(decode_picture(data, "x"), PICTURE)


def test_pillows_limit_is_not_ours(monkeypatch, recwarn):
    """Neither is it asked, nor moved."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    for kind in ("PNG", "BMP"):
        assert (decode_picture(encode(picture("RGB"), kind), "x") == PICTURE).all()
    assert Image.MAX_IMAGE_PIXELS == 700 and not recwarn.list


def test_orientation_and_profiles_are_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for kind in ("PNG", "JPEG", "WEBP"):
        plain = decode_picture(encode(picture("RGB"), kind), "x")
        np.testing.assert_array_equal(
            decode_picture(encode(picture("RGB"), kind, exif=exif), "x"), plain
        )


def patched(data, at, value):
    return data[:at] + value + data[at + len(value) :]


def retagged(data, tag, new, value):
    """A TIFF with one tag's number and value changed."""
    entry = next(
        at for at in range(10, len(data), 12) if struct.unpack_from("<H", data, at) == (tag,)
    )
    return patched(data, entry, struct.pack("<HHII", new, 4, 1, value))


def png_of(width, height, *, kind=2):
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


def encode_deep(levels, suffix="png"):
    done, data = cv2.imencode(f".{suffix}", levels.astype(np.uint16) * 257)
    assert done
    return data.tobytes()


PNG = png(PICTURE)
TIFF = encode(picture("RGB"), "TIFF")
BMP = encode(picture("RGB"), "BMP")
WEBP = encode(picture("RGB"), "WEBP", lossless=True)
JPEG = encode(picture("RGB"), "JPEG")
DEEP = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
BAD = {
    "empty": (b"", "is no PNG, JPEG, WebP, BMP or TIFF"),
    "text": (b"frame", "is no PNG, JPEG, WebP, BMP or TIFF"),
    "gif": (encode(picture("P"), "GIF"), "is no PNG"),
    "16-bit png": (encode(DEEP, "PNG"), "PNG of 16 bits; convert it to 8 bits"),
    "16-bit tiff": (encode(DEEP, "TIFF"), "TIFF of 16 bits; convert it to 8 bits"),
    "float tiff": (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "of 32 bits"),
    "cmyk tiff": (encode(picture("CMYK"), "TIFF"), "TIFF in CMYK; convert it to RGB"),
    "lab tiff": (encode(Image.new("LAB", (4, 4)), "TIFF"), "TIFF in LAB; convert it to RGB"),
    "ycbcr tiff": (encode(picture("YCbCr"), "TIFF"), "TIFF"),  # 12: damaged; 13: convert it
    "signed tiff": (encode(picture("L"), "TIFF", tiffinfo={339: 2}), "numbers with a sign"),
    "deep rgb tiff": (encode_deep(PICTURE, "tiff"), "TIFF of 16 bits; convert it to 8 bits"),
    "deep rgb png": (encode_deep(PICTURE), "PNG of 16 bits; convert it to 8 bits"),
    "deep gray png": (encode_deep(PICTURE[..., 0]), "PNG of 16 bits; convert it to 8 bits"),
    "tiles of gigapixels": (retagged(TIFF, 284, 322, 1 << 20), "a tile of"),
    "png without palette": (png_of(52, 40, kind=3), "PNG in P; convert it to RGB"),
    "turned tiff": (encode(picture("RGB"), "TIFF", tiffinfo={274: 6}), "turned before it is shown"),
    "tiff of pages": (
        encode(picture("RGB"), "TIFF", save_all=True, append_images=[picture("RGB")]),
        "TIFF of several pictures; save each frame",
    ),
    "cmyk jpeg": (encode(picture("CMYK"), "JPEG"), "JPEG in CMYK; convert it to RGB"),
    "animated webp": (
        encode(picture("RGB"), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")]),
        "WEBP of several pictures",
    ),
    "animated png": (
        encode(picture("RGB"), "PNG", save_all=True, append_images=[picture("L").convert("RGB")]),
        "PNG of several pictures",
    ),
    "cut png": (PNG[:-12], "damaged PNG (truncated PNG file)"),
    "cut in the png's header": (PNG[:20], "damaged PNG"),
    "png without pixels": (png_of(52, 40), "damaged PNG"),
    "changed png": (patched(PNG, len(PNG) // 2, b"\0\1\2"), "damaged PNG"),
    "huge png": (png_of(16385, 1), "16385x1 pixels; at most 16384"),
    "png of gigapixels": (png_of(16384, 16384), "67108864 in all"),
    "png of nothing": (png_of(0, 0), "damaged PNG"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "damaged JPEG"),
    "jpeg's start": (JPEG[:10], "damaged JPEG"),
    "cut webp": (WEBP[:-2], "damaged WEBP"),
    "webp's start": (WEBP[:18], "damaged WEBP"),
    "cut bmp": (BMP[:-1], "damaged BMP"),
    "bmp's start": (BMP[:16], "damaged BMP"),
    "huge bmp": (patched(BMP, 18, struct.pack("<ii", 16384, -16384)), "67108864 in all"),
    "cut tiff": (TIFF[:-1], "damaged"),
    "tiff's start": (TIFF[:8], "damaged"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_a_bad_picture_is_one_line(data, message, capfd):
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        decode_picture(data, "frame_3.png")
    text = str(caught.value)
    assert text.startswith(("frame_3.png ", "a tile of frame_3.png ")) and "\n" not in text
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a9 a10 a11 a8", "a8 a9 a10 a11"),
        ("x_0 x_16 x_8 x_24", "x_0 x_8 x_16 x_24"),
        ("v2_003.5 v2_003.4", "v2_003.4 v2_003.5"),
        ("0007_rgb 0008_rgb", "0007_rgb 0008_rgb"),
        ("1403636579763555584 1403636579763555583", "1403636579763555583 1403636579763555584"),
        ("4", "4"),
    ],
)
def test_frames_are_in_the_order_of_their_last_number(names, expected):
    names = [f"{name}.png" for name in names.split()]
    assert [names[i] for i in order_frames(names)] == [f"{n}.png" for n in expected.split()]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("f_016 f_018 f_015 f_014", "frame 17 is missing between f_016.png and f_018.png"),
        ("f_0 f_8 f_24 f_32", "frame 16 is missing between f_8.png and f_24.png"),
        ("f_0 f_8 f_12 f_20 f_28", "f_8.png and f_12.png are 4 apart, and most frames 8"),
        ("f_1 f_01 f_2", "f_01.png and f_1.png have the same number"),
        ("a_1 b_2", "a_1.png and b_2.png are named differently before their numbers"),
        ("first second", "first.png has no number"),
        ("1 \x1b[2J", r"\x1b[2J.png"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_video_are_refused(names, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        order_frames([f"{name}.png" for name in names.split(" ")])


# --- folders --------------------------------------------------------------------------------------


def read(footage, i, numbers=range(100)):
    with footage.open(i) as video:
        return list(video.read(numbers))


def test_a_video_with_a_fault_is_that_videos_error(tmp_path):
    good, other = png(PICTURE), png(PICTURE[:30])
    write_files(tmp_path, {f"a/{t}.png": good for t in (1, 2, 4)})
    write_files(
        tmp_path, {"b/1.png": good, "b/2.png": other, "b/notes.txt": b"x", "b/.3.png": b"x"}
    )
    write_files(tmp_path, {"c/1.png": good, "c/2.JPG": JPEG, "c/3.png": good[:-9]})
    with open_footage(tmp_path) as opened:
        footage = opened.footage
        assert footage.keys == ("a", "b", "c") and footage.origin == "frames-jpg+png"
        with pytest.raises(DatasetError, match=r"frame 3 is missing between 2.png and 4.png"):
            read(footage, 0)
        with pytest.raises(DatasetError, match=r"2.png is 52x30, and frames before it are 52x40"):
            read(footage, 1)
        assert len(read(footage, 1, [0])) == 1
        with pytest.raises(DatasetError, match=r"3.png is a damaged PNG"):
            read(footage, 2)
        assert len(read(footage, 2, [0, 1])) == 2


def test_what_is_no_set_of_videos(tmp_path):
    picture = png(PICTURE)
    write_files(tmp_path, {"one/1.png": picture, "mixed/a/1.png": picture, "mixed/x.mp4": b""})
    write_files(tmp_path, {"mixed/y/z.npy": b"", "both/1.png": picture, "both/a/1.png": picture})
    with pytest.raises(UsageError, match="one holds the pictures of one video"):
        open_footage(tmp_path / "one").__enter__()
    with pytest.raises(DatasetError) as caught:
        open_footage(tmp_path / "mixed").__enter__()
    assert str(caught.value) == (
        f"{tmp_path}/mixed holds 1 video (such as 'x.mp4') and 1 folder of pictures (such as 'a') "
        "and 1 array (such as 'y/z.npy'); give a set of one kind, in a folder of its own"
    )
    with pytest.raises(
        DatasetError, match=r"holds pictures itself and in 1 folders \(such as 'a'\)"
    ):
        open_footage(tmp_path / "both").__enter__()


def test_links_that_lead_in_a_circle(tmp_path):
    write_files(tmp_path, {"set/a/1.png": png(PICTURE), "other/b/1.png": png(PICTURE)})
    (tmp_path / "set" / "more").symlink_to(tmp_path / "other")
    with open_footage(tmp_path / "set") as opened:
        assert opened.footage.keys == ("a", "more/b")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    with pytest.raises(DatasetError, match="up is a link to a folder that it lies in"):
        open_footage(tmp_path / "set").__enter__()


def test_frames_behind_a_url():
    fs = fsspec.filesystem("memory")
    for t in range(12):
        fs.pipe_file(f"/frames/deep/v.1/{t}.png", png(np.roll(PICTURE, t, axis=1)))
    with open_footage("memory://frames") as opened:
        assert opened.footage.keys == ("deep/v%2E1",)
        frames = read(opened.footage, 0)
    np.testing.assert_array_equal(frames, [np.roll(PICTURE, t, axis=1) for t in range(12)])
