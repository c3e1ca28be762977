"""Export a network for other runtimes, and check what was written against PyTorch."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i3d import files
from i3d.errors import CheckpointError, UsageError
from i3d.models.checkpoints import build, fingerprint, read_weights, resolve
from i3d.models.exported.graph import onnx_model, torch_program
from i3d.models.exported.runtimes import OUTPUTS, ExportedNetwork
from i3d.models.i3d import I3D
from i3d.models.memory import reuse_freed_memory
from i3d.presets import MIN_FRAMES, STREAM_CHANNELS, find_preset
from i3d.tasks.network import compute
from i3d.version import VERSION

SUFFIXES = (".onnx", ".pt2")
METADATA_FILE = "i3d.json"  # in a .pt2 archive

# Batch, frames, height, width of the clips that are compared: odd lengths, and sides of both kinds,
# which are padded differently. Small, since PyTorch's float16 is slow on a CPU.
CLIPS = ((1, 9, 61, 46), (2, 17, 34, 50), (1, 33, 48, 65))
# Largest difference, as a share of the largest output. Measured with TensorFlow-made checkpoints of
# full width: 3.6e-6 and 2.3e-3 on noise, 2.3e-5 and 1.2e-2 on their golden inputs.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}

Outputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Check:
    """A random clip on both sides: PyTorch's float32 network with BatchNorm, and the file.

    Attributes:
        clip: shape (B, C, T, H, W).
        logits_error: largest difference of a logit.
        largest_logit: magnitude, in PyTorch.
        features_error: largest difference of a feature.
        largest_feature: magnitude, in PyTorch.
    """

    clip: tuple[int, ...]
    logits_error: float
    largest_logit: float
    features_error: float
    largest_feature: float


@dataclass(frozen=True)
class Export:
    """What was exported, for a person (``str``) or a machine (:meth:`as_dict`)."""

    checkpoint: str
    output: str
    stream: str
    num_classes: int
    classes: str | None
    precision: str
    size_bytes: int
    weights_sha256: str
    runtime: str
    tolerance: float
    checks: tuple[Check, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        named = f" ({self.classes})" if self.classes else ""
        lines = [
            f"{self.checkpoint}: {self.stream} network, {self.num_classes} classes{named}",
            f"{self.output}: written, {self.precision}, {self.size_bytes / 1e6:.1f} MB",
            f"checked against PyTorch in {self.runtime}, largest difference on random clips:",
        ]
        for check in self.checks:
            batch, _, *sizes = check.clip
            lines.append(
                f"  {batch} x {'x'.join(map(str, sizes)):9}"
                f"  logits {check.logits_error:.1e} of {check.largest_logit:.3g}"
                f"  features {check.features_error:.1e} of {check.largest_feature:.3g}"
            )
        return "\n".join(lines)


def export(
    checkpoint: files.Location, output: str | os.PathLike[str], *, precision: str = "fp32"
) -> Export:
    """Export a network with BatchNorm folded, for clips of any number, length and size.

    Args:
        checkpoint: a name or file, as :func:`i3d.load` takes it.
        output: ``.onnx`` or ``.pt2`` (``torch.export``), path or URL. What was there is replaced,
            once the new file has been found to give PyTorch's numbers.
        precision: ``"fp32"`` or ``"fp16"``, the weights' and the arithmetic's; input and outputs
            are float32 in both.

    Raises:
        UsageError: another suffix or precision; a package is missing.
        CheckpointError: the checkpoint cannot be loaded; or the file's numbers are not PyTorch's.
    """
    target = os.fspath(output)
    suffix = Path(target).suffix
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{target}: cannot write {suffix or 'a file without suffix'!r}; "
            f"the output ends in {' or '.join(SUFFIXES)}"
        )
    if precision not in TOLERANCES:
        raise UsageError(f"precision {precision!r}: it must be {' or '.join(TOLERANCES)}")
    if suffix == ".onnx":
        _require_onnx()
    reuse_freed_memory()
    weights = read_weights(resolve(checkpoint))
    network = build(weights)
    sha256 = fingerprint(weights)
    metadata = json.dumps(
        {**describe(network, precision=precision), "weights_sha256": sha256},
        ensure_ascii=False,
        allow_nan=False,
    )
    write = _write_onnx if suffix == ".onnx" else _write_pt2
    with files.atomic_file(target) as temporary:
        with files.open_for_library(temporary) as f:
            write(f, build(weights).fold(), precision == "fp16", metadata)
        runtime, run = _open(temporary, suffix)
        checks = tuple(_compare(network, run, shape) for shape in CLIPS)
        _judge(checks, target, precision)
        size = temporary.stat().st_size
    known = network.config.classes
    return Export(
        checkpoint=os.fspath(checkpoint),
        output=target,
        stream=network.stream,
        num_classes=network.num_classes,
        classes=known if isinstance(known, str) else None,
        precision=precision,
        size_bytes=size,
        weights_sha256=sha256,
        runtime=runtime,
        tolerance=TOLERANCES[precision],
        checks=checks,
    )


def describe(network: I3D, *, precision: str) -> dict[str, Any]:
    """Metadata of an exported file: what the network is, and how its clips are made.

    A value of a clip is ``(stored - mean) / std``, where ``stored`` is a frame's 8-bit value, or
    flow in pixels as ``round(clip(flow, -bound, bound) * std / bound) + mean``.
    """
    preset = find_preset(network.preset).of_videos
    scale = preset.scale(network.stream)
    flow = network.stream == "flow"
    preprocessing: dict[str, Any] = {
        "fps": preset.fps,
        "short_side": preset.short_side,
        "crop": preset.crop,
        "clip_frames": preset.clip_frames,
        "min_frames": MIN_FRAMES,
        "channels": ["x", "y"] if flow else ["red", "green", "blue"],
        "mean": float(scale.zero),
        "std": float(scale.steps),
    }
    if flow:
        preprocessing["flow_bound_pixels"] = preset.flow_bound_pixels
    return {
        "i3d": VERSION,
        "stream": network.stream,
        "num_classes": network.num_classes,
        "classes": list(network.classes) if network.has_class_names else None,
        "preset": network.preset,
        "preprocessing": preprocessing,
        "precision": precision,
        "source": network.source,
    }


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401 (is it there?)
        import onnxruntime  # noqa: F401 (is it there?)
    except ImportError as error:
        raise UsageError(
            f".onnx files need {error.name}, to be written and checked: "
            "pip install onnx onnxruntime"
        ) from None


def _write_onnx(f: Any, network: I3D, half: bool, metadata: str) -> None:
    import onnx

    onnx.save(onnx_model(network, half=half, metadata=metadata), f)


def _write_pt2(f: Any, network: I3D, half: bool, metadata: str) -> None:
    program = torch_program(network, half=half)
    torch.export.save(program, f, extra_files={METADATA_FILE: metadata})


def _open(path: Path, suffix: str) -> tuple[str, Callable[[Tensor], Outputs]]:
    """The file just written: the runtime's name, and a function from clips to outputs."""
    if suffix == ".onnx":
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}", ExportedNetwork(path).outputs
    with path.open("rb") as f:  # a file of our own: the only kind that we ever load
        program = torch.export.load(f).module()

    def run(clip: Tensor) -> Outputs:
        with torch.no_grad():
            outputs = program(clip)
        return outputs[OUTPUTS[0]], outputs[OUTPUTS[1]]

    return f"torch.export of PyTorch {torch.__version__}", run


def _compare(
    network: I3D, run: Callable[[Tensor], Outputs], shape: tuple[int, int, int, int]
) -> Check:
    batch, *sizes = shape
    noise = torch.Generator().manual_seed(0)
    clip = torch.rand(batch, STREAM_CHANNELS[network.stream], *sizes, generator=noise) * 2 - 1
    logits, features = run(clip)
    expected_logits = compute(network, clip)
    with torch.inference_mode():
        expected_features = network.features(clip)
    return Check(
        clip=tuple(clip.shape),
        logits_error=float((logits - expected_logits).abs().max()),
        largest_logit=float(expected_logits.abs().max()),
        features_error=float((features - expected_features).abs().max()),
        largest_feature=float(expected_features.abs().max()),
    )


def _judge(checks: tuple[Check, ...], target: str, precision: str) -> None:
    """Raise unless all differences are within the tolerance; NaN is not."""
    for check in checks:
        for what, error, largest in (
            ("logits", check.logits_error, check.largest_logit),
            ("features", check.features_error, check.largest_feature),
        ):
            if not error <= TOLERANCES[precision] * largest:
                remedy = (
                    "use --precision fp32"
                    if precision == "fp16"
                    else "the versions of its runtime and of PyTorch do not fit together"
                )
                raise CheckpointError(
                    f"{target}: not written: on a random clip of shape {check.clip} its {what} "
                    f"differ by {error:.2g} from PyTorch's, which reach {largest:.3g} "
                    f"(allowed: {TOLERANCES[precision]:g} of that); {remedy}"
                )
