"""Settings that several jobs share; the command line imports them, so nothing heavy does.

Each job's own settings stand in its folder, in a file of this name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from i3d.errors import UsageError
from i3d.presets import CLIPS_PER_SHARD
from i3d.settings import AUTO, option

Precision = Literal["fp32", "bf16", "fp16"]
Device = str  # auto, cpu, cuda or cuda:N


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how a network runs.

    Attributes:
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16``.
        batch_size: clips at a time, in each process; None: 1 on a CPU, whose cores one clip fills,
            and 512 frames on CUDA. Halved where they do not fit into the GPU's memory.
        workers: processes that read and decode, for each process; None: its share of the cores, at
            most two where the network needs them itself.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    precision: Precision = option("fp32", "Arithmetic of the network.", heading="Computing")
    batch_size: int | None = option(
        None, "Clips at a time.", metavar=AUTO, default_is="auto", heading="Computing"
    )
    workers: int | None = option(
        None,
        "Processes that read and decode.",
        default_is="the cores; at most 2 where the network needs them",
        heading="Computing",
    )
    device: Device = option("auto", "Where to compute.", metavar="auto|cpu|cuda")

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: it must be at least 1, or auto")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers {self.workers}: it must be 0 or more")


@dataclass(frozen=True)
class PrintOptions:
    """What a command prints."""

    as_json: bool = option(False, "Print JSON and nothing else.", flag="--json")


@dataclass(frozen=True)
class StrictOptions(PrintOptions):
    """What a command prints and when it fails."""

    strict: bool = option(False, "Exit with 1 if any video was skipped.")

    def exit_code(self, skipped: Sequence[Any]) -> int:
        """1 if videos were skipped that must not be."""
        return 1 if self.strict and skipped else 0


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is none of the choices.

    Raises:
        UsageError: names value and choices.
    """
    if value not in choices:
        known = [str(choice) for choice in choices]
        raise UsageError(f"{name} {value!r}: it must be {', '.join(known[:-1])} or {known[-1]}")


# --- the small jobs, whose own files are heavy ----------------------------------------------------


@dataclass(frozen=True)
class ConvertOptions(PrintOptions):
    """How a checkpoint is converted."""

    bn_eps: float | None = option(
        None,
        "BatchNorm's epsilon of a PyTorch state dict: 1e-3 (default), or 1e-5 in several ports.",
    )
    classes: str | None = option(
        None,
        "Class list to keep: kinetics400, kinetics600 or a file of names.",
        metavar="NAME|FILE",
    )
    format: Literal["", "safetensors", "npz"] = option(
        "", "Of OUTPUT, whatever its name.", default_is="by its suffix"
    )


@dataclass(frozen=True)
class ConvertShardsOptions(StrictOptions):
    """How the Chainer program's zips become shards."""

    classes: str | None = option(
        None,
        "Names of the labels, in their order: kinetics400, kinetics600 or a file of names.",
        metavar="LIST",
        default_is="none: they index the classes of whatever network sees them",
    )
    workers: int | None = option(None, "Processes.", default_is="the cores")
    clips_per_shard: int = option(CLIPS_PER_SHARD, "Videos in one shard.")

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers {self.workers}: there must be at least 1")


@dataclass(frozen=True)
class ExportOptions(PrintOptions):
    """How a network is exported."""

    precision: Literal["fp32", "fp16"] = option(
        "fp32", "Precision of weights and arithmetic; input and outputs are float32."
    )


@dataclass(frozen=True)
class DownloadOptions:
    """How named checkpoints are fetched."""

    url: str | None = option(None, "Folder of the checkpoints elsewhere: a URL or a local path.")
    force: bool = option(False, "Fetch again what is on disk.")


@dataclass(frozen=True)
class VerifyOptions(PrintOptions):
    """What is checked of a released network."""

    quick: bool = option(False, "Leave out what takes minutes on a CPU.")
    samples: str | None = option(
        None,
        "Folder of the original repository's v_CricketShot_g04_c01_rgb.npy and _flow.npy.",
        metavar="DIR",
    )
    device: Device = option("auto", "Where to compute.", metavar="auto|cpu|cuda")
