"""Networks of ``i3d export`` on ONNX Runtime and OpenVINO, for a predictor like any other.

An ONNX file from outside is taken apart before a runtime sees it. It must hold all its weights:
a weight may also name another file to read, and OpenVINO 2026.4 was seen to read any file of the
machine for it when the model comes from memory (ONNX Runtime 1.32 refuses what lies outside the
model's folder).
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from i3d import files
from i3d.errors import CheckpointError, I3DError, UsageError
from i3d.models.format import NetworkConfig, check_preset
from i3d.presets import MIN_FRAMES, STREAM_CHANNELS, Stream
from i3d.records import pick

if TYPE_CHECKING:
    import onnx

OUTPUTS = ("logits", "features")
MAX_MODEL_BYTES = 1 << 30  # a network of the greatest width has 800 MB
MAX_METADATA_BYTES = 1 << 24  # Kinetics-600's takes 14 kB
MAX_CLASSES = 1_000_000

# float32 (B, C, T, H, W) -> logits and features
Session = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ExportedNetwork:
    """A network in an ``.onnx`` file of ``i3d export``, on the CPU with PyTorch's threads.

    Args:
        location: path or URL.
        runtime: ``"onnx"`` (ONNX Runtime) or ``"openvino"``.

    Attributes:
        stream, classes, num_classes, preset, source: as those of :class:`~i3d.models.i3d.I3D`.
        precision: of its arithmetic, ``"fp32"`` or ``"fp16"``.
        weights_sha256: fingerprint of the checkpoint (:mod:`i3d.models.checkpoints`).

    Raises:
        UsageError: the runtime is not installed.
        CheckpointError: the file is damaged, or not one of ``i3d export``.
    """

    def __init__(
        self, location: files.Location, *, runtime: Literal["onnx", "openvino"] = "onnx"
    ) -> None:
        self.name = os.fspath(location)
        start = _on_openvino if runtime == "openvino" else _on_onnx_runtime
        package = "openvino" if runtime == "openvino" else "onnxruntime"
        try:
            import_module(package)
            import_module("onnx")
        except ImportError as error:
            raise UsageError(
                f"--runtime {runtime} needs {error.name or package}: pip install onnx {package}"
            ) from None
        data = _read(self.name)
        config, self.weights_sha256, self.precision = _read_description(data, self.name)
        self.stream: Stream = config.stream
        self.classes = config.names
        self.num_classes = config.num_classes
        self.preset = config.preset
        self.source = config.source
        try:
            self._session: Session = start(data)
        except Exception as error:  # of the runtimes' own classes
            raise CheckpointError(
                f"{self.name}: {package} cannot load it ({_first_line(error)})"
            ) from error

    def __call__(self, clip: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips (B, 3 or 2, T, H, W), on the clips' device."""
        return self.outputs(clip)[0]

    def outputs(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes) and features (B, C, ceil(T/8) - 1) of clips float32.

        Raises:
            I3DError: the clip has another shape than the network takes.
            CheckpointError: the outputs are not a network's of these classes.
        """
        shape = tuple(clip.shape)
        if len(shape) != 5 or shape[1] != STREAM_CHANNELS[self.stream] or shape[2] < MIN_FRAMES:
            raise I3DError(
                f"clip has shape {shape}; the {self.stream} network takes (batch, "
                f"{STREAM_CHANNELS[self.stream]}, frames, height, width) of {MIN_FRAMES} frames "
                "or more"
            )
        try:
            logits, features = self._session(clip.float().contiguous().cpu().numpy())
        except Exception as error:  # of the runtimes' own classes
            raise I3DError(
                f"{self.name}: failed on a clip of shape {shape} ({_first_line(error)})"
            ) from error
        if logits.shape != (shape[0], self.num_classes) or logits.dtype != np.float32:
            raise CheckpointError(
                f"{self.name}: its logits are {logits.dtype} {logits.shape} for {shape[0]} clips "
                f"and {self.num_classes} classes; export it again"
            )
        return torch.from_numpy(logits).to(clip.device), torch.from_numpy(features).to(clip.device)


def _on_onnx_runtime(data: bytes) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal alone: errors are raised as well
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(OUTPUTS, {"clip": clip})
        return logits, features

    return run


@cache
def _only(make_core: Callable[[], Any]) -> Any:
    """OpenVINO's core: one for the process, and never destroyed.

    Each gives the thread a signal stack of its own, and puts back at its end what was there at its
    start: two that end in the order of their making leave a stack that is no memory any more, and
    the next signal (2026.4: a child's end, with PyTorch's workers) kills the process.
    """
    return make_core()


def _on_openvino(data: bytes) -> Session:
    import openvino

    core = _only(openvino.Core)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would take bfloat16 unasked
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(data), "CPU", settings)

    def run(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = compiled({"clip": clip})
        return results[OUTPUTS[0]], results[OUTPUTS[1]]

    return run


def _first_line(error: Exception) -> str:
    """Of a runtime's message, or its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


# --- what a file says of itself -------------------------------------------------------------------


def _read(name: str) -> bytes:
    try:
        with files.open_read(name) as f:
            data = files.read_bounded(f, MAX_MODEL_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file") from None
    if len(data) > MAX_MODEL_BYTES:
        raise CheckpointError(f"{name}: over {MAX_MODEL_BYTES >> 20} MiB; no I3D network is")
    return data


def _read_description(data: bytes, name: str) -> tuple[NetworkConfig, str, str]:
    """Take an ONNX file apart, and check all that we rely on.

    Raises:
        CheckpointError: it is damaged, refers to other files, or is not one of ``i3d export``.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own class
        raise CheckpointError(f"{name}: not an ONNX file ({_first_line(error)})") from error
    if any(tensor.external_data or tensor.data_location for tensor in _tensors(model)):
        raise CheckpointError(
            f"{name}: it refers to weights in other files, which i3d does not follow; "
            "save it as one file"
        )
    texts = [prop.value for prop in model.metadata_props if prop.key == "i3d"]
    if len(texts) != 1:
        raise CheckpointError(f"{name}: not made by i3d export (no metadata of i3d in it)")
    description = parse_description(texts[0], name)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != ["clip"] or not set(OUTPUTS) <= set(outputs):
        raise CheckpointError(
            f"{name}: inputs {inputs[:5]} and outputs {outputs[:5]}; a network of i3d has clip, "
            f"and {' and '.join(OUTPUTS)}"
        )
    return description


def _tensors(message: Any) -> "Iterator[onnx.TensorProto]":
    """All tensors in a model, also those inside of nodes, subgraphs and functions."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors(part)


def parse_description(text: str, name: str) -> tuple[NetworkConfig, str, str]:
    """What the metadata of an exported file say: network, checkpoint's fingerprint, precision.

    Raises:
        CheckpointError: they are not what ``i3d export`` writes.
    """
    if len(text) > MAX_METADATA_BYTES:
        raise CheckpointError(f"{name}: its metadata have {len(text)} characters; export it again")
    try:
        document = json.loads(text)
        config, sha256 = pick(NetworkConfig, document), document.get("weights_sha256")
        precision = document.get("precision")
        unnamed_are_too_many = config.classes is None and config.num_classes > MAX_CLASSES
        texts = type(sha256) is str and precision in ("fp32", "fp16")
        if isinstance(config.classes, str) or not texts or unnamed_are_too_many:
            raise I3DError("no file of ours")
    except I3DError:
        raise CheckpointError(
            f"{name}: its metadata are not what i3d writes; export it again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its metadata are not JSON ({error})") from error
    check_preset(config.preset, name)
    return config, sha256, precision
