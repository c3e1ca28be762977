"""Sets of videos as FVD reads them: folders of pictures, archives, arrays."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
from campaigns.fuzz.cases import Target, Wrong
from campaigns.fuzz.checkpoints import falsify_pickle, torch_bytes
from campaigns.fuzz.folders import falsify_directory, hostile_jpeg, hostile_png
from campaigns.fuzz.mutations import Files, boundary, damage, hostile_bytes, hostile_json
from safetensors.torch import save

from i3d.data.footage.opening import open_footage
from i3d.data.footage.options import FootageOptions

HEIGHT, WIDTH, FRAMES = 12, 16, 5
FORMATS = ["png", "jpg", "webp", "bmp", "tif"]


@cache
def video() -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = cv2.resize(small, (WIDTH, HEIGHT))
    return np.array([np.roll(picture, t, axis=1) for t in range(FRAMES)])


def pictures(suffix: str) -> dict[str, bytes]:
    return {
        f"{t}.{suffix}": cv2.imencode(f".{suffix}", f)[1].tobytes() for t, f in enumerate(video())
    }


def frames() -> dict[str, bytes]:
    return {f"{s}/{name}": data for s in FORMATS for name, data in pictures(s).items()}


def zip_bytes(members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_bytes(members: Sequence[tuple[str, bytes]], layout: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def read_footage(folder: Path) -> list[Any]:
    """Every frame of every video of what lies in the folder."""
    location = folder / sorted(path.name for path in folder.iterdir())[0]
    found: list[Any] = []
    with open_footage(location, FootageOptions(value_range="0..1")) as opened:
        if opened.footage is None:
            return found
        for i, key in enumerate(opened.footage.keys):
            with opened.footage.open(i) as one:
                found.append([key, one.count_frames(), list(one.read(range(8)))])
    return found


def check_footage(found: list[Any]) -> None:
    if len({key for key, *_ in found}) != len(found):
        raise Wrong("a key twice")
    for key, count, read in found:
        key.encode()
        if len(read) != min(count, 8):
            raise Wrong(f"{len(read)} of {count} frames")
        for frame in read:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype not in (np.uint8, np.float32):
                raise Wrong(f"a frame {frame.dtype} {frame.shape}")
            if frame.dtype == np.float32 and not (0 <= frame.min() <= frame.max() <= 255):
                raise Wrong("values outside of 0..255")


# --- pictures -------------------------------------------------------------------------------------


def picture_samples() -> list[Files]:
    return [{f"set/{name}": data for name, data in frames().items()}] + [
        {f"set/a/{name}": data for name, data in pictures(suffix).items()} for suffix in FORMATS
    ]


def falsify_picture(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """A picture whose header is at a boundary, or another's."""
    name = random.choice(sorted(files))
    data = files[name]
    change = {"jpg": hostile_jpeg, "png": hostile_png}.get(name.rpartition(".")[2])
    if change is not None and random.random() < 0.8:
        return files | {name: change(random, data, list(files.values()))}
    place, width = random.randrange(min(64, len(data))), random.choice([1, 2, 4])
    return files | {name: data[:place] + boundary(random, width) + data[place + width :]}


def rename_pictures(random: Random, files: Files, others: Sequence[Files]) -> Files:
    name = random.choice(sorted(files))
    new = hostile_bytes(random).decode("latin-1").replace("\0", "").replace("/", "")[:100]
    number = random.choice(["", "0", "1", "99999999999999999999999999999999", "-1"])
    kept = {k: v for k, v in files.items() if k != name}
    return kept | {f"{name.rpartition('/')[0]}/{new}{number}.png": files[name]}


# --- archives -------------------------------------------------------------------------------------


def archive_samples() -> list[Files]:
    members = list(frames().items())
    return [
        {"x.zip": zip_bytes(members)},
        {"x.zip": zip_bytes(members, zipfile.ZIP_DEFLATED)},
        {"x.tar": tar_bytes(members)},
        {"x.tar": tar_bytes([(f"{'deep/' * 30}日{n}", d) for n, d in members], tarfile.GNU_FORMAT)},
        {"x.tgz": gzip.compress(tar_bytes(members))},
    ]


def falsify_archive(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Members with other names and contents, or numbers of the directory at boundaries."""
    (name,) = files
    if name == "x.zip" and random.random() < 0.5:
        return falsify_directory(random, files, others)
    members = list(frames().items())
    for _ in range(random.choice([1, 1, 2])):
        i = random.randrange(len(members))
        member, content = members[i]
        match random.randrange(4):
            case 0:
                members[i] = (hostile_bytes(random).decode("latin-1") + ".png", content)
            case 1:
                members.append((member, content))
            case 2:
                members[i] = (member, damage(random, content))
            case _:
                members[i] = (member.rpartition(".")[0] + ".mp4", content)
    if name == "x.zip":
        return {name: zip_bytes(members, random.choice([0, 8]))}
    data = bytearray(tar_bytes(members, random.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])))
    if random.random() < 0.6:  # a header's field, under a right checksum
        heads = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
        head = random.choice(heads)
        place, width = random.choice([(124, 12), (156, 1), (157, 100), (100, 8), (345, 155)])
        value = random.choice(
            [b"77777777777\0", b"\x80" + bytes(10) + b"\x7f", b"LKxgSV5126", b"\xff" * 12]
        )
        start = head + place
        data[start : start + min(width, len(value))] = value[:width]
        data[head + 148 : head + 156] = b" " * 8
        data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + 512])
    return {name: gzip.compress(data) if name == "x.tgz" else bytes(data)}


# --- arrays ---------------------------------------------------------------------------------------


def array_samples() -> list[Files]:
    one = torch.from_numpy(video())
    many = torch.stack([one, one])
    return [
        {"x.pt": torch_bytes(many, zipped=True)},
        {"x.pt": torch_bytes({"video": many / 255, "fps": 25, "m": (1, [2.5])}, zipped=True)},
        {"x.safetensors": save({"videos": many.permute(0, 1, 4, 2, 3).contiguous()})},
        {"set/a.safetensors": save({"x": (one / 255).bfloat16()}, metadata={"a": "b"})},
        {"set/a.npy": npy_bytes(video()), "set/b.npy": npy_bytes(video() / 255)},
        {"set/a.pth": torch_bytes(one.permute(3, 0, 1, 2), zipped=True)},
    ]


def falsify_array(random: Random, files: Files, others: Sequence[Files]) -> Files:
    name = random.choice(sorted(files))
    data = files[name]
    if name.endswith((".pt", ".pth")):
        return {name: falsify_pickle(random, {"x.pt": data}, others)["x.pt"]}
    if name.endswith(".safetensors"):
        import json

        size = int.from_bytes(data[:8], "little")
        text = json.dumps(hostile_json(random, json.loads(data[8 : 8 + size])), allow_nan=True)
        header = text.encode("utf-8", "replace")
        return files | {name: len(header).to_bytes(8, "little") + header + data[8 + size :]}
    return files | {name: damage(random, data[:128]) + data[128:]}


TARGETS = [
    Target(
        "pictures", picture_samples, read_footage, check_footage,
        (falsify_picture, falsify_picture, rename_pictures),
    ),
    Target("archives", archive_samples, read_footage, check_footage, (falsify_archive,)),
    Target("video-arrays", array_samples, read_footage, check_footage, (falsify_array,)),
]  # fmt: skip
