"""Checkpoints of all programs: TensorFlow, pickles, NumPy, PyTorch, safetensors, ONNX."""

import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch
from campaigns.fuzz.cases import Target, Wrong, check_finite
from campaigns.fuzz.mutations import (
    BOUNDARIES,
    NAMES,
    Files,
    boundary,
    damage,
    damage_in_place,
    dump,
    hostile_bytes,
    hostile_json,
    hostile_pickle,
)
from onnx import TensorProto, helper
from safetensors.torch import save
from support import bundles

from i3d.errors import CheckpointError
from i3d.models.checkpoints import read_weights
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.foreign import readers
from i3d.models.foreign.array_pickle import read_array_pickle
from i3d.models.foreign.names import CHAINER, HASSONY2, OURS, PYTORCH_I3D, Naming
from i3d.models.foreign.snappy import SnappyError, decompress
from i3d.models.format import Weights
from i3d.records import plain

# No file changes what they are, and they take most of the time of reading a small one.
readers._list_shapes = cache(readers._list_shapes)


@cache
def model():
    return bundles.small_model()


@cache
def parameters() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model().state_dict().items()}


def renamed(naming: Naming) -> dict[str, np.ndarray]:
    return {naming.key(name): array for name, array in parameters().items()}


def check_weights(weights: Weights) -> None:
    check_finite(weights.tensors)
    for name, tensor in weights.tensors.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise Wrong(f"{name} is negative")
    model_names = set(parameters())
    if set(weights.tensors) != model_names:
        raise Wrong("other tensors than a network's")


def hostile_array(random: Random, array: np.ndarray) -> np.ndarray:
    """Other values, another shape or another type."""
    array = np.array(array)
    flat = array.reshape(-1)
    match random.randrange(6):
        case 0 if array.dtype.kind == "f" and flat.size:
            special = [np.nan, np.inf, -np.inf, -1.0, 3e38, 1e-45]
            flat[random.randrange(flat.size)] = random.choice(special)
            return array
        case 1:
            kinds = ["f8", "f2", "i4", "i8", "u1", "?", "c8", ">f4", "S3", "i2", "U2"]
            with np.errstate(all="ignore"):
                return array.astype(random.choice(kinds))
        case 2:
            return flat[: random.choice([0, 1, flat.size // 2])].copy()
        case 3:
            return array.reshape(array.shape[::-1])
        case 4:
            return array.reshape((*array.shape, 1)) if random.random() < 0.5 else flat
        case _:
            return np.concatenate([flat, flat])


def replaced(random: Random, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with one exchanged, renamed, taken out or added."""
    key = random.choice(sorted(arrays))
    less = {k: v for k, v in arrays.items() if k != key}
    match random.randrange(5):
        case 0:
            return less
        case 1:
            return less | {random.choice([*NAMES, f"{key}x", key.upper()]): arrays[key]}
        case 2:
            return {**arrays, random.choice([*NAMES, f"{key}/x"]): arrays[key]}
        case _:
            return less | {key: hostile_array(random, arrays[key])}


# --- TensorFlow -----------------------------------------------------------------------------------

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


@cache
def variables() -> dict[str, np.ndarray]:
    return bundles.tensorflow_variables(model(), scope="")


@cache
def tensorflow_data() -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(variables().items()))


def bundle(items: Mapping[bytes, bytes], data: bytes | None = None, **options: Any) -> Files:
    return {INDEX: bundles.table(items, **options), DATA: data or tensorflow_data()}


def tensorflow_samples() -> list[Files]:
    items = bundles.items_of(variables())
    compressed = {"compression": 1, "compress": bundles.snappy}
    return [bundle(items), bundle(items, per_block=7), bundle(items, **compressed)]


def falsify_entries(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Fields of the index at boundaries, keys hostile; every checksum of the index is right."""
    arrays = variables()
    wrong: dict[str, dict[str, Any]] = {}
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice(sorted(arrays))
        axes = [random.choice([*arrays[name].shape, *BOUNDARIES]) for _ in arrays[name].shape]
        falsehoods: dict[str, Any] = {
            "dtype": random.choice([0, 2, 7, 14, 19, 99, *BOUNDARIES]),
            "shape": random.choice([tuple(axes), (0,), (), (1,) * 17, (*axes, 0)]),
            "shard": random.choice([1, -1, *BOUNDARIES]),
            "size": random.choice(BOUNDARIES),
            "crc": random.getrandbits(32),
        }
        wrong[name] = dict(random.sample(sorted(falsehoods.items()), random.choice([1, 1, 2])))
    items = bundles.items_of(arrays, **wrong)
    for _ in range(random.choice([0, 1, 1, 2])):
        key = random.choice(sorted(items))
        match random.randrange(4):
            case 0:
                items[hostile_bytes(random)] = items[key]
                items = dict(sorted(items.items())) if random.random() < 0.7 else items
            case 1:
                items[key] = damage(random, items[key])
            case 2:
                items.pop(key)
            case _:
                items[key] += bundles.field(random.randrange(9), random.choice(BOUNDARIES))
    options = {"compression": 1, "compress": bundles.snappy} if random.random() < 0.3 else {}
    return bundle(items, per_block=random.choice([1, 7, 100, 1000]), **options)


def falsify_tensors(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Other arrays, whose checksums are right."""
    numbers = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "complex64": 8}
    numbers |= {"int64": 9, "bool": 10, "float16": 19}
    arrays = {k: np.asarray(a) for k, a in replaced(random, variables()).items()}
    arrays = {k.encode("utf-8", "replace").decode(): a for k, a in arrays.items()}
    wrong = {name: {"dtype": numbers.get(str(a.dtype), 1)} for name, a in arrays.items()}
    data = b"".join(array.tobytes() for _, array in sorted(arrays.items()))
    return bundle(bundles.items_of(arrays, **wrong), data)


def falsify_blocks(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """The insides of a block or what Snappy made of it, under a right checksum."""
    target, count = random.randrange(4), 0

    def compress(contents: bytes) -> bytes:
        nonlocal count
        count += 1
        packed = bundles.snappy(contents) if compression else contents
        if count - 1 != target and compression == (count < 3):
            return packed
        return (damage if random.random() < 0.5 else damage_in_place)(random, packed)

    compression = random.choice([0, 1, 1])
    told = compression if random.random() < 0.9 else random.randrange(256)
    items = bundles.items_of(variables())
    return bundle(items, per_block=random.choice([40, 100]), compression=told, compress=compress)


def falsify_footer(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """The handles of the blocks of meta and index."""
    handles = b"".join(
        bundles.varint(random.choice([*BOUNDARIES, len(files[INDEX]) - random.randrange(99)]))
        for _ in range(4)
    )
    index = files[INDEX][:-48] + handles[:40].ljust(40, b"\0") + files[INDEX][-8:]
    return files | {INDEX: index}


# --- Snappy, compared with Arrow's ----------------------------------------------------------------


def snappy_samples() -> list[Files]:
    texts = [bundles.block(bundles.items_of(variables())), bytes(5000), b"ab" * 300, b"x"]
    return [{"block": bundles.snappy(text)} for text in texts]


def read_snappy(folder: Path) -> bytes:
    data = (folder / "block").read_bytes()
    try:
        out = decompress(data, max_bytes=1 << 22)
    except SnappyError as error:
        raise CheckpointError(str(error)) from None
    try:
        theirs = bytes(pa.Codec("snappy").decompress(data, len(out)))
    except (pa.ArrowException, OSError) as error:
        raise Wrong(f"read, where Arrow says: {error}"[:100]) from None
    if theirs != out:
        raise Wrong("other bytes than Arrow's")
    return out


def falsify_elements(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """Literals and copies of all kinds, their offsets and lengths at boundaries."""
    out = bytearray()
    for _ in range(random.randrange(1, 12)):
        match random.randrange(5):
            case 0:
                text = random.randbytes(random.randrange(1, 61))
                out += bytes([len(text) - 1 << 2]) + text
            case 1:
                extra = random.randrange(1, 5)
                size = random.choice([1, 61, 300, int.from_bytes(boundary(random, extra), "big")])
                size &= (1 << 8 * extra) - 1
                out += bytes([59 + extra << 2]) + size.to_bytes(extra, "little")
                out += random.randbytes(min(size + 1, 400))
            case kind:
                width = (1, 2, 4)[kind - 2]
                near = random.randrange(1, 40).to_bytes(4, "little")[:width]
                place = near if random.random() < 0.7 else boundary(random, width)
                out += bytes([random.randrange(64) << 2 | kind - 1]) + place
    size = random.choice([len(out), random.randrange(400), *BOUNDARIES])
    with_room = bundles.varint(size) + bytes(out)
    if random.random() < 0.7:  # the length that is right, where there is one
        for length in range(2000):
            try:
                decompress(bundles.varint(length) + bytes(out), max_bytes=1 << 22)
            except SnappyError:
                continue
            with_room = bundles.varint(length) + bytes(out)
            break
    return {"block": with_room}


# --- pickles of arrays ----------------------------------------------------------------------------


def pickle_samples() -> list[Files]:
    tree = {
        "params": {
            "unit": {
                "kernel": np.arange(24, dtype="f4").reshape(2, 3, 4),
                "bias": np.ones(3, "f4"),
            },
            "turned": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        },
        "batch_stats": {"mean": np.float32([[1.5]]), "empty": np.zeros((0, 7), "f4")},
    }
    return [{"arrays": pickle.dumps(tree, protocol=4)}, {"arrays": pickle.dumps({}, protocol=4)}]


def read_pickled(folder: Path) -> dict[str, np.ndarray]:
    return read_array_pickle((folder / "arrays").read_bytes(), str(folder / "arrays"))


def check_arrays(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not isinstance(name, str) or array.dtype != np.float32:
            raise Wrong(f"{name!r} is {array.dtype}")


def falsify_program(random: Random, files: Files, others: Sequence[Files]) -> Files:
    return {"arrays": hostile_pickle(random, files["arrays"])}


# --- .npz of the Chainer program ------------------------------------------------------------------


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def npz_samples() -> list[Files]:
    return [{"x.npz": npz(renamed(CHAINER))}]


def hostile_npy(random: Random, data: bytes) -> bytes:
    """An array's header with another type, shape or order; or lengths at boundaries."""
    size = int.from_bytes(data[8:10], "little")
    shape = random.choice(["()", "(1,)", "(0,)", "(-1,)", "(1,)*99", "((1,),)", "(2**31, 2**31)"])
    axes = [str(random.choice(BOUNDARIES)) for _ in range(random.randrange(1, 6))]
    shape = random.choice([shape, f"({', '.join(axes)},)"])
    kinds = ["<f4", ">f4", "<f8", "|O", "<U9999999", "|V8", "<M8[ns]", "|S0", "f4,f4", "<c8", "x"]
    header = (
        f"{{'descr': '{random.choice(kinds)}', 'fortran_order': {random.choice(['True', 'False'])},"
        f" 'shape': {shape}}}"
    )
    match random.randrange(5):
        case 0:
            header = header.replace("False", "None")
        case 1:
            header = "(" * random.choice([50, 5000]) + header
        case 2:
            others = ["{}", "[]", "1", "'x' * 10**9", "__import__('os')", header[:20]]
            header = random.choice(others)
        case 3:
            content = data[10 : 10 + size]
            return data[:10] + damage_in_place(random, content) + data[10 + size :]
    text = header.encode().ljust(118) + b"\n"
    told = len(text) if random.random() < 0.9 else random.choice([0, 1, 65_535])
    version = random.choice([b"\x01\0", b"\x01\0", b"\x01\0", b"\x02\0", b"\x03\0", b"\xff\0"])
    length = struct.pack("<H" if version[0] == 1 else "<I", told)
    return data[:6] + version + length + text + data[10 + size :]


def hostile_zip(random: Random, data: bytes) -> bytes:
    """A zip of NumPy's with members exchanged, all checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    for _ in range(random.choice([1, 1, 2])):
        i = random.randrange(len(members))
        name, content = members[i]
        match random.randrange(7):
            case 0 | 1 | 2:
                members[i] = (name, hostile_npy(random, content))
            case 3:
                renamed = random.choice([*NAMES, name + "x", name.removesuffix(".npy")])
                members[i] = (renamed, content)
            case 4:
                members.append((random.choice([name, "more.npy", *NAMES]), content))
            case 5:
                del members[i]
                members = members or [("x.npy", b"")]
            case _:
                members[i] = (name, damage(random, content))
    method = random.choice([0, 0, 8, 8, 12, 14])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def falsify_members(random: Random, files: Files, others: Sequence[Files]) -> Files:
    name = random.choice([name for name in files if name.endswith(".npz")])
    return files | {name: hostile_zip(random, files[name])}


def falsify_arrays(random: Random, files: Files, others: Sequence[Files]) -> Files:
    arrays = {k or "x": a for k, a in replaced(random, renamed(CHAINER)).items()}
    arrays = {k.encode("utf-8", "replace").decode(): a for k, a in arrays.items()}
    return {"x.npz": npz(arrays)}


# --- PyTorch --------------------------------------------------------------------------------------


def torch_bytes(state: Any, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(a)) for k, a in arrays.items()}


def torch_samples() -> list[Files]:
    return [
        {"x.pt": torch_bytes(wrap(tensors(renamed(naming))), zipped=zipped)}
        for zipped in (True, False)
        for naming, wrap in ((PYTORCH_I3D, dict), (HASSONY2, lambda s: {"state_dict": s}))
    ]


def falsify_state(random: Random, files: Files, others: Sequence[Files]) -> Files:
    arrays = replaced(random, renamed(random.choice([PYTORCH_I3D, HASSONY2, OURS])))
    arrays = {
        k: a for k, a in arrays.items() if a.dtype.kind not in "SU" and a.dtype.byteorder != ">"
    }
    state: dict[Any, Any] = dict(tensors(arrays))
    key = random.choice(sorted(state))
    match random.randrange(8):
        case 0:
            state[key] = random.choice([None, 1, "x", [state[key]], {}, state[key].to_sparse()])
        case 1:
            state[random.choice([1, None, (1, 2), 1.5, b"x"])] = state[key]
        case 2:
            state[key] = state[key].expand(2, *state[key].shape)
        case 3:
            state = {random.choice(["model", "state_dict", "x"]): state}
        case 4 if state[key].is_floating_point():
            state[key] = state[key].to(random.choice([torch.bfloat16, torch.float8_e5m2]))
        case 5:
            state[key] = state[key].to("meta")
    return {"x.pt": torch_bytes(state, zipped=random.random() < 0.5)}


def falsify_pickle(random: Random, files: Files, others: Sequence[Files]) -> Files:
    """The program in the file; that of a zip is under a right checksum."""
    data = files["x.pt"]
    if not data.startswith(b"PK"):
        parts = []
        for _ in range(random.choice([3, 3, 4, 5])):  # magic number, protocol, system, state, keys
            stream = io.BytesIO(data)
            for _ in pickletools.genops(stream):  # nothing is loaded: lengths alone
                pass
            parts.append(data[: stream.tell()])
            data = data[stream.tell() :]
        return {"x.pt": b"".join(parts) + hostile_pickle(random, data)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice(sorted(members))
        if random.random() < 0.7:
            name = next(n for n in members if n.endswith("data.pkl"))
        match random.randrange(8):
            case 0:
                members[name] = damage(random, members[name])
            case 1:
                members[random.choice(NAMES) or "x"] = members[name]
            case 2 if not name.endswith("data.pkl"):
                del members[name]
            case _ if name.endswith("data.pkl"):
                members[name] = hostile_pickle(random, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.encode("utf-8", "replace").decode(), content)
    return {"x.pt": buffer.getvalue()}


# --- safetensors ----------------------------------------------------------------------------------


def safetensors_samples() -> list[Files]:
    ours = {"i3d": json.dumps(plain(model().config), sort_keys=True)}
    return [
        {"x.safetensors": save(tensors(parameters()), metadata=ours)},
        {"x.safetensors": save(tensors(renamed(PYTORCH_I3D)))},
        {"x.safetensors": save(tensors(renamed(HASSONY2)), metadata={"format": "pt"})},
    ]


def _with_header(data: bytes, header: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def falsify_header(random: Random, files: Files, others: Sequence[Files]) -> Files:
    data = files["x.safetensors"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    key = random.choice(sorted(header))
    if random.random() < 0.5:
        header[key] = hostile_json(random, header[key])
    else:
        header = hostile_json(random, header)
    return {"x.safetensors": _with_header(data, dump(header))}


def falsify_metadata(random: Random, files: Files, others: Sequence[Files]) -> Files:
    data = files["x.safetensors"]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    config = hostile_json(random, plain(model().config) | {"classes": list("abcdefg")})
    text = dump(config).decode()
    header["__metadata__"] = {"i3d": damage(random, text.encode()).decode("latin-1")
                              if random.random() < 0.1 else text}  # fmt: skip
    return {"x.safetensors": _with_header(data, dump(header))}


def falsify_safetensors(random: Random, files: Files, others: Sequence[Files]) -> Files:
    arrays = replaced(random, renamed(random.choice([PYTORCH_I3D, HASSONY2, OURS])))
    arrays = {
        k.encode("utf-8", "replace").decode(): a
        for k, a in arrays.items()
        if a.dtype.kind not in "SUc" and a.dtype.byteorder != ">"
    }
    metadata = random.choice([None, {"i3d": json.dumps(plain(model().config))}])
    return {"x.safetensors": save(tensors(arrays), metadata=metadata)}


# --- ONNX -----------------------------------------------------------------------------------------


def onnx_model(metadata: str) -> onnx.ModelProto:
    """Inputs, outputs and metadata as `i3d export` writes them, around almost no network."""
    clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["b", 3, "t", "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 7])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["b", 3, 1])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, 7], [0.5] * 21)
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [2, 3, 4])
    nodes = [
        helper.make_node("ReduceMean", ["clip", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Unsqueeze", ["mean", "last"], ["features"]),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "x", [clip], [logits, features], [weights, axes, last])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    prop = made.metadata_props.add()
    prop.key, prop.value = "i3d", metadata
    return made


def description() -> dict[str, Any]:
    config = plain(model().config) | {"classes": list("abcdefg")}
    return config | {"weights_sha256": "0" * 64, "precision": "fp32"}


def onnx_samples() -> list[Files]:
    return [{"x.onnx": onnx_model(json.dumps(description())).SerializeToString()}]


def read_onnx(folder: Path) -> tuple[Any, ...]:
    network = ExportedNetwork(folder / "x.onnx")
    return network.stream, network.classes, network.num_classes, network.preset, network.source


def check_description(found: tuple[Any, ...]) -> None:
    stream, classes, num_classes, *_ = found
    if stream not in ("rgb", "flow") or len(classes) != num_classes:
        raise Wrong("a description that contradicts itself")


def falsify_description(random: Random, files: Files, others: Sequence[Files]) -> Files:
    text = dump(hostile_json(random, description())).decode()
    return {"x.onnx": onnx_model(text).SerializeToString()}


def falsify_graph(random: Random, files: Files, others: Sequence[Files]) -> Files:
    made = onnx_model(json.dumps(description()))
    tensor = random.choice(list(made.graph.initializer))
    match random.randrange(7):
        case 0:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(
                [n for n in BOUNDARIES if -(1 << 63) <= n < 1 << 63]
            )
        case 1:
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", random.choice(["/etc/passwd", "../x", "x"])
            tensor.data_location = random.choice([TensorProto.EXTERNAL, TensorProto.DEFAULT])
        case 2:
            tensor.data_type = random.choice(list(range(25)))
        case 3:
            node = random.choice(list(made.graph.node))
            node.op_type = random.choice(["Relu", "Loop", "If", "Conv", "Identity", "x" * 10_000])
        case 4:
            value = random.choice([*made.graph.input, *made.graph.output])
            value.name = random.choice([n for n in NAMES if n != "\ud800"])
        case 5:
            made.opset_import[0].version = random.choice([0, -1, 1, 7, 99, 1 << 40])
        case _:
            tensor.ClearField("float_data")
            tensor.raw_data = random.randbytes(random.choice([0, 1, 84, 4096]))
    return {"x.onnx": made.SerializeToString()}


TARGETS = [
    Target(
        "tensorflow", tensorflow_samples, lambda folder: read_weights(folder / "model.ckpt"),
        check_weights, (falsify_entries, falsify_tensors, falsify_blocks, falsify_footer),
        sealed=True,
    ),
    Target("snappy", snappy_samples, read_snappy, lambda out: None, (falsify_elements,)),
    Target("array-pickle", pickle_samples, read_pickled, check_arrays, (falsify_program,)),
    Target(
        "npz", npz_samples, lambda folder: read_weights(folder / "x.npz"), check_weights,
        (falsify_members, falsify_arrays), sealed=True,
    ),
    Target(
        "pytorch", torch_samples, lambda folder: read_weights(folder / "x.pt"), check_weights,
        (falsify_state, falsify_pickle),
    ),
    Target(
        "safetensors", safetensors_samples, lambda folder: read_weights(folder / "x.safetensors"),
        check_weights, (falsify_header, falsify_metadata, falsify_safetensors),
    ),
    Target(
        "onnx", onnx_samples, read_onnx, check_description, (falsify_description, falsify_graph)
    ),
]  # fmt: skip
