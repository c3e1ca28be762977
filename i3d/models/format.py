"""Our own checkpoint: what a network is, its weights in memory, and the file of both.

The file is a ``.safetensors`` with the unfolded network's state dict and one metadata entry
``i3d``: the fields of :class:`NetworkConfig` as JSON. Files come from outside, so what their
metadata say is checked before it is used, and so is every tensor, of whatever format.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, get_args

import numpy as np
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save

from i3d import files
from i3d.classes import CLASS_LISTS, ClassList
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.presets import STREAM_CHANNELS, Stream, find_preset
from i3d.records import pick, plain

BATCH_NORM_EPS = 1e-3  # Sonnet's default; ports often have PyTorch's 1e-5 (docs/numerics.md)
MAX_WIDTH = 4.0
MAX_NETWORK_BYTES = 1 << 30  # the weights of width 4 have 0.8 GB, those of 100,000 classes 0.5 GB
MAX_FILE_BYTES = 4 << 30  # a trainer's file may hold the optimizer's moments beside the weights
MAX_HEADER_BYTES = 8 << 20  # of safetensors: 100,000 class names have 4 MB

# What becomes float32. An integer or a float8 is no weight without a scale from elsewhere.
FLOATS = ("float32", "float64", "float16", "bfloat16")
_SIGNED = ("int64", "int32", "int16", "int8")
INTEGERS = (*_SIGNED, *(f"u{name}" for name in _SIGNED))
MAX_PRESET = 80  # characters of a preset's name
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What a network is: the arguments of :class:`~i3d.models.i3d.I3D` that a checkpoint keeps.

    Attributes:
        stream: ``"rgb"`` or ``"flow"``.
        num_classes: outputs of the classifier.
        classes: name of a known list, names in the order of the logits, or None for unnamed ones.
        width: multiplies the channels of every layer; 1.0 is the paper's network.
        bn_eps: BatchNorm's epsilon.
        preset: name of the preprocessing (:mod:`i3d.presets`); checked where a file says it.
        source: words on where the weights came from.

    Raises:
        I3DError: no network is like that.
    """

    stream: Stream
    num_classes: int
    classes: tuple[str, ...] | str | None = None
    width: float = 1.0
    bn_eps: float = BATCH_NORM_EPS
    preset: str
    source: str

    def __post_init__(self) -> None:
        if self.stream not in get_args(Stream):
            known = ", ".join(STREAM_CHANNELS)
            raise I3DError(f"stream is {self.stream!r}; it must be one of {known}")
        if not 0 < self.width <= MAX_WIDTH:
            raise I3DError(f"width is {self.width}; it must be above 0 and at most {MAX_WIDTH}")
        if not 0 < self.bn_eps < 1:
            raise I3DError(f"bn_eps is {self.bn_eps}; it must lie between 0 and 1, as 1e-3 does")
        if self.num_classes < 1:
            raise I3DError(f"num_classes is {self.num_classes}; it must be at least 1")
        if isinstance(self.classes, str) and self.classes not in CLASS_LISTS:
            raise I3DError(f"class list {self.classes!r:.80} is not one that comes with i3d")
        if isinstance(self.classes, tuple):
            ClassList("of the network", self.classes)  # refuses an empty name, and one name twice
        if self.classes is not None and self.num_classes != (count := len(self.names)):
            raise I3DError(
                f"num_classes is {self.num_classes}, but the class list has {count} names"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every class, in the order of the logits."""
        if self.classes is None:
            return tuple(f"class {i}" for i in range(self.num_classes))
        return CLASS_LISTS[self.classes].names if isinstance(self.classes, str) else self.classes


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory.

    Attributes:
        config: what the network is.
        tensors: its state dict, unfolded.
    """

    config: NetworkConfig
    tensors: dict[str, torch.Tensor]

    def with_config(self, **changes: Any) -> "Weights":
        """The same tensors, with some fields of the config changed."""
        return replace(self, config=replace(self.config, **changes))


@dataclass(frozen=True)
class Metadata:
    """What a file's own metadata say of a :class:`NetworkConfig` that shapes do not."""

    width: int | float
    bn_eps: float
    preset: str
    source: str
    classes: tuple[str, ...] | str | None = None


def check_preset(preset: str, name: str) -> None:
    """Refuse a file whose preprocessing is not known.

    Raises:
        CheckpointError: names the file.
    """
    try:
        find_preset(preset[:MAX_PRESET])  # the message repeats it
    except UsageError as error:
        raise CheckpointError(f"{name}: {error}; a newer version may know it") from None


def read_metadata(location: files.Location) -> Metadata | None:
    """What a safetensors file says of the network; None where it is not ours.

    Raises:
        CheckpointError: the header is damaged or holds values that no network has.
        StorageError: the server or disk fails.
    """
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            header = json.loads(_read_header(f))
        text = header.get("__metadata__", {}).get("i3d", "{}")
        if not isinstance(text, str):
            raise ValueError(f"its metadata i3d is {text!r:.50}, no text")
        document = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except I3DError:
        raise
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        files.blame_storage(name, error)
        raise CheckpointError(
            f"{name}: not a readable safetensors file ({files.explain(error)}); fetch it again"
        ) from error
    if not document:
        return None
    try:
        metadata = pick(Metadata, document)
        if isinstance(metadata.classes, str) and metadata.classes not in CLASS_LISTS:
            raise DatasetError(f"classes is {metadata.classes!r:.50}; expected a list of names")
    except DatasetError as error:
        raise CheckpointError(
            f"{name}: its metadata is not what i3d writes ({error}); convert it again"
        ) from None
    check_preset(metadata.preset, name)
    return metadata


def read_tensors(
    location: files.Location, *, max_bytes: int = MAX_FILE_BYTES
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, under its own names.

    Args:
        location: path or URL.
        max_bytes: a longer file is refused; of a URL one over 2 GiB is, too.

    Raises:
        CheckpointError: missing, damaged or too long.
        StorageError: the server or disk fails.
    """
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            _read_header(f)  # bounded before a parser of all of it sees it
            if f.seek(0, os.SEEK_END) > max_bytes:
                raise CheckpointError(f"{name} has more than {max_bytes:,} bytes")
            path = files.local_path(location)
            if path is not None:
                return load_file(path)
            f.seek(0)
            return load_bytes(files.read_bounded(f, max_bytes))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except (I3DError, MemoryError):
        raise
    except Exception as error:  # an unknown dtype alone may raise one of three
        files.blame_storage(name, error)
        raise CheckpointError(
            f"{name}: not a readable safetensors file ({files.explain(error)}); fetch it again"
        ) from error


def read_parameters(
    location: files.Location, like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a network whose state dict is known, from a file under our names.

    Args:
        location: a safetensors file, by path or URL.
        like: the network's parameters, by which names and shapes are checked.

    Raises:
        CheckpointError: missing, damaged, or of another network.
    """
    name = os.fspath(location)
    found = read_tensors(location)
    if odd := sorted(found.keys() ^ like.keys()):
        state = "missing" if odd[0] in like else "unknown"
        raise CheckpointError(
            f"{name}: {len(odd)} tensors are missing or unknown, {odd[0]!r:.100} first ({state}); "
            "it belongs to another network"
        )
    tensors = {}
    for key, parameter in like.items():
        where = f"{name}: {key}"
        check_kind(kind_of(found[key]), key, where)
        if found[key].shape != parameter.shape:
            raise CheckpointError(
                f"{where} has shape {tuple(found[key].shape)}, and the network "
                f"{tuple(parameter.shape)}; the file belongs to another one"
            )
        array = to_numpy(found[key])
        tensors[key] = to_count(array, where) if is_counter(key) else to_floats(array, key, where)
    return tensors


def _read_header(f: IO[bytes]) -> bytes:
    """A safetensors file's header: JSON, whose length the file begins with."""
    size = int.from_bytes(f.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes, where {MAX_HEADER_BYTES:,} are read at most")
    return f.read(size)


def write_safetensors(weights: Weights, location: files.Location) -> None:
    """Write weights to a ``.safetensors`` file, atomically."""
    # One metadata entry: safetensors writes several in no fixed order, and files should be equal.
    metadata = {"i3d": json.dumps(plain(weights.config), sort_keys=True, allow_nan=False)}
    # not save_file, whose files their owner alone may read
    files.write(location, save(weights.tensors, metadata=metadata))


# --- tensors from outside -------------------------------------------------------------------------


def kind_of(tensor: torch.Tensor) -> str:
    """What a tensor holds, as messages call it: ``bfloat16``, ``sparse float32``, ``int8``."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return f"nested {dtype}"
    if tensor.layout != torch.strided:
        return f"sparse {dtype}"
    if tensor.is_quantized:
        return f"quantized {dtype}"
    return f"meta {dtype}, without content" if tensor.is_meta else dtype


def is_counter(parameter: str) -> bool:
    """Whether a parameter of ours counts BatchNorm's updates; no output depends on it."""
    return parameter.endswith(COUNTER)


def check_kind(kind: str, parameter: str, where: str) -> None:
    """Refuse what cannot be read as float32, or as a count.

    Args:
        kind: NumPy's name of a dtype, or what `kind_of` says.
        parameter: our name for it.
        where: file and key, for messages.

    Raises:
        CheckpointError: names the kind.
    """
    counts = is_counter(parameter)
    # Counters become floats where a whole state dict was made bfloat16, and are still whole.
    if kind in FLOATS or (counts and kind in INTEGERS):
        return
    expected = "int64" if counts else f"float32 ({', '.join(FLOATS[1:])} are converted to it)"
    raise CheckpointError(f"{where} has dtype {kind:.100}; save it as {expected}")


def note_conversion(source: str, kinds: Iterable[str]) -> str:
    """``source``, with what was made float32 to be loaded, if anything was."""
    others = sorted(set(kinds) - {"float32"})
    note = f"converted from {' and '.join(others)}" if others else ""
    return ", ".join(text for text in (source, note) if text)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor of a kind that is read, as it is; bfloat16, which NumPy has not, as float32."""
    tensor = tensor.detach().cpu().resolve_neg()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_count(array: np.ndarray, where: str) -> torch.Tensor:
    """A counter, int64 of shape ().

    Raises:
        CheckpointError: no whole number from 0 on.
    """
    value = array.item()
    if not 0 <= value < 1 << 63 or value != int(value):
        raise CheckpointError(
            f"{where} is {value:g}, and no count of batches; leave it out, or set it to 0"
        )
    return torch.tensor(int(value))


def to_floats(
    array: np.ndarray, parameter: str, where: str, *, dtype: type[np.floating] = np.float32
) -> torch.Tensor:
    """A copy of a parameter's array, whose values are checked.

    Raises:
        CheckpointError: not finite in ``dtype``, or a negative variance.
    """
    with np.errstate(all="ignore"):  # what is too large becomes infinite, and is refused so
        values = np.array(array, dtype, order="C")
    finite = np.isfinite(values)
    if not finite.all():
        raise CheckpointError(
            f"{where} holds values that are not finite: {_first_of(~finite, array)}; fetch it "
            "again, or take a checkpoint from before its training diverged"
        )
    if parameter.endswith("running_var") and (values < 0).any():
        raise CheckpointError(
            f"{where} holds a negative variance: {_first_of(values < 0, array)}; fetch it again"
        )
    return torch.from_numpy(values)


def _first_of(bad: np.ndarray, array: np.ndarray) -> str:
    """``2 of 64, the first nan at [3]``."""
    index = np.unravel_index(int(bad.argmax()), bad.shape)
    place = ", ".join(str(int(i)) for i in index)
    return f"{int(bad.sum()):,} of {bad.size:,}, the first {array[index]:g} at [{place}]"
