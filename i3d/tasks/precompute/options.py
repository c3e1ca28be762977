"""The settings of precompute."""

from dataclasses import dataclass

from i3d.errors import UsageError
from i3d.presets import (
    CLIPS_PER_SHARD,
    KINETICS_I3D,
    RGB_QUALITY,
    Preset,
    preset_with_short_side,
)
from i3d.settings import option
from i3d.tasks.options import PrintOptions


@dataclass(frozen=True)
class Settings:
    """What changes the bytes of the shards; all of it stands in the manifest.

    Attributes:
        flow: compute TV-L1 flow.
        short_side: pixels of the shorter side.
        max_seconds: length of each video, from its start; 0 for all of it. The test protocol looks
            at 10.
        rgb_quality: JPEG quality of the frames, 1 to 100.
        clips_per_shard: videos in one shard.
        seed: start of the shuffle that mixes the classes.
    """

    flow: bool = option(True, "RGB frames alone.", flag="--no-flow")
    short_side: int = option(
        KINETICS_I3D.short_side, "Pixels of the shorter side.", heading="Shards"
    )
    max_seconds: float = option(
        KINETICS_I3D.clip_frames / KINETICS_I3D.fps,
        "Seconds of each video; 0 for all of it.",
        heading="Shards",
    )
    rgb_quality: int = option(
        RGB_QUALITY, "JPEG quality of the frames.", flag="--quality", heading="Shards"
    )
    clips_per_shard: int = option(CLIPS_PER_SHARD, "Videos in one shard.", heading="Shards")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise UsageError(f"short side {self.short_side}: it must be at least 16 pixels")
        if not 0 <= self.max_seconds < 1e9:
            raise UsageError(f"max seconds {self.max_seconds}: it must be 0 (all) or more")
        if not 1 <= self.rgb_quality <= 100:
            raise UsageError(f"quality {self.rgb_quality}: JPEG's goes from 1 to 100")

    @property
    def preset(self) -> Preset:
        """The preprocessing that these settings are."""
        return preset_with_short_side(self.short_side)


@dataclass(frozen=True)
class Work:
    """How precompute works; no byte depends on it, but for a GPU's flow.

    Attributes:
        workers: processes; None: this process's share of the cores.
        device: where flow is computed: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the CPU, so
            that the same call gives the same bits on every machine.
    """

    workers: int | None = option(None, "Processes.", default_is="the cores")
    device: str = option("cpu", "Where flow is computed.", metavar="cpu|cuda")

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers {self.workers}: there must be at least 1")


@dataclass(frozen=True)
class PrecomputeOutputs(PrintOptions):
    """What the command does and says."""

    dry_run: bool = option(False, "Print the plan and an estimate; write nothing.")
    strict: bool = option(False, "Exit with 1 if any video failed.")
