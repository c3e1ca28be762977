"""I3D: Inception-v1 with every filter inflated into time, as the paper's table.

The network of "Quo Vadis, Action Recognition?" (Carreira and Zisserman, arXiv 1705.07750, figure 3)
with the numerics of its TensorFlow release (deepmind/kinetics-i3d): SAME padding computed from the
actual size, BatchNorm with eps 1e-3 and without scale, and the released model's pooling head.

    clip (B, 3 or 2, T, H, W) in [-1, 1]
      -> Conv3d_1a_7x7 ... Mixed_5c       (B, 1024, ceil(T/8), ceil(H/32), ceil(W/32))
      -> average over space and over neighbouring pairs of time steps
                                          (B, 1024, ceil(T/8) - 1)    = features
      -> 1x1x1 convolution, mean over time (B, num_classes)           = logits
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from i3d.classes import class_list, known_name
from i3d.errors import CheckpointError, I3DError
from i3d.models.folded import FoldedUnit, NeighbourMax, is_plain_inference
from i3d.models.format import (
    BATCH_NORM_EPS,
    NetworkConfig,
    Weights,
    read_parameters,
    write_safetensors,
)
from i3d.models.padding import pad_same, same_pads
from i3d.presets import KINETICS_I3D, MIN_FRAMES, STREAM_CHANNELS, Stream

BATCH_NORM_DECAY = 0.999  # kinetics-i3d's snt.BatchNorm

# A long clip is looked at in windows. Of a step of Mixed_5c the table sees 47 frames before and 54
# after its own first one; rounded to whole steps that is what a window needs beyond its own frames.
WINDOW_FRAMES = 512  # 2 GB of activations at 224 x 224
HALO_FRAMES = 48
STEP_FRAMES = 8


@dataclass(frozen=True)
class Conv:
    """A row of the table: convolution, BatchNorm, ReLU."""

    out_channels: int
    kernel: int
    stride: int = 1


@dataclass(frozen=True)
class Pool:
    """A row of the table: max pooling; sizes are (time, height, width)."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]


@dataclass(frozen=True)
class Mixed:
    """A row of the table: an Inception block of four branches, concatenated in this order.

    Attributes:
        branch_0: channels of the 1x1x1 convolution.
        branch_1: channels of a 1x1x1 and the 3x3x3 convolution after it.
        branch_2: channels of another such pair (Inception-v1's 5x5 became 3x3x3 here).
        branch_3: channels of the 1x1x1 convolution after a 3x3x3 max pooling.
    """

    branch_0: int
    branch_1: tuple[int, int]
    branch_2: tuple[int, int]
    branch_3: int


# The paper's table at width 1.0. The names are the endpoints that kinetics-i3d made public.
TABLE: tuple[tuple[str, Conv | Pool | Mixed], ...] = (
    ("Conv3d_1a_7x7", Conv(64, kernel=7, stride=2)),
    ("MaxPool3d_2a_3x3", Pool((1, 3, 3), stride=(1, 2, 2))),
    ("Conv3d_2b_1x1", Conv(64, kernel=1)),
    ("Conv3d_2c_3x3", Conv(192, kernel=3)),
    ("MaxPool3d_3a_3x3", Pool((1, 3, 3), stride=(1, 2, 2))),
    ("Mixed_3b", Mixed(64, (96, 128), (16, 32), 32)),
    ("Mixed_3c", Mixed(128, (128, 192), (32, 96), 64)),
    ("MaxPool3d_4a_3x3", Pool((3, 3, 3), stride=(2, 2, 2))),
    ("Mixed_4b", Mixed(192, (96, 208), (16, 48), 64)),
    ("Mixed_4c", Mixed(160, (112, 224), (24, 64), 64)),
    ("Mixed_4d", Mixed(128, (128, 256), (24, 64), 64)),
    ("Mixed_4e", Mixed(112, (144, 288), (32, 64), 64)),
    ("Mixed_4f", Mixed(256, (160, 320), (32, 128), 128)),
    ("MaxPool3d_5a_2x2", Pool((2, 2, 2), stride=(2, 2, 2))),
    ("Mixed_5b", Mixed(256, (160, 320), (32, 128), 128)),
    ("Mixed_5c", Mixed(384, (192, 384), (48, 128), 128)),
)
ENDPOINTS: tuple[str, ...] = (*(name for name, _ in TABLE), "Logits", "Predictions")


class BatchNorm(nn.BatchNorm3d):
    """BatchNorm over (B, T, H, W) with an offset but no scale, as ``snt.BatchNorm`` makes it."""

    def __init__(self, channels: int, eps: float = BATCH_NORM_EPS) -> None:
        super().__init__(channels, eps=eps, momentum=1 - BATCH_NORM_DECAY)
        self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        """Moments of a standard normal, offset 0."""
        self.reset_running_stats()
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), normalised by the batch's statistics in training, else the moving ones.

        A scale of ones takes the missing one's place, for the same bits: without any, the CUDA
        kernel for channels last returns a gradient of the offset that has no elements.
        """
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        mean, variance, ones = self.running_mean, self.running_var, torch.ones_like(self.bias)
        assert self.momentum is not None
        return F.batch_norm(
            x, mean, variance, ones, self.bias, self.training, self.momentum, self.eps
        )


class Unit3D(nn.Module):
    """Convolution with SAME padding, BatchNorm, ReLU: (B, in, T, H, W) -> (B, out, T', H', W')."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, bn_eps: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn = BatchNorm(out_channels, eps=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve at the padding that ``x``'s size asks for, normalise, clamp."""
        x, padding = pad_same(x, self.conv.kernel_size, self.conv.stride)
        x = F.conv3d(x, self.conv.weight, None, self.conv.stride, padding)
        return F.relu(self.bn(x), inplace=not torch.is_grad_enabled())

    def fold(self) -> FoldedUnit:
        """The inference form, which takes over this one's convolution."""
        return FoldedUnit(self.conv, self.bn)


class MaxPool(nn.Module):
    """Max pooling with SAME padding.

    Padding by -inf (torch) equals padding by 0 (TensorFlow's graph) since inputs follow a ReLU.
    The extra row at the end of SAME padding is what ``ceil_mode`` adds, so nothing is copied.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, ceil(T/st), ceil(H/sh), ceil(W/sw))."""
        front = [pad for pad, _ in same_pads(x.shape[2:], self.kernel, self.stride)]
        return F.max_pool3d(x, self.kernel, self.stride, front, ceil_mode=True)

    def fold(self) -> nn.Module:
        """The inference form: a faster one for the pooling inside of blocks."""
        is_neighbours = (self.kernel, self.stride) == (NeighbourMax.kernel, NeighbourMax.stride)
        return NeighbourMax() if is_neighbours else self


class MixedBlock(nn.Module):
    """An Inception block; see :class:`Mixed` for its branches."""

    def __init__(self, in_channels: int, row: Mixed, *, bn_eps: float) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int) -> Unit3D:
            return Unit3D(inputs, outputs, kernel, bn_eps=bn_eps)

        def pair(channels: tuple[int, int]) -> nn.Sequential:
            inner, outputs = channels
            return _sequence(
                Conv3d_0a_1x1=unit(in_channels, inner, 1), Conv3d_0b_3x3=unit(inner, outputs, 3)
            )

        self.Branch_0 = _sequence(Conv3d_0a_1x1=unit(in_channels, row.branch_0, 1))
        self.Branch_1 = pair(row.branch_1)
        self.Branch_2 = pair(row.branch_2)
        self.Branch_3 = _sequence(
            MaxPool3d_0a_3x3=MaxPool((3, 3, 3), (1, 1, 1)),
            Conv3d_0b_1x1=unit(in_channels, row.branch_3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T, H, W) -> (B, sum of the branches, T, H, W)."""
        return torch.cat(
            [self.Branch_0(x), self.Branch_1(x), self.Branch_2(x), self.Branch_3(x)], 1
        )


def _sequence(**modules: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence


class Classifier(nn.Module):
    """The original's ``Logits``: a 1x1x1 convolution with bias, then the mean over time."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.Conv3d_0c_1x1 = nn.Conv3d(in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T') -> (B, num_classes)."""
        x = features[..., None, None]  # (B, C, T') -> (B, C, T', 1, 1)
        return self.Conv3d_0c_1x1(x).mean((2, 3, 4))


class I3D(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="i3d",
    pipeline_tag="video-classification",
    license="apache-2.0",
    tags=["i3d", "action-recognition", "kinetics"],
):
    """Inflated 3D ConvNet for one stream.

    Args:
        stream: ``"rgb"`` (3 channels) or ``"flow"`` (2 channels: x, y).
        num_classes: outputs of the classifier; may be left out where ``classes`` says it.
        classes: names in the order of the logits: ``"kinetics400"``, ``"kinetics600"``, a sequence
            of names, or None for ``num_classes`` unnamed ones.
        width: multiplies the channels of every layer; 1.0 is the paper's network.
        dropout: probability of dropping a feature in training (the paper: 0.5).
        bn_eps: BatchNorm's epsilon; 1e-3 in the original, 1e-5 in checkpoints of some ports.
        preset: name of the preprocessing the weights expect (:mod:`i3d.presets`).
        source: where the weights came from, in words.

    Attributes:
        classes: tuple of ``num_classes`` names.

    A new network is initialised as the original's layers were (Sonnet: truncated normal of standard
    deviation 1/sqrt(fan-in), cut at two deviations; offsets 0) and is in training mode;
    ``i3d.load`` gives trained ones.
    """

    def __init__(
        self,
        stream: Stream = "rgb",
        num_classes: int | None = None,
        *,
        classes: str | Sequence[str] | None = None,
        width: float = 1.0,
        dropout: float = 0.5,
        bn_eps: float = BATCH_NORM_EPS,
        preset: str = KINETICS_I3D.name,
        source: str = "",
    ) -> None:
        super().__init__()
        names = None
        if classes is not None:
            names = class_list(classes).names if isinstance(classes, str) else tuple(classes)
        elif num_classes is None:
            raise I3DError("the number of classes is missing: pass num_classes or classes")
        # A known list travels by its name, another one in full, none as none.
        self._class_spec = None if names is None else known_name(names) or names
        self.stream: Stream = stream
        self.num_classes = len(names or ()) if num_classes is None else num_classes
        self.width = width
        self.bn_eps = bn_eps
        self.preset = preset
        self.source = source
        config = self.config  # refuses what cannot be
        self.classes = config.names if names is None else names
        self.folded = False

        def wide(channels: int) -> int:
            return max(1, round(channels * width))

        channels = STREAM_CHANNELS[stream]
        for name, row in TABLE:
            if isinstance(row, Conv):
                out = wide(row.out_channels)
                layer: nn.Module = Unit3D(channels, out, row.kernel, row.stride, bn_eps=bn_eps)
                channels = out
            elif isinstance(row, Mixed):
                row = Mixed(
                    wide(row.branch_0),
                    (wide(row.branch_1[0]), wide(row.branch_1[1])),
                    (wide(row.branch_2[0]), wide(row.branch_2[1])),
                    wide(row.branch_3),
                )
                layer = MixedBlock(channels, row, bn_eps=bn_eps)
                channels = row.branch_0 + row.branch_1[1] + row.branch_2[1] + row.branch_3
            else:
                layer = MaxPool(row.kernel, row.stride)
            self.add_module(name, layer)
        self.dropout = nn.Dropout(dropout)
        self.Logits = Classifier(channels, self.num_classes)
        self.apply(_initialise)

    @property
    def has_class_names(self) -> bool:
        """Whether ``classes`` are real names, and not those of an unnamed list."""
        return self._class_spec is not None

    @property
    def config(self) -> NetworkConfig:
        """What a checkpoint keeps of the constructor's arguments."""
        return NetworkConfig(
            stream=self.stream,
            num_classes=self.num_classes,
            classes=self._class_spec,
            width=self.width,
            bn_eps=self.bn_eps,
            preset=self.preset,
            source=self.source,
        )

    def weights(self) -> Weights:
        """The network as a checkpoint has it, on the CPU; the tensors are its own where they can.

        Raises:
            CheckpointError: it is in its inference form.
        """
        if self.folded:
            raise CheckpointError(
                "this network is in its inference form (BatchNorm folded) and cannot be saved; "
                "load it with trainable=True"
            )
        tensors = {k: t.detach().cpu().contiguous() for k, t in self.state_dict().items()}
        return Weights(self.config, tensors)

    def forward(self, clip: Tensor) -> Tensor:
        """Class scores of clips.

        Args:
            clip: float (B, 3 or 2, T, H, W) in [-1, 1], T >= 9.

        Returns:
            logits (B, num_classes), averaged over time, before softmax.

        Raises:
            I3DError: the clip has another shape or type than the network takes.
        """
        return self.Logits(self.dropout(self.features(clip)))

    def features(self, clip: Tensor) -> Tensor:
        """Features before the classifier: (B, 3 or 2, T, H, W) -> (B, 1024 x width, ceil(T/8) - 1).

        Averaged over the whole space and over neighbouring pairs of time steps. At 193 to 224
        pixels a side that is the original's 2x7x7 average pooling; at other sizes, where the
        original fails or gives a grid, it stays global over space.

        For inference a long clip is looked at in windows that overlap by what the network sees
        around a time step, so that memory does not grow with its length beyond the clip itself.
        The result is the whole's: nothing is averaged or cut at the windows' borders.
        """
        frames = clip.shape[2] if clip.ndim == 5 else 0
        whole = self.training or not is_plain_inference()
        if whole or frames <= WINDOW_FRAMES + 2 * HALO_FRAMES:
            x, _ = self._trunk(clip, TABLE[-1][0])
            return self._pool(x.mean((3, 4)))
        steps = []
        for start in range(0, frames, WINDOW_FRAMES):
            first = max(0, start - HALO_FRAMES)
            end = min(frames, start + WINDOW_FRAMES)
            # SAME padding follows the size; a size that is the whole's modulo 8 has the whole's
            # padding in front in every row.
            last = min(frames, end + HALO_FRAMES + (frames - end) % STEP_FRAMES)
            x, _ = self._trunk(clip[:, :, first:last], TABLE[-1][0])
            own = slice((start - first) // STEP_FRAMES, -((first - end) // STEP_FRAMES))
            steps.append(x[:, :, own].mean((3, 4)))
        return self._pool(torch.cat(steps, 2))

    def endpoints(self, clip: Tensor, names: Iterable[str] = ENDPOINTS) -> dict[str, Tensor]:
        """Activations by their public names, in the order asked for.

        Args:
            clip: float (B, 3 or 2, T, H, W) in [-1, 1], T >= 9.
            names: any of ``ENDPOINTS``; layers beyond the last one needed are not computed.

        Returns:
            name -> (B, C, T', H', W') for layers; ``Logits`` and ``Predictions`` (their softmax)
            are (B, num_classes), averaged over time.
        """
        names = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in names if name not in ENDPOINTS]
        if unknown:
            raise I3DError(
                f"unknown endpoint {unknown[0]!r}; the network has {', '.join(ENDPOINTS)}"
            )
        last = max((ENDPOINTS.index(name) for name in names), default=0)
        x, kept = self._trunk(clip, ENDPOINTS[min(last, len(TABLE) - 1)], keep=names)
        if last >= len(TABLE):
            kept["Logits"] = self.Logits(self.dropout(self._pool(x.mean((3, 4)))))
            kept["Predictions"] = kept["Logits"].softmax(1)
        return {name: kept[name] for name in names}

    def _trunk(
        self, clip: Tensor, last: str, keep: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the table up to the row ``last``: its output, and those of the rows to keep."""
        self._check(clip)
        kept = {}
        x = clip
        for name, _ in TABLE:
            x = self.get_submodule(name)(x)
            if name in keep:
                kept[name] = x.contiguous()
            if name == last:
                break
        return x, kept

    @staticmethod
    def _pool(x: Tensor) -> Tensor:
        # (B, C, T) -> (B, C, T - 1). The original pools windows of two time steps, so that with
        # more than two of them the inner ones count twice in the mean of the logits.
        return (x[:, :, :-1] + x[:, :, 1:]) / 2

    def _check(self, clip: Tensor) -> None:
        channels = STREAM_CHANNELS[self.stream]
        shape = tuple(clip.shape)
        if clip.ndim != 5:
            raise I3DError(
                f"clip has shape {shape}; I3D takes (batch, {channels}, frames, height, width): "
                "add a batch axis with clip[None]"
            )
        if shape[1] != channels:
            raise I3DError(
                f"clip has shape {shape} with {shape[1]} channels; the {self.stream} network takes "
                f"{channels} in the second place: (batch, {channels}, frames, height, width)"
            )
        if not clip.is_floating_point():
            raise I3DError(
                f"clip is {str(clip.dtype).removeprefix('torch.')}; I3D takes floats in [-1, 1], "
                "as i3d.rgb_clip and i3d.flow_clip make them"
            )
        if shape[2] < MIN_FRAMES:
            raise I3DError(
                f"clip has {shape[2]} frames; I3D needs at least {MIN_FRAMES} (T >= {MIN_FRAMES}): "
                "repeat frames or sample a longer window"
            )
        if shape[0] < 1 or min(shape[3:]) < 1:
            raise I3DError(f"clip has shape {shape}: nothing to look at in an empty axis")

    def fold(self) -> "I3D":
        """Fold BatchNorm into the convolutions, in place: the inference form, the same numbers.

        The network cannot be trained or saved afterwards: its statistics are gone. A process that
        runs it again and again on a CPU gains by `i3d.models.memory.reuse_freed_memory`.
        """
        for parent in list(self.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, Unit3D | MaxPool):
                    setattr(parent, name, layer.fold())
        self.folded = True
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "I3D":
        """Switch to training mode; refused for the folded form."""
        if mode and self.folded:
            raise I3DError(
                "this network is in its inference form (BatchNorm folded); "
                "load it with trainable=True to train it"
            )
        return super().train(mode)

    def _save_pretrained(self, save_directory: Path) -> None:
        # huggingface_hub's hook: write our metadata too, so that i3d.load reads the file as well.
        write_safetensors(self.weights(), save_directory / "model.safetensors")

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        # huggingface_hub's hook: its own keeps random numbers where the file lacks a tensor, and
        # looks at no value.
        model.load_state_dict(read_parameters(model_file, model.state_dict()))
        return model.to(map_location).eval()

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise CheckpointError(
            f"{model_file}: from_pretrained reads model.safetensors alone; i3d.load reads this file"
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        fan_in = module.weight[0].numel()
        deviation = fan_in**-0.5
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
