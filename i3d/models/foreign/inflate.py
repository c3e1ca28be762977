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

import torch

from i3d import files
from i3d.errors import CheckpointError
from i3d.models.foreign.names import GOOGLENET
from i3d.models.foreign.readers import PARAMETERS, assemble, hold_tensors
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
    for p, key in wanted.items():
        if p.endswith("conv.weight"):
            tensors[key] = _inflate_filter(tensors[key], f"{name}: {key}")
    first = GOOGLENET.key("Conv3d_1a_7x7.conv.weight")
    assert first is not None
    if stream == "flow":
        channels = STREAM_CHANNELS["flow"]
        gray = tensors[first].sum(1, keepdim=True) / channels
        tensors[first] = gray.expand(-1, channels, -1, -1, -1)
    weight = tensors["fc.weight"]
    if weight.ndim == 2:
        tensors["fc.weight"] = weight[:, :, None, None, None]  # (classes, C) -> a 1x1x1 filter
    origin = "inflated from 2D Inception-v1 (torchvision's googlenet)"
    return assemble(hold_tensors(tensors, name, GOOGLENET, origin), bn_eps=BATCH_NORM_EPS)


def _inflate_filter(weight: torch.Tensor, where: str) -> torch.Tensor:
    """(out, in, h, w) -> float64 (out, in, t, h, w) of a cube."""
    shape = tuple(weight.shape)
    if weight.ndim != 4 or shape[2] != shape[3] or shape[2] not in KERNELS:
        raise CheckpointError(
            f"{where} has shape {shape}; Inception-v1 has filters (out, in, k, k) with k of "
            f"{', '.join(map(str, KERNELS))}"
        )
    depth = shape[2]
    return (weight.double() / depth)[:, :, None].expand(-1, -1, depth, -1, -1)
