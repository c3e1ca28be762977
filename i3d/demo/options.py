"""The settings of the demo."""

from dataclasses import dataclass

from i3d.errors import UsageError
from i3d.settings import option

SEED = 2017  # the networks were trained on videos of other seeds
PER_CLASS = 4


@dataclass(frozen=True)
class DemoOptions:
    """What is rendered."""

    seed: int = option(SEED, "Seed of the videos; another one gives others.")
    per_class: int = option(PER_CLASS, "Videos of each action.")
    workers: int | None = option(
        None, "Processes that render and precompute.", default_is="the cores"
    )
    videos_only: bool = option(False, "Only render, to OUTPUT/ACTION/*.mp4.")
    actions: tuple[str, ...] = option(
        (),
        "With --videos-only: which to render; repeat it for several.",
        flag="--action",
        metavar="NAME",
        default_is="the twelve",
    )

    def __post_init__(self) -> None:
        if self.seed < 0 or self.per_class < 1:
            raise UsageError(
                f"seed {self.seed} must be at least 0 and per-class {self.per_class} at least 1"
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers {self.workers}: there must be at least 1")
        if self.actions and not self.videos_only:
            raise UsageError("--action is for --videos-only; the demo's networks know the twelve")
