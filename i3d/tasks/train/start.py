"""What a run begins with: nothing, a checkpoint or inflated 2D weights, and its classifier."""

from dataclasses import dataclass
from typing import Any

import torch

from i3d.data.reading.random_clips import TrainingSet
from i3d.errors import CheckpointError, UsageError, hide_secrets
from i3d.models.checkpoints import build, read_weights, resolve
from i3d.models.foreign.inflate import inflate
from i3d.models.i3d import I3D
from i3d.presets import find_preset
from i3d.tasks.train.options import SCRATCH

INFLATE = "inflate:"


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        network: unfolded, on the CPU.
        new_head: whether its classifier starts from nothing.
        notes: lines that the user should know.
    """

    network: I3D
    new_head: bool
    notes: tuple[str, ...]


def initial_network(
    init: str, data: TrainingSet, *, width: float | None, seed: int, progress: bool = False
) -> Start:
    """Make the network that training begins with.

    Args:
        init: ``scratch``, a checkpoint's name, path or URL, or ``inflate:`` before the path or URL
            of a 2D Inception-v1 (:mod:`i3d.models.foreign.inflate`).
        data: says stream, classes and preset.
        width: channels of a network from scratch, as a share of the table's; None: 1.
        seed: what the weights that start from nothing are drawn by.
        progress: draw a progress bar while downloading.

    Raises:
        CheckpointError: it cannot be read, or is for another stream or preset.
        UsageError: no such checkpoint; a width for one that has its own.
    """
    if init != SCRATCH and width is not None:
        raise UsageError(f"--width is for --init {SCRATCH}; {init} has its own")
    torch.manual_seed(seed)
    on = data.dataset.manifest.dataset
    fresh: dict[str, Any] = {
        "stream": data.stream,
        "classes": data.classes,
        "preset": data.preset.name,
    }
    if init == SCRATCH:
        network = I3D(**fresh, width=width or 1.0, source=f"i3d train on {on} from scratch")
        return Start(network, True, (f"{SCRATCH}: all weights start from nothing",))
    if init.startswith(INFLATE):
        name = init.removeprefix(INFLATE)
        weights = inflate(name, stream=data.stream)
        keep, why = _fitting_head(build(weights), data, name)
    else:
        name = init
        weights = read_weights(resolve(init, progress=progress))
        keep, why = _known_head(build(weights), data, name)
    width, bn_eps, origin = weights.config.width, weights.config.bn_eps, weights.config.source
    source = f"i3d train on {on} from {origin or hide_secrets(name)}"
    network = I3D(**fresh, width=width, bn_eps=bn_eps, source=source)
    kept = {k: t for k, t in weights.tensors.items() if keep or not k.startswith("Logits.")}
    network.load_state_dict(kept, strict=keep)
    return Start(network, not keep, (why,))


def find_class_names(init: str, data: TrainingSet) -> tuple[str, ...]:
    """The names that numbers for labels mean: those of the checkpoint to begin with.

    Raises:
        UsageError: it has none, or fewer than there are labels.
    """
    folder = data.dataset.folder
    if init == SCRATCH or init.startswith(INFLATE):
        raise UsageError(f"{folder}: its labels are numbers without names; name them by --classes")
    model = build(read_weights(resolve(init)))
    if not model.has_class_names or model.num_classes < len(data.classes):
        raise UsageError(
            f"{folder}: its labels are {len(data.classes)} numbers without names, and {init} has "
            f"{model.num_classes if model.has_class_names else 'no'} names; name them by --classes"
        )
    return model.classes


def _known_head(old: I3D, data: TrainingSet, name: str) -> tuple[bool, str]:
    """Whether a checkpoint's classifier can stay, and a line that says so."""
    if old.stream != data.stream:
        raise CheckpointError(f"{name} is a network for {old.stream}, not for {data.stream}")
    if not find_preset(old.preset).fits(data.preset):
        raise CheckpointError(
            f"{name} was made for preset {old.preset}, and the shards for {data.preset.name}"
        )
    count = len(data.classes)
    if old.has_class_names and old.classes == data.classes:
        return True, f"{name}: the same {count} classes; its classifier is trained on"
    if not old.has_class_names and old.num_classes == count:
        return True, f"{name}: {count} classes without names, taken for those of the shards"
    return False, (
        f"{name}: its classifier of {old.num_classes} classes is replaced by a new one for the "
        f"shards' {count}"
    )


def _fitting_head(old: I3D, data: TrainingSet, name: str) -> tuple[bool, str]:
    count = len(data.classes)
    if old.num_classes == count:
        return True, (
            f"{name}: inflated, with its classifier: it has as many classes as the shards, {count}"
        )
    return False, (
        f"{name}: inflated; its classifier (fc) of {old.num_classes} classes is replaced by a new "
        f"one for the shards' {count}"
    )
