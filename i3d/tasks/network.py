"""A checkpoint's name or file -> a network on a device at a precision, fed batch by batch."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from i3d import files
from i3d.errors import CheckpointError, I3DError, UsageError, hide_secrets
from i3d.models.checkpoints import build, fingerprint, load, read_weights, resolve
from i3d.models.exported.runtimes import ExportedNetwork
from i3d.models.format import BATCH_NORM_EPS, Weights
from i3d.models.i3d import I3D
from i3d.models.memory import reuse_freed_memory
from i3d.models.released import CHECKPOINTS
from i3d.parallel.world import World
from i3d.presets import Preset, Stream, find_preset
from i3d.tasks.options import ComputeOptions, Precision

Runtime = Literal["torch", "onnx", "openvino"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
GPU_FRAMES = 512  # in a batch: 8 windows of 64; about 3 GB, estimated from the layers' sizes


@dataclass(frozen=True)
class UsedCheckpoint:
    """A network that made a result.

    Attributes:
        name: as the user named it; of a URL without its password.
        source: where its weights came from, in words; empty if it does not say.
        weights_sha256: hash of its arrays, whatever file format they came in.
    """

    name: str
    source: str
    weights_sha256: str


def choose_device(device: str, world: World = World()) -> str:
    """``"cpu"`` or ``"cuda:N"`` for ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    A GPU becomes PyTorch's current one. Jobs call this before all else: what comes first to CUDA,
    be it page-locked memory or a look at the free memory, opens a context on the current GPU, which
    of all processes of a node would be the first.

    Args:
        device: as the user said it.
        world: its number on its node makes ``cuda`` this process's own GPU; where there are fewer
            GPUs than processes they are shared in turn.

    Raises:
        UsageError: CUDA is asked for and is not there, or another name.
    """
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise UsageError(f"device {device!r}: it must be auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: this PyTorch sees no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    number = device.removeprefix("cuda").removeprefix(":")
    if device in ("auto", "cuda"):
        number = str(world.local_rank % count)
    if not number.isdecimal() or int(number) >= count:
        raise UsageError(f"device {device!r}: there are cuda:0 to cuda:{count - 1}")
    chosen = f"cuda:{number}"
    torch.cuda.set_device(chosen)
    return chosen


def device_name(device: str) -> str:
    """What a report calls it: the GPU's model, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


# --- one network ----------------------------------------------------------------------------------


class Network:
    """A folded network in memory, where and how it computes, and what to say of it.

    Attributes:
        model: folded, on the device.
        used: what it was made from.
        own_bn_eps: BatchNorm's epsilon that its file gives.
        released: name of the released network whose arrays these are, whatever file they came in;
            empty where they are no released network's that is known by its hash.
    """

    def __init__(
        self,
        model: I3D,
        used: UsedCheckpoint,
        *,
        own_bn_eps: float,
        device: str,
        precision: Precision,
        released: str = "",
    ) -> None:
        reuse_freed_memory()
        self.model, self.used, self.own_bn_eps = model.to(device), used, own_bn_eps
        self.device, self.precision, self.released = device, precision, released

    @property
    def stream(self) -> Stream:
        """What it looks at."""
        return self.model.stream

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.used.name or f"the {self.stream} network"

    def explain_overflow(self, rows: np.ndarray) -> str | None:
        """Why its rows of a video, of any shape, are no result; None where all are finite."""
        return explain_overflow(rows, self.title, self.precision)

    def compute(self, clips: torch.Tensor, endpoint: str = "logits") -> torch.Tensor:
        """Rows float32 (B, ...) of clips (B, C, T, H, W) on the network's device.

        ``logits``: (B, num_classes); ``clip``: (B, 1024), the features' mean over time, which the
        classifier sees; ``steps``: (B, T', 1024); any of `ENDPOINTS`: as
        :meth:`~i3d.models.i3d.I3D.endpoints` gives it.
        """
        return compute(self.model, clips, endpoint, self.precision)


def compute(
    model: Callable[[torch.Tensor], torch.Tensor],
    clips: torch.Tensor,
    endpoint: str = "logits",
    precision: Precision = "fp32",
) -> torch.Tensor:
    """As `Network.compute`; a model that is no `I3D` has logits alone."""
    autocast = torch.autocast(
        clips.device.type, dtype=AUTOCAST.get(precision), enabled=precision != "fp32"
    )
    with torch.inference_mode(), full_float32(), autocast:
        if endpoint == "logits":
            return model(clips).float()
        assert isinstance(model, I3D)
        if endpoint == "clip":
            return model.features(clips).mean(2).float()
        if endpoint == "steps":
            return model.features(clips).transpose(1, 2).float()  # (B, C, T') -> (B, T', C)
        return model.endpoints(clips, [endpoint])[endpoint].float()


# PyTorch's settings are the process's: of two threads that change and restore them in turns, one
# would compute with the other's.
_settings = threading.RLock()


@contextmanager
def full_float32(*, benchmark: bool | None = None) -> Iterator[None]:
    """In here float32 is float32, whatever the user allows PyTorch elsewhere.

    TF32 in cuDNN's convolutions, which PyTorch allows by itself, costs three digits; bfloat16 in
    oneDNN's products more. (No product of ours goes to cuBLAS.) One thread at a time is in here.

    Args:
        benchmark: whether cuDNN tries which kernels are the fastest; None: as it is.
    """
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    with _settings, ExitStack() as before:

        def change(owner: Any, name: str, value: Any) -> None:
            before.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        # All that was not set by itself inherits this; to set that as well could not be undone:
        # cuDNN's own default, TF32 where nothing else is said, has no name.
        before.enter_context(torch.backends.flags(fp32_precision="ieee"))
        for owner in (cudnn, cudnn.conv, mkldnn.conv, mkldnn.matmul):
            if owner.fp32_precision in ("tf32", "bf16"):
                change(owner, "fp32_precision", "ieee")
        if benchmark is not None:
            change(cudnn, "benchmark", benchmark)
        yield


def explain_overflow(
    rows: np.ndarray, network: str, precision: str, *, remedy: str = "use --precision fp32"
) -> str | None:
    """Why a network's rows are no result: NaN or infinity in them. None where all are finite.

    Args:
        rows: of one video, any shape.
        network: what messages call it.
        precision: ``fp32``, or what the arithmetic was reduced to.
        remedy: what to do where it was.
    """
    if np.isfinite(rows).all():
        return None
    found = "NaN" if np.isnan(rows).any() else "infinity"
    if precision != "fp32":
        return f"{network} gives {found} at {precision}, which overflowed; {remedy}"
    return (
        f"{network} gives {found}: its weights are damaged, or of a training that diverged; fetch "
        "or convert it again, or use another"
    )


def load_network(
    checkpoint: files.Location | I3D,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    bn_eps: float | None = None,
    progress: bool = False,
) -> Network:
    """Load a network for a job.

    Args:
        checkpoint: name, path or URL (:func:`i3d.load`); or a network in memory, of which a folded
            one is taken as it is and has no hash, and another is left as it is.
        device: ``cpu`` or ``cuda:N``.
        precision: see `ComputeOptions`.
        bn_eps: epsilon that BatchNorm is given, whatever the checkpoint says.
        progress: draw a progress bar while downloading.

    Raises:
        UsageError: no such checkpoint.
        CheckpointError: it cannot be loaded.
    """
    if isinstance(checkpoint, I3D):
        name = f"the {checkpoint.stream} network"
        types = {p.dtype for p in checkpoint.parameters()} - {torch.float32}
        if types:
            raise UsageError(
                f"{name} in memory has parameters in {', '.join(map(str, types))}; give it in "
                "float32, as model.float() makes it, and ask for another precision by its option"
            )
        if checkpoint.folded and bn_eps is None:
            used = UsedCheckpoint("", checkpoint.source, "")
            return Network(
                checkpoint, used, own_bn_eps=checkpoint.bn_eps, device=device, precision=precision
            )
        weights = checkpoint.weights()
        # copies: what is trained on would change half of what is folded
        weights = Weights(weights.config, {k: t.clone() for k, t in weights.tensors.items()})
    else:
        name = os.fspath(checkpoint)
        weights = _read(resolve(checkpoint, progress=progress), bn_eps)
    own = weights.config.bn_eps
    if bn_eps is not None:
        weights = weights.with_config(bn_eps=bn_eps)
    used = UsedCheckpoint(hide_secrets(name), weights.config.source, fingerprint(weights))
    return Network(
        build(weights).fold(),
        used,
        own_bn_eps=own,
        device=device,
        precision=precision,
        released=_find_released(weights, used.weights_sha256),
    )


def _find_released(weights: Weights, digest: str) -> str:
    """Name of the released network that has these arrays, with whatever epsilon; else empty."""
    if weights.config.bn_eps != BATCH_NORM_EPS:
        digest = fingerprint(weights.with_config(bn_eps=BATCH_NORM_EPS))
    return next((c.name for c in CHECKPOINTS.values() if c.weights_sha256 == digest), "")


def _read(location: files.Location, bn_eps: float | None) -> Weights:
    """Weights with their own epsilon; a bare state dict, which has none, takes the given one."""
    if bn_eps is not None:
        try:
            return read_weights(location, bn_eps=bn_eps)
        except UsageError:  # a format whose epsilon is known
            pass
    return read_weights(location)


def load_networks(
    checkpoints: Iterable[files.Location | I3D],
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    progress: bool = False,
) -> dict[Stream, Network]:
    """The networks of a job by their streams, RGB first; arguments and errors of `load_network`.

    Raises:
        UsageError: none, or two for one stream.
    """
    networks: dict[Stream, Network] = {}
    for checkpoint in checkpoints:
        network = load_network(checkpoint, device=device, precision=precision, progress=progress)
        if network.stream in networks:
            names = networks[network.stream].title, network.title
            raise UsageError(
                f"{names[0]} and {names[1]} are both for {network.stream}; give one a stream"
            )
        networks[network.stream] = network
    if not networks:
        raise UsageError("no checkpoint; name an RGB one, a flow one or both")
    return dict(sorted(networks.items(), reverse=True))  # rgb, flow


def common_preset(networks: Mapping[Stream, Network], shards: str | None) -> Preset:
    """The preprocessing: the shards' own, or that of video files for these networks.

    Args:
        networks: at least one.
        shards: preset of the shards that they see; None for other videos.

    Raises:
        CheckpointError: a network was made for pictures of another size.
    """
    first = find_preset(next(iter(networks.values())).model.preset)
    expected = find_preset(shards) if shards else first.of_videos
    for network in networks.values():
        if not find_preset(network.model.preset).fits(expected):
            raise CheckpointError(
                f"{network.title} was made for preset {network.model.preset}, and "
                f"{'the shards' if shards else 'the other checkpoint'} for {expected.name}"
            )
    return expected


def open_network(
    checkpoint: files.Location,
    *,
    runtime: str | None = None,
    device: str = "auto",
    progress: bool = False,
) -> "I3D | ExportedNetwork":
    """A network by its name or file, on the runtime asked for.

    Args:
        checkpoint: as :func:`i3d.load` takes it, or an ``.onnx`` file of ``i3d export``; path or
            URL.
        runtime: ``"torch"``, ``"onnx"`` or ``"openvino"``; None is ONNX Runtime for an ``.onnx``
            file and PyTorch for all else.
        device: see `choose_device`; runtimes other than PyTorch run on CPUs.
        progress: draw a progress bar while downloading.

    Raises:
        UsageError: the runtime is not installed, or does not fit the file or device.
        CheckpointError: the file is damaged, or not one of ``i3d export``.
    """
    name = os.fspath(checkpoint)
    if runtime is not None and runtime not in get_args(Runtime):
        raise UsageError(f"runtime {runtime!r}: it must be torch, onnx or openvino")
    if name.endswith(".pt2"):
        raise UsageError(
            f"{name}: a .pt2 file can run any code when it is loaded, so i3d never does; "
            "use the checkpoint it was made from, or an .onnx file"
        )
    is_onnx = name.endswith(".onnx")
    if runtime == "torch" and is_onnx:
        raise UsageError(f"{name}: PyTorch does not run .onnx files; use --runtime onnx")
    if runtime in (None, "torch") and not is_onnx:
        reuse_freed_memory()
        return load(checkpoint, device=choose_device(device), progress=progress)
    if not is_onnx:
        raise UsageError(
            f"{name}: --runtime {runtime} runs .onnx files; make one with "
            f"i3d export {name} OUT.onnx"
        )
    if device.startswith("cuda"):
        raise UsageError(
            f"device {device!r}: .onnx files run on the CPU here; use --device cpu, or the "
            "checkpoint itself for CUDA"
        )
    return ExportedNetwork(checkpoint, runtime="openvino" if runtime == "openvino" else "onnx")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a tensor did not fit, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # all that PyTorch says of a CPU's memory
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


# --- batches --------------------------------------------------------------------------------------


class Batcher:
    """Clips collect until they are a batch; their rows come back with the clips' owners.

    Args:
        compute: clips (B, C, T, H, W) on the device -> rows (B, ...); on CUDA it only starts them.
        options: how many clips at a time.
        device: ``cpu`` or ``cuda:N``, where the clips are.
        frames: length of a clip.

    Attributes:
        batch_size: what it is now: halved when a batch does not fit into the memory.
    """

    def __init__(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        options: ComputeOptions,
        *,
        device: str,
        frames: int,
    ) -> None:
        self._compute, self._device, self._frames = compute, device, frames
        default = max(1, GPU_FRAMES // frames) if device.startswith("cuda") else 1
        self.batch_size = options.batch_size or default
        self._clips: list[torch.Tensor] = []
        self._owners: list[Any] = []
        self._running: tuple[list[Any], torch.Tensor] | None = None

    def add(self, clip: torch.Tensor, owner: Any) -> list[tuple[list[Any], np.ndarray]]:
        """Take a clip (C, T, H, W): the batches that are done, owners and rows float32 (B, ...)."""
        self._clips.append(clip)
        self._owners.append(owner)
        return self._launch() if len(self._clips) >= self.batch_size else []

    def flush(self) -> list[tuple[list[Any], np.ndarray]]:
        """Start what is left without waiting for it, so that no batch goes on after this point."""
        return self._launch()

    def finish(self) -> list[tuple[list[Any], np.ndarray]]:
        """Run what is left: the batches that were not handed over yet."""
        return [*self._launch(), *self._collect()]

    def _launch(self) -> list[tuple[list[Any], np.ndarray]]:
        """Start batches; only then wait for the one before, so that the device never idles."""
        done = []
        while self._clips:
            count = min(self.batch_size, len(self._clips))
            try:
                rows = self._compute(torch.stack(self._clips[:count]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1:
                    remedy = "" if self._device == "cpu" else ", or --device cpu"
                    raise I3DError(
                        f"one clip of {self._frames} frames does not fit into the memory of "
                        f"{self._device}; use fewer frames{remedy}"
                    ) from None
                self.batch_size = count // 2
                if self._device != "cpu":
                    torch.cuda.empty_cache()
                continue
            owners = self._owners[:count]
            del self._clips[:count], self._owners[:count]
            done += self._collect()
            self._running = owners, rows
        return done if self._device.startswith("cuda") else [*done, *self._collect()]

    def _collect(self) -> list[tuple[list[Any], np.ndarray]]:
        """Wait for the running batch."""
        if self._running is None:
            return []
        owners, rows = self._running
        self._running = None
        return [(owners, rows.cpu().numpy())]
