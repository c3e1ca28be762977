"""Our own checkpoint: what a network is, its weights in memory, and the file of both.

The file is a ``.safetensors`` with the unfolded network's state dict and one metadata entry
``i3d``: the fields of :class:`NetworkConfig` as JSON. Files come from outside, so what their
metadata say is checked before it is used.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

from i3d import files
from i3d.classes import CLASS_LISTS
from i3d.errors import CheckpointError, DatasetError, I3DError, UsageError
from i3d.presets import STREAM_CHANNELS, Stream, find_preset
from i3d.records import pick, plain

BATCH_NORM_EPS = 1e-3  # Sonnet's default; ports often have PyTorch's 1e-5 (docs/numerics.md)
MAX_WIDTH = 4.0  # 800 MB of weights: what a checkpoint from outside can make us allocate
MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound


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
        find_preset(preset)
    except UsageError as error:
        raise CheckpointError(f"{name}: {error}; a newer version may know it") from None


def read_metadata(location: files.Location) -> Metadata | None:
    """What a safetensors file says of the network; None where it is not ours.

    Raises:
        CheckpointError: the header is damaged or holds values that no network has.
    """
    name = os.fspath(location)
    try:
        with files.open_read(location) as f:
            size = int.from_bytes(f.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise CheckpointError(f"{name}: not a safetensors file (a header of {size} bytes)")
            header = json.loads(f.read(size))
        document = json.loads(header.get("__metadata__", {}).get("i3d", "{}"))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name}: not a readable safetensors file ({error})") from error
    if not document:
        return None
    try:
        metadata = pick(Metadata, document)
    except DatasetError:
        metadata = None
    if metadata is None or (
        isinstance(metadata.classes, str) and metadata.classes not in CLASS_LISTS
    ):
        raise CheckpointError(f"{name}: its metadata is not what i3d writes; convert it again")
    check_preset(metadata.preset, name)
    return metadata


def read_tensors(
    location: files.Location, *, max_bytes: int | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, under its own names.

    Args:
        location: path or URL.
        max_bytes: a longer file is refused.

    Raises:
        CheckpointError: missing, damaged or too long.
    """
    name = os.fspath(location)
    try:
        path = files.local_path(location)
        if path is not None and max_bytes is None:
            return load_file(path)
        with files.open_read(location) as f:
            data = f.read() if max_bytes is None else f.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise CheckpointError(f"{name} has more than {max_bytes >> 20} MiB")
        return load_bytes(data)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{name}: not a readable safetensors file ({error})") from error


def write_safetensors(weights: Weights, path: Path) -> None:
    """Write weights to a ``.safetensors`` file, atomically."""
    # One metadata entry: safetensors writes several in no fixed order, and files should be equal.
    metadata = {"i3d": json.dumps(plain(weights.config), sort_keys=True, allow_nan=False)}
    with files.atomic_path(path) as temporary:
        save_file(weights.tensors, temporary, metadata=metadata)
