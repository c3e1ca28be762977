"""Convert a checkpoint of another program to ours, or to the Chainer program's ``.npz``."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from i3d import files
from i3d.classes import CLASS_LISTS, class_list
from i3d.errors import UsageError
from i3d.models.checkpoints import read_weights
from i3d.models.foreign.readers import write_npz
from i3d.models.format import write_safetensors

SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True)
class Conversion:
    """What was converted, for a person (``str``) or a machine (:meth:`as_dict`)."""

    checkpoint: str
    output: str
    stream: str
    num_classes: int
    classes: str | None
    width: float
    bn_eps: float
    source: str
    tensors: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        named = f" ({self.classes})" if self.classes else ""
        width = "" if self.width == 1 else f", width {self.width:g}"
        origin = f"; {self.source}" if self.source else ""
        return (
            f"{self.checkpoint}: {self.stream} network, {self.num_classes} classes{named}{width}"
            f"{origin}\n"
            f"{self.output}: written, {self.tensors} tensors"
        )


def convert(
    checkpoint: files.Location,
    output: str | os.PathLike[str],
    *,
    bn_eps: float | None = None,
    classes: str | None = None,
    form: str = "",
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: TensorFlow bundle (prefix, ``.index`` file or folder), ``.npz``, PyTorch state
            dict or ``.safetensors``; a path or URL.
        output: the file. An existing one is replaced, once the new one is whole.
        bn_eps: BatchNorm's epsilon of a PyTorch state dict, which does not carry it.
        classes: ``kinetics400``, ``kinetics600`` or a file of names, to keep with the weights.
        form: ``safetensors`` (ours) or ``npz`` (the Chainer program's); "" is by the suffix.

    Raises:
        UsageError: another suffix, or an option that does not fit the checkpoint.
        CheckpointError: the checkpoint is missing, damaged or of another network.
        DatasetError: the class list cannot be read.
    """
    target = Path(output)
    suffix = f".{form}" if form else target.suffix
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{target}: cannot write {suffix or 'a file without suffix'!r}; "
            f"the output ends in {' or '.join(SUFFIXES)}, or --format says what it is"
        )
    names = None if classes is None else class_list(classes)
    weights = read_weights(checkpoint, bn_eps=bn_eps)
    if names is not None:
        count = weights.config.num_classes
        if len(names) != count:
            raise UsageError(f"{checkpoint}: {count} classes, but {classes} has {len(names)} names")
        weights = weights.with_config(classes=classes if classes in CLASS_LISTS else names.names)
    if suffix == ".npz":
        with files.atomic_path(target) as temporary, temporary.open("wb") as f:
            write_npz(weights, f)
    else:
        write_safetensors(weights, target)
    config = weights.config
    known = config.classes if isinstance(config.classes, str) else names.name if names else None
    return Conversion(
        checkpoint=os.fspath(checkpoint),
        output=os.fspath(output),
        stream=config.stream,
        num_classes=config.num_classes,
        classes=known,
        width=config.width,
        bn_eps=config.bn_eps,
        source=config.source,
        tensors=len(weights.tensors),
    )
