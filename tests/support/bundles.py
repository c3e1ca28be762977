"""Write TensorFlow V2 bundles, right ones and wrong ones, from the format's description."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from i3d.models.checkpoints import save
from i3d.models.i3d import I3D


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)


def entry(
    array: np.ndarray,
    offset: int,
    *,
    dtype: int = 1,
    shape: tuple[int, ...] | None = None,
    shard: int = 0,
    size: int | None = None,
    crc: int | None = None,
) -> bytes:
    """A BundleEntryProto; the keywords replace what is right by something else."""
    shape = array.shape if shape is None else shape
    dims = b"".join(field(2, field(1, n)) for n in shape)
    return (
        field(1, dtype)
        + field(2, dims)
        + field(3, shard)
        + field(4, offset)
        + field(5, array.nbytes if size is None else size)
        + fixed32(6, masked_crc(array.tobytes()) if crc is None else crc)
    )


def block(items: Mapping[bytes, bytes], *, restart_every: int = 16) -> bytes:
    """A block with prefix compression, without its trailer."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(items.items()):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def snappy(contents: bytes) -> bytes:
    """A block as Snappy may compress it: copies of 4 bytes or more where the same came before."""
    out, literal, seen, pos = bytearray(varint(len(contents))), bytearray(), {}, 0

    def end_literal():
        for start in range(0, len(literal), 60):
            part = literal[start : start + 60]
            out.extend([len(part) - 1 << 2, *part])
        literal.clear()

    while pos < len(contents):
        key = contents[pos : pos + 4]
        before = seen.get(key)
        seen[key] = pos
        if len(key) == 4 and before is not None and pos - before < 1 << 16:
            size, limit = 4, min(64, len(contents) - pos)
            while size < limit and contents[pos + size] == contents[before + size]:
                size += 1
            end_literal()
            out += bytes([size - 1 << 2 | 2]) + struct.pack("<H", pos - before)
            pos += size
        else:
            literal.append(contents[pos])
            pos += 1
    end_literal()
    return bytes(out)


def with_trailer(contents: bytes, compression: int = 0) -> bytes:
    contents += bytes([compression])
    return contents + struct.pack("<I", masked_crc(contents))


def table(
    items: Mapping[bytes, bytes],
    *,
    per_block: int = 100,
    compression: int = 0,
    compress: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """An .index file of these keys and values.

    ``compression`` is the byte that says what ``compress`` has done to the blocks of entries.
    """
    out, handles = bytearray(), {}
    pairs = list(items.items())
    for start in range(0, len(pairs), per_block):
        part = dict(pairs[start : start + per_block])
        contents = compress(block(part))
        handles[list(part)[-1]] = varint(len(out)) + varint(len(contents))
        out += with_trailer(contents, compression)
    meta = varint(len(out)) + varint(len(block({})))
    out += with_trailer(block({}))
    index = block(handles)
    footer = meta + varint(len(out)) + varint(len(index))
    out += with_trailer(index)
    return bytes(out) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = field(1, 1) + field(2, 0)


def items_of(arrays: Mapping[str, np.ndarray], **wrong) -> dict[bytes, bytes]:
    """Keys and values of an index whose data file is the arrays end to end, by name.

    ``wrong``: variable name -> keywords of `entry` that falsify it.
    """
    items, offset = {b"": HEADER}, 0
    for name, array in sorted(arrays.items()):
        items[name.encode()] = entry(array, offset, **wrong.get(name, {}))
        offset += array.nbytes
    return items


def write(folder: Path, arrays: Mapping[str, np.ndarray], items=None, **table_options) -> Path:
    """Write a bundle and return its prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / "model.ckpt"
    index = table(items_of(arrays) if items is None else items, **table_options)
    Path(f"{prefix}.index").write_bytes(index)
    data = b"".join(array.tobytes() for _, array in sorted(arrays.items()))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def tensorflow_variables(model: I3D, scope: str = "RGB/inception_i3d/") -> dict[str, np.ndarray]:
    """A network's parameters as kinetics-i3d would have saved them."""
    variables = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        array = tensor.numpy().astype("<f4")
        path = name.replace("Mixed_5b.Branch_2.Conv3d_0b_3x3", "Mixed_5b.Branch_2.Conv3d_0a_3x3")
        for ours, theirs in {
            "Logits.Conv3d_0c_1x1.weight": "Logits.Conv3d_0c_1x1.conv_3d.w",
            "Logits.Conv3d_0c_1x1.bias": "Logits.Conv3d_0c_1x1.conv_3d.b",
            ".conv.weight": ".conv_3d.w",
            ".bn.bias": ".batch_norm.beta",
            ".bn.running_mean": ".batch_norm.moving_mean",
            ".bn.running_var": ".batch_norm.moving_variance",
        }.items():
            path = path.removesuffix(ours) + theirs if path.endswith(ours) else path
        if array.ndim == 5:
            array = np.ascontiguousarray(array.transpose(2, 3, 4, 1, 0))
        variables[scope + path.replace(".", "/")] = array
    return variables


def lively_model(seed: int = 0, **options) -> I3D:
    """A narrow network that keeps signals alive to the end: its logits differ by hundreds."""
    import torch

    from i3d.models.i3d import Unit3D

    model = small_model(seed, **{"width": 1 / 16, "classes": None} | options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Unit3D):
                module.conv.weight *= 2
    return model


def small_model(seed: int = 0, **options) -> I3D:
    """A narrow network with statistics like a trained one's."""
    import torch

    torch.manual_seed(seed)
    model = I3D(**({"num_classes": 7, "width": 0.125} | options)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
    return model


def save_pair(folder: Path, **options) -> dict[str, Path]:
    """An RGB and a flow network as checkpoints in the folder: {"rgb": path, "flow": path}."""
    paths = {}
    for seed, stream in enumerate(("rgb", "flow")):
        paths[stream] = folder / f"{stream}.safetensors"
        save(small_model(seed, stream=stream, **options), paths[stream])
    return paths
