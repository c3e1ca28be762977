"""The settings of a Fréchet Video Distance."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from i3d.errors import UsageError
from i3d.settings import option
from i3d.tasks.options import StrictOptions

Endpoint = Literal["logits", "features"]
Resize = Literal["tf1", "half-pixel"]
Fit = Literal["squash", "crop"]
Divisor = Literal["n-1", "n"]
Filter = Literal["bilinear", "antialias", "lanczos", "area"]
Crop = Literal["short-side", "square", "squash"]
Values = Literal["float", "round", "truncate"]
Clips = Literal["first", "every", "random"]
Short = Literal["refuse", "loop", "stretch"]
ContextFrames = Literal["counted", "dropped"]
ProtocolName = Literal[
    "google-2018",
    "stylegan-v",
    "stylegan-v-128f",
    "stylegan-v-128f-subsample8f",
    "videogpt",
    "common-metrics-styleganv",
    "common-metrics-videogpt",
    "cd-fvd",
    "cd-fvd-frames",
    "prediction",
]

# TF-Hub's deepmind/i3d-kinetics-400/1 holds the released network bit for bit: the checksums of all
# 230 arrays in its variables.index are those of rgb_scratch's (tests/models/foreign).
DEFAULT_CHECKPOINT = "rgb_scratch_kinetics400"
DEFAULT_PROTOCOL = "google-2018"
HEADING = "Changes to the protocol"
BESIDE = "Other numbers"


@dataclass(frozen=True)
class Measure:
    """Whose distance, and by which network."""

    protocol: ProtocolName | None = option(
        None,
        "Whose FVD; --protocols prints them.",
        metavar="NAME",
        default_is=f"{DEFAULT_PROTOCOL}, or that of saved statistics",
    )
    checkpoint: str = option(
        DEFAULT_CHECKPOINT,
        "RGB network, the protocols' own by default.",
        metavar="NAME|PATH",
    )


@dataclass(frozen=True)
class Changes:
    """Settings of the protocol that are replaced; None leaves the protocol's."""

    resolution: int | None = option(
        None, "Resize every video to N x N first.", metavar="N", default_is="as they are"
    )
    frames: int | None = option(None, "Frames of each clip.", default_is="the protocol's")
    clips: Clips | None = option(None, "Which clips of a video.", default_is="the protocol's")
    videos: int | None = option(
        None, "Videos of each set.", default_is="the protocol's", heading=HEADING
    )
    seed: int | None = option(
        None, "Of random clips.", default_is="the protocol's", heading=HEADING
    )
    short: Short | None = option(
        None,
        "What is done with a video of too few frames.",
        default_is="the protocol's",
        heading=HEADING,
    )
    context: int | None = option(
        None, "Frames that a predicting model was given.", default_is="0", heading=HEADING
    )
    stride: int | None = option(
        None, "Take every so many frames.", default_is="the protocol's", heading=HEADING
    )
    context_frames: ContextFrames | None = option(
        None, "Whether the frames of --context are in the clips.", heading=HEADING
    )
    filter: Filter | None = option(None, "Of the resize to --resolution.", heading=HEADING)
    crop: Crop | None = option(
        None,
        "How --resolution makes a square: the short side to N and its centre; the centre square, "
        "and that to N; or squashed.",
        heading=HEADING,
    )
    values: Values | None = option(
        None, "What becomes of fractions of a level before the network's resize.", heading=HEADING
    )
    endpoint: Endpoint | None = option(
        None, "What is compared.", default_is="logits", heading=HEADING
    )
    resize: Resize | None = option(None, "Grid of the network's resize.", heading=HEADING)
    fit: Fit | None = option(None, "How a picture becomes the network's square.", heading=HEADING)
    divisor: Divisor | None = option(None, "Divisor of the covariance.", heading=HEADING)
    bn_eps: float | None = option(None, "BatchNorm's epsilon.", heading=HEADING)

    def as_dict(self) -> dict[str, Any]:
        """Setting -> value of those that were given."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Beside:
    """Other numbers of the same features."""

    kvd: bool = option(False, "The kernel distance too, which is unbiased.", heading=BESIDE)
    precision_recall: bool = option(
        False, "Precision and recall: quality and variety apart.", heading=BESIDE
    )
    interval: bool = option(False, "A 95 % bootstrap interval, of large sets too.", heading=BESIDE)
    per_class: bool = option(
        False, "The distance of every class: the first folder of a video's path.", heading=BESIDE
    )
    sweep: str | None = option(
        None,
        "The distance of shorter clips too, the first frames of each.",
        metavar="N,N,...",
        heading=BESIDE,
    )

    def __post_init__(self) -> None:
        _ = self.lengths

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of the clips of the sweep.

        Raises:
            UsageError: they are no numbers.
        """
        if self.sweep is None:
            return ()
        try:
            return tuple(sorted({int(text) for text in self.sweep.split(",")}))
        except ValueError:
            raise UsageError(
                f"sweep {self.sweep!r}: numbers of frames are needed, as in 10,12,14"
            ) from None

    @property
    def needs_rows(self) -> bool:
        """Whether the features of every video of both sets are needed."""
        return self.kvd or self.precision_recall or self.per_class


@dataclass(frozen=True)
class FvdOutputs(StrictOptions):
    """What is written and printed."""

    report: str | None = option(None, "Write a page with plots and videos.", metavar="HTML")
    plot: str | None = option(
        None, "Draw how FVD falls with the number of videos.", metavar="PNG", heading=BESIDE
    )
    save_statistics: str | None = option(
        None,
        "Write REAL's mean and covariance, to be given in its place; FAKE may be left out.",
        metavar="NPZ",
    )
    output: str | None = option(None, "Write the result for machines.", metavar="JSON")
    protocols: bool = option(False, "Print the protocols and what they do.")
    cite: bool = option(False, "Print a sentence for a paper, and BibTeX.")
    cache: bool = option(
        True,
        "Neither take nor keep features in the cache folder.",
        flag="--no-cache",
        heading="Computing",
    )
