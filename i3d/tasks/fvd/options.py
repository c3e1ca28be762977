"""The settings of a Fréchet Video Distance."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from i3d.settings import option
from i3d.tasks.options import StrictOptions

Endpoint = Literal["logits", "features"]
Resize = Literal["tf1", "half-pixel"]
Fit = Literal["squash", "crop"]
Divisor = Literal["n-1", "n"]

# TF-Hub's deepmind/i3d-kinetics-400/1 holds the released network bit for bit: the checksums of all
# 230 arrays in its variables.index are those of rgb_scratch's (tests/models/foreign).
DEFAULT_CHECKPOINT = "rgb_scratch_kinetics400"
DEFAULT_PROTOCOL = "google-2018"
HEADING = "Changes to the protocol"


@dataclass(frozen=True)
class Measure:
    """Whose distance, and by which network."""

    protocol: Literal["google-2018", "stylegan-v", "videogpt"] | None = option(
        None, "Whose FVD.", default_is=f"{DEFAULT_PROTOCOL}, or that of saved statistics"
    )
    checkpoint: str = option(
        DEFAULT_CHECKPOINT,
        "RGB network; the default is the protocols' own, by any file.",
        metavar="NAME|PATH",
    )


@dataclass(frozen=True)
class Changes:
    """Settings of the protocol that are replaced; None leaves the protocol's."""

    frames: int | None = option(None, "Frames of each clip.", default_is="the protocol's, 16")
    videos: int | None = option(None, "Videos of each set.", default_is="the protocol's")
    stride: int | None = option(None, "Take every so many frames.", default_is="1", heading=HEADING)
    endpoint: Endpoint | None = option(
        None, "What is compared.", default_is="logits", heading=HEADING
    )
    resize: Resize | None = option(None, "Grid of the resize.", heading=HEADING)
    fit: Fit | None = option(None, "How a picture becomes a square.", heading=HEADING)
    divisor: Divisor | None = option(None, "Divisor of the covariance.", heading=HEADING)
    bn_eps: float | None = option(None, "BatchNorm's epsilon.", heading=HEADING)

    def as_dict(self) -> dict[str, Any]:
        """Setting -> value of those that were given."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class FvdOutputs(StrictOptions):
    """What else is computed, and what is written."""

    kvd: bool = option(False, "The kernel distance too, which is unbiased.")
    plot: str | None = option(None, "Draw how FVD falls with the number of videos.", metavar="PNG")
    save_statistics: str | None = option(
        None,
        "Write REAL's mean and covariance, to be given in its place; FAKE may be left out.",
        metavar="NPZ",
    )
    output: str | None = option(None, "Write the result for machines.", metavar="JSON")
