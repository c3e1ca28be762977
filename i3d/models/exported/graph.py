"""The network's inference form for other runtimes: an ONNX graph, and a program of PyTorch's.

Both take ``clip`` (batch, 3 or 2, frames, height, width) of any size with 9 frames or more and give
``logits`` (batch, num_classes) and ``features`` (batch, 1024 x width, ceil(frames / 8) - 1).

The ONNX graph is written layer by layer and not traced: ONNX's ``SAME_UPPER`` is TensorFlow's SAME
padding, worked out by the runtime from the actual size, so that nothing of an example's size can
get in and nothing is copied. A trace would need a dozen nodes of arithmetic a layer instead.

In half precision the layers run in float16. What follows Mixed_5c, sums over all of its pixels, and
the input and outputs stay float32.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3d.models.folded import FoldedUnit, NeighbourMax
from i3d.models.i3d import I3D, TABLE, MaxPool, MixedBlock
from i3d.presets import MIN_FRAMES, STREAM_CHANNELS
from i3d.version import VERSION

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the last one whose ReduceMean has its axes as an attribute, which most runtimes read
IR_VERSION = 8  # the one that came with it
MAX_SIZE = 1 << 20  # frames or pixels: torch.export cannot reason about an axis without an end


# --- ONNX -----------------------------------------------------------------------------------------


def onnx_model(network: I3D, *, half: bool, metadata: str) -> "onnx.ModelProto":
    """The graph of a folded network; the same network gives the same bytes.

    Tensors are named as the original's scopes, so that ``Mixed_5c`` is the endpoint of that name.

    Args:
        network: folded, on the CPU.
        half: weights and arithmetic of the layers in float16.
        metadata: kept as the model's property ``i3d``.
    """
    import onnx
    from onnx import TensorProto, helper

    assert network.folded
    graph = _Graph(np.float16 if half else np.float32)
    x = "clip"
    if half:
        x = graph.add("Cast", [x], "clip/float16", to=TensorProto.FLOAT16)
    for name, _ in TABLE:
        x = graph.layer(network.get_submodule(name), x, name)
    if half:
        x = graph.add("Cast", [x], f"{x}/float32", to=TensorProto.FLOAT)
    x = graph.add("ReduceMean", [x], "mean_over_space", axes=[3, 4], keepdims=0)
    x = graph.add("AveragePool", [x], "features", kernel_shape=[2], strides=[1])
    x = graph.add("ReduceMean", [x], "mean_over_time", axes=[2], keepdims=0)
    weight, bias = _classifier(network)
    inputs = [x, graph.weight("Logits/weight", weight), graph.weight("Logits/bias", bias)]
    graph.add("Gemm", inputs, "logits", transB=1)

    channels = STREAM_CHANNELS[network.stream]
    signature: dict[str, list[str | int | None]] = {
        "clip": ["batch", channels, "frames", "height", "width"],
        "logits": ["batch", network.num_classes],
        "features": ["batch", weight.shape[1], "steps"],
    }
    clip, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in signature.items()
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, f"i3d_{network.stream}", [clip], outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="i3d",
        producer_version=VERSION,
    )
    helper.set_model_props(model, {"i3d": metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and weights in the order they were added; a tensor is known by its name."""

    def __init__(self, dtype: type[np.floating]) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def weight(self, name: str, tensor: Tensor, dtype: type[np.floating] = np.float32) -> str:
        from onnx import numpy_helper

        with np.errstate(over="ignore"):  # infinite in float16: what the check after it finds
            array = tensor.detach().numpy().astype(dtype)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def layer(self, layer: nn.Module, x: str, name: str) -> str:
        """Add the nodes of a row of the table, or of a part of one."""
        if isinstance(layer, FoldedUnit):
            conv = layer.conv
            assert conv.bias is not None
            x = self.add(
                "Conv",
                [
                    x,
                    self.weight(f"{name}/weight", conv.weight, self.dtype),
                    self.weight(f"{name}/bias", conv.bias, self.dtype),
                ],
                f"{name}/conv",
                auto_pad="SAME_UPPER",
                kernel_shape=conv.kernel_size,
                strides=conv.stride,
            )
            return self.add("Relu", [x], name)
        if isinstance(layer, MaxPool | NeighbourMax):
            sizes = {"kernel_shape": layer.kernel, "strides": layer.stride}
            return self.add("MaxPool", [x], name, auto_pad="SAME_UPPER", **sizes)
        parts = [(part, f"{name}/{child}") for child, part in layer.named_children()]
        if isinstance(layer, MixedBlock):
            branches = [self.layer(branch, x, path) for branch, path in parts]
            return self.add("Concat", branches, name, axis=1)
        for part, path in parts:
            x = self.layer(part, x, path)
        return x


def _classifier(network: I3D) -> tuple[Tensor, Tensor]:
    """Weight (num_classes, C) and bias: linear, so that the mean over time may come first."""
    conv = network.Logits.Conv3d_0c_1x1
    assert conv.bias is not None
    return conv.weight.flatten(1), conv.bias


# --- PyTorch --------------------------------------------------------------------------------------


def torch_program(network: I3D, *, half: bool) -> torch.export.ExportedProgram:
    """The program of a folded network, as ``torch.export`` makes it.

    Its output is ``{"logits": ..., "features": ...}``.

    Args:
        network: folded, on the CPU; with ``half`` its layers are turned to float16 in place.
        half: weights and arithmetic of the layers in float16.
    """
    from torch.export import Dim
    from torch.fx.experimental import _config

    patch: Any = _config.patch  # type: ignore[attr-defined]  # made when the module is loaded

    assert network.folded
    if half:
        for name, _ in TABLE:
            network.get_submodule(name).half()
    axes = {
        0: Dim("batch", min=1, max=MAX_SIZE),
        2: Dim("frames", min=MIN_FRAMES, max=MAX_SIZE),
        3: Dim("height", min=1, max=MAX_SIZE),
        4: Dim("width", min=1, max=MAX_SIZE),
    }
    example = torch.zeros(2, STREAM_CHANNELS[network.stream], 17, 18, 20)
    # Sizes of 1, which any axis reaches somewhere inside, are otherwise another program's.
    with torch.no_grad(), patch(backed_size_oblivious=True):
        return torch.export.export(
            _Traceable(network, half=half), (example,), dynamic_shapes={"clip": axes}
        )


class _Traceable(nn.Module):
    """A folded network in operations whose sizes stay symbols when they are traced.

    The network's own max pooling takes its padding as plain numbers, which would be the example's.
    """

    def __init__(self, network: I3D, *, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_precision = half

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        x = clip.half() if self.half_precision else clip
        for name, _ in TABLE:
            x = _run(self.network.get_submodule(name), x)
        x = x.float().mean((3, 4))  # (B, C, T, H, W) -> (B, C, T)
        features = (x[:, :, :-1] + x[:, :, 1:]) / 2
        weight, bias = _classifier(self.network)
        return {"logits": F.linear(features.mean(2), weight, bias), "features": features}


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, FoldedUnit):
        conv = layer.conv
        x, padding = _pad(x, conv.kernel_size, conv.stride)
        return F.relu(F.conv3d(x, conv.weight, conv.bias, conv.stride, padding))
    if isinstance(layer, MaxPool | NeighbourMax):
        x, padding = _pad(x, layer.kernel, layer.stride)
        return F.max_pool3d(x, layer.kernel, layer.stride, padding)
    if isinstance(layer, MixedBlock):
        return torch.cat([_run(branch, x) for branch in layer.children()], 1)
    for part in layer.children():
        x = _run(part, x)
    return x


def _pad(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """SAME padding: what the operation can do itself, and ``x`` with the rest done by zeros.

    Zeros will do for max pooling too, whose inputs follow a ReLU. The total, as `same_padding` has
    it, never falls below 0 here, where no stride exceeds its kernel; without the maximum, torch
    finds that an output has (n + 1) // 2 steps, and the program loads in a fifth of the time.
    """
    if all(s == 1 for s in stride):
        return x, tuple(k // 2 for k in kernel)
    pads: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = ((n + s - 1) // s - 1) * s + k - n
        pads = [total // 2, total - total // 2, *pads]  # F.pad starts at the last axis
    return F.pad(x, pads), (0, 0, 0)
