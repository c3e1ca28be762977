"""Folders of precomputed videos: our shards, and the Chainer program's zips."""

import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
import numpy as np
from campaigns.fuzz.cases import Target, Wrong, read_files
from campaigns.fuzz.mutations import (
    BOUNDARIES,
    Files,
    boundary,
    damage,
    dump,
    hostile_bytes,
    hostile_json,
)
from support import chainer_folders, shards

from i3d.classes import ClassList
from i3d.data.chainer import open_chainer_folder
from i3d.data.shards import open_dataset
from i3d.data.shards.format import BLOCK, TAR_END, pad
from i3d.records import SEAL

# --- our shards -----------------------------------------------------------------------------------

CLASSES = ClassList("sports", ("abseiling", "archery"))


def made_in(write: Callable[[Path], Any]) -> Files:
    """What a function writes into a folder."""
    with tempfile.TemporaryDirectory(prefix="i3d-fuzz-") as folder:
        write(Path(folder))
        return read_files(Path(folder))


def shard_samples() -> list[Files]:
    keys = ["abseiling/a b", "archery/日本", "unlabelled"]
    one = shards.plan(keys[:2], clips_per_shard=2)
    return [
        made_in(lambda folder: shards.write_folder(folder, one)),
        made_in(lambda folder: shards.write_folder(folder, shards.plan(keys), failed=keys[1:2])),
    ]


def read_shards(folder: Path) -> list[Any]:
    """Everything that can be read of a folder, in both ways."""
    dataset = open_dataset(folder)
    found: list[Any] = [dataset.found, dataset.failures(), dataset.manifest.classes]
    found += [dataset.manifest.preset, list(dataset.manifest.samples())]
    for sample in dataset.stream():
        stored = sample.stored_flow() if "flow" in dataset.manifest.streams else None
        found.append([sample.key, sample.info, sample.frames(), stored])
        part = dataset.read_sample(sample.key, streams=("rgb",), start=1, stop=2)
        if not np.array_equal(part.frames(), found[-1][2][1:2]):
            raise Wrong("a part of a sample is another than the whole's")
    return found


def check_shards(found: list[Any]) -> None:
    for key, info, frames, stored in found[5:]:
        if key != info.key or frames.dtype != np.uint8:
            raise Wrong("another sample")
        if frames.shape != (len(info.rgb), info.height, info.width, 3):
            raise Wrong(f"frames of shape {frames.shape}")
        if stored is not None and stored.shape != (len(frames) - 1, info.height, info.width, 2):
            raise Wrong(f"flow of shape {stored.shape}")


def seal(document: Any) -> bytes:
    """A document under a right seal, one field a line as `i3d.records` writes them."""
    import hashlib

    if not isinstance(document, dict):
        document = {"format": document}
    lines = "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in document.items())
    head = ("{\n" + lines).encode("ascii")
    return head + SEAL.format(hashlib.sha256(head).hexdigest()).encode()


def unseal(data: bytes) -> dict[str, Any]:
    document = json.loads(data)
    document.pop("sha256")
    return document


def sidecars(files: Files) -> list[str]:
    return sorted(name for name in files if name.startswith("shard-") and name.endswith(".json"))


def renew_sidecars(files: Files) -> Files:
    """Every sidecar names the manifest that is there."""
    manifest = json.loads(files["manifest.json"])["sha256"]
    renewed = {name: seal(unseal(files[name]) | {"manifest": manifest}) for name in sidecars(files)}
    return files | renewed


def falsify_manifest(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Other values, written as i3d writes them where that is possible, and under a right seal."""
    from i3d.data.shards.manifest import Manifest

    data = seal(hostile_json(random, unseal(files["manifest.json"])))
    try:  # the layout that is expected
        from i3d.records import read_sealed

        data = read_sealed("i3d manifest 1", Manifest, data, "it").to_json()
    except Exception:  # the reader will say
        pass
    return renew_sidecars(files | {"manifest.json": data})


def falsify_sidecar(random: Random, files: Files, others: Sequence[Files]) -> Files:
    name = random.choice(sidecars(files))
    return files | {name: seal(hostile_json(random, unseal(files[name])))}


def falsify_sample(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """A member of a sample: its JSON, a JPEG or a PNG; all checksums and sizes are right."""
    name = random.choice([s for s in sidecars(files) if unseal(files[s])["samples"]])
    index = unseal(files[name])
    tar_name = name.replace(".json", ".tar")
    tar, out = files[tar_name], bytearray()
    chosen = random.randrange(len(index["samples"]))
    for i, record in enumerate(index["samples"]):
        members = {
            m["suffix"]: tar[m["offset"] : m["offset"] + m["size"]] for m in record["members"]
        }
        heads = {}
        end = record["offset"]
        for m in record["members"]:
            heads[m["suffix"]] = tar[end : m["offset"]]
            end = m["offset"] + pad(m["size"])
        if i == chosen:
            members = hostile_members(random, members)
        record["offset"] = len(out)
        for m in record["members"]:
            content = members[m["suffix"]]
            out += heads[m["suffix"]]
            m |= {"offset": len(out), "size": len(content), "crc32c": google_crc32c.value(content)}
            out += content.ljust(pad(len(content)), b"\0")
        part = bytes(out[record["offset"] :])
        record |= {"size": len(part), "crc32c": google_crc32c.value(part)}
    out += TAR_END
    index["tar_bytes"] = len(out)
    return files | {name: seal(index), tar_name: bytes(out)}


def hostile_members(random: Random, members: dict[str, bytes]) -> dict[str, bytes]:
    members = dict(members)
    info = json.loads(members["json"])
    match random.randrange(5):
        case 0:
            info = hostile_json(random, info)
        case 1 | 2 | 3:
            stream = random.choice([s for s in ("rgb", "flow") if info.get(s)])
            suffix = {"rgb": "rgb.mjpeg", "flow": "flow.mpng"}[stream]
            pictures, at = [], 0
            for size in info[stream]["sizes"]:
                pictures.append(members[suffix][at : at + size])
                at += size
            i = random.randrange(len(pictures))
            change = {"rgb": hostile_jpeg, "flow": hostile_png}[stream]
            pictures[i] = change(random, pictures[i], pictures)
            info[stream] = {
                "sizes": [len(p) for p in pictures],
                "crc32c": [google_crc32c.value(p) for p in pictures],
            }
            members[suffix] = b"".join(pictures)
        case _:
            suffix = random.choice(sorted(members))
            members[suffix] = damage(random, members[suffix])
            return members
    members["json"] = dump(info)
    return members


def hostile_jpeg(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A JPEG with another size, sampling or coding in its header, or damage."""
    if random.random() < 0.4:
        return damage(random, data, others)
    at = max(data.find(b"\xff\xc0"), 0)
    fields = [(1, 1), (2, 2), (4, 1), (5, 2), (7, 2), (9, 1), (10, 1), (11, 1), (12, 1)]
    position, width = random.choice(fields)
    number = boundary(random, width)
    return data[: at + position] + number + data[at + position + width :]


def hostile_png(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A PNG whose chunks are exchanged or have other contents, under right checksums."""
    if random.random() < 0.2:
        return damage(random, data, others)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    i = random.randrange(len(chunks))
    kind, content = chunks[i]
    match random.randrange(7):
        case 0 | 1:
            header = bytearray(chunks[0][1])
            fields = [(0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)]
            place, width = random.choice(fields)
            header[place : place + width] = boundary(random, width)
            chunks[0] = (b"IHDR", bytes(header))
        case 2:
            chunks[i] = (kind, damage(random, content))
        case 3:
            other = random.choice([b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"acTL"])
            chunks.insert(i, (other, content))
        case 4:
            del chunks[i]
        case 5:  # a bomb
            chunks[i] = (b"IDAT", zlib.compress(bytes(random.choice([1 << 16, 1 << 25]))))
        case _:
            text = b"x\0\0" + zlib.compress(bytes(1 << 24))
            chunks.insert(1, (random.choice([b"zTXt", b"iTXt", b"iCCP"]), text))
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


# --- the Chainer program's zips -------------------------------------------------------------------


@cache
def chainer_sample(label: int, flow: bool = True) -> chainer_folders.Sample:
    frames, motion = chainer_folders.moving_video(3, height=24, width=32, seed=label)
    return chainer_folders.Sample(label, frames, motion if flow else None)


def chainer_samples() -> list[Files]:
    pair = [chainer_sample(1), chainer_sample(0)]
    rgb = [chainer_sample(2, False)]
    write_shard, write_classes = chainer_folders.write_shard, chainer_folders.write_classes
    return [
        made_in(lambda folder: write_shard(folder / "shard_0_0.zip", pair)),
        made_in(lambda folder: write_shard(folder / "shard_3.zip", rgb)),
        made_in(lambda folder: write_classes(folder, pair)),
    ]


def read_chainer(folder: Path) -> list[Any]:
    dataset = open_chainer_folder(folder)
    found = []
    for planned in dataset.manifest.samples():
        reason = dataset.failure(planned.key)
        if reason is not None:
            found.append([planned, reason])
            continue
        stored = dataset.find_sample(planned.key)
        sample = stored.read()
        flow = sample.stored_flow() if "flow" in dataset.manifest.streams else None
        found.append([planned, stored.info, sample.frames(), flow])
    return found


def check_chainer(found: list[Any]) -> None:
    for _, info, *arrays in found:
        for array in arrays:
            if array is not None and array.shape[1:3] != (info.height, info.width):
                raise Wrong(f"pictures of shape {array.shape}")


def falsify_zip(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Members exchanged, with names and contents that the program did not write."""
    name = random.choice(sorted(files))
    with zipfile.ZipFile(io.BytesIO(files[name])) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    for _ in range(random.choice([1, 1, 2])):
        i = random.randrange(len(members))
        member, content = members[i]
        match random.randrange(8):
            case 0 | 1 if member.endswith(".jpg"):
                members[i] = (member, hostile_jpeg(random, content, [c for _, c in members]))
            case 2:
                members[i] = (hostile_bytes(random).decode("latin-1") or "x", content)
            case 3:
                parts = member.split("/")
                j = random.randrange(len(parts))
                parts[j] = parts[j].replace("0", str(random.choice(BOUNDARIES)))
                members[i] = ("/".join(parts), content)
            case 4:
                members.append(random.choice(members))
            case 5:
                del members[i]
                members = members or [("x", b"")]
            case 6:
                labels = [b"", b"-1", b"1e3", b"99999", b"0" * 5000, b"\xd9\xa3", b" 1\n", b"\0"]
                members[i] = (member, random.choice(labels))
            case _:
                members[i] = (member, damage(random, content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice([0, 0, 8])) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return files | {name: buffer.getvalue()}


# Where fields of a zip's directory lie and how wide they are, within an entry and within its end
# (PKWARE's APPNOTE, 4.3.12 and 4.3.16).
ENTRY_FIELDS = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)]
END_FIELDS = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]


def falsify_directory(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Numbers of a zip's directory and end at boundaries."""
    name = random.choice(sorted(files))
    data = bytearray(files[name])
    entries = [i for i in range(len(data) - 46) if data[i : i + 4] == b"PK\1\2"]
    end = data.rfind(b"PK\5\6")
    for _ in range(random.choice([1, 1, 3])):
        if random.random() < 0.6:
            place, width = random.choice(ENTRY_FIELDS)
            at = random.choice(entries) + place
        else:
            place, width = random.choice(END_FIELDS)
            at = end + place
        data[at : at + width] = boundary(random, width)
    return files | {name: bytes(data)}


def rename_zips(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Zips under other names, or in other folders."""
    name = random.choice(sorted(files))
    names = ["shard_999999999_999999999.zip", "shard_-1.zip", "shard_0_0.zip.zip", "x.zip"]
    names += ["rgb/class_99999/sample_0.zip", "rgb/class_0/sample_9.zip"]
    names += ["flow_x/class_0/sample_1.zip"]
    renamed = files | {random.choice(names): files[name]}
    if random.random() < 0.5:
        del renamed[name]
    return renamed


TARGETS = [
    Target(
        "shards", shard_samples, read_shards, check_shards,
        (falsify_manifest, falsify_sidecar, falsify_sample, falsify_sample), sealed=True,
    ),
    Target(
        "chainer", chainer_samples, read_chainer, check_chainer,
        (falsify_zip, falsify_directory, rename_zips),
    ),
]  # fmt: skip
assert BLOCK == 512
