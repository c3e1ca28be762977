"""2D Inception-v1 -> I3D: every filter repeated along time and divided by its new depth.

"Quo Vadis" (arXiv 1705.07750), section 2.4: a picture repeated in time is a boring video, on which
the inflated network must respond as the 2D one does on the picture. So it does, to rounding, away
from the clip's first and last frames, where the time axis is padded with zeros:

    w2 (out, in, h, w)  ->  w3[:, :, k] = w2 / t   for k = 0 .. t-1     (out, in, t, h, w)

The 2D network is that of torchvision's ``googlenet`` state dicts, whose "5x5" branch is 3x3 as
I3D's is. Its published weights came from TensorFlow and take pictures in [-1, 1]
(``transform_input=True`` brings torchvision's own scaling there), as I3D does. One thing differs:
its first convolution pads 3 pixels on all sides, where the original and I3D pad SAME, (2, 3) on
even sizes; the weights are those of a network with SAME padding.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from i3d import files
from i3d.errors import CheckpointError
from i3d.models.foreign.names import GOOGLENET
from i3d.models.foreign.readers import PARAMETERS, Shape, assemble, hold_tensors
from i3d.models.format import Weights, read_tensors
from i3d.presets import STREAM_CHANNELS, Stream

MAX_BYTES = 1 << 28  # torchvision's file has 52 MB with its auxiliary classifiers
AUXILIARY = ("aux1.", "aux2.")  # classifiers in the middle, of training alone
KERNELS = (1, 3, 7)  # sides of Inception-v1's filters; inflated ones are cubes
BATCH_NORM_EPS = 1e-3  # torchvision's BasicConv2d


def inflate(location: files.Location, *, stream: Stream = "rgb") -> Weights:
    """Read a 2D Inception-v1 and inflate it.

    Args:
        location: ``.safetensors`` file of a state dict as torchvision's ``googlenet`` has it; path
            or URL. Its auxiliary classifiers are left out.
        stream: for ``"flow"`` the first convolution's three filters are summed and halved for x
            and y: a field with x = y then gives what a gray picture of that value gives. (Averaging
            over colours is the practice since Temporal Segment Networks, arXiv 1608.00859.)

    Returns:
        The unfolded network with the 2D network's own classifier, BatchNorm's scale multiplied into
        the convolutions.

    Raises:
        CheckpointError: missing, damaged, too large, or another network; names the first key that
            is missing.
    """
    name = os.fspath(location)
    if not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{name}: 2D weights are read from .safetensors alone; write one with "
            "safetensors.torch.save_file(model.state_dict(), PATH)"
        )
    found = read_tensors(location, max_bytes=MAX_BYTES)
    tensors = {key: tensor for key, tensor in found.items() if not key.startswith(AUXILIARY)}
    wanted = {p: key for p in PARAMETERS if (key := GOOGLENET.key(p)) is not None}
    missing = [
        key
        for p, key in wanted.items()
        if key not in tensors and not p.endswith("num_batches_tracked")
    ]
    if missing:
        raise CheckpointError(
            f"{name}: no {missing[0]} ({len(missing)} of {len(wanted)} keys are missing); what can "
            "be inflated is the state dict of torchvision's googlenet as .safetensors"
        )
    origin = "inflated from 2D Inception-v1 (torchvision's googlenet)"
    flat = hold_tensors(tensors, name, GOOGLENET, origin)
    filters = {key for p, key in wanted.items() if p.endswith("conv.weight")}
    first = wanted["Conv3d_1a_7x7.conv.weight"]
    shapes = dict(flat.shapes)
    for key in filters:
        shapes[key] = _inflated_shape(shapes[key], f"{name}: {key}")
    if stream == "flow":
        shapes[first] = (shapes[first][0], STREAM_CHANNELS["flow"], *shapes[first][2:])
    if len(shapes["fc.weight"]) == 2:
        shapes["fc.weight"] += (1, 1, 1)  # (classes, C) -> a 1x1x1 filter

    def load(keys: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        for key, array in flat.load(keys):
            if key in filters:
                array = array.astype(np.float64)[:, :, None] / shapes[key][2]
                if key == first and stream == "flow":
                    array = array.sum(1, keepdims=True) / STREAM_CHANNELS["flow"]
                array = np.broadcast_to(array, shapes[key])
            yield key, array

    return assemble(replace(flat, shapes=shapes, load=load), bn_eps=BATCH_NORM_EPS)


def _inflated_shape(shape: Shape, where: str) -> Shape:
    """(out, in, h, w) -> (out, in, t, h, w) of a cube."""
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] not in KERNELS:
        raise CheckpointError(
            f"{where} has shape {shape}; Inception-v1 has filters (out, in, k, k) with k of "
            f"{', '.join(map(str, KERNELS))}"
        )
    return (*shape[:2], shape[2], *shape[2:])
