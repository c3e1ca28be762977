"""Fréchet Video Distance by name: every choice that moves the number, and who made it.

What was read (facts, not code):

* ``google-2018``: google-research/google-research, ``frechet_video_distance.py`` (0090728), and
  TensorFlow GAN's ``classifier_metrics.py`` that it calls: float64, covariances divided by N - 1.
  It takes any number of frames and videos (its example: 15 and 16), so 16 frames are our default.
  Its network is TF-Hub's ``deepmind/i3d-kinetics-400/1``.
* ``stylegan-v``: universome/stylegan-v, ``src/metrics/{frechet_video_distance,metric_main,
  metric_utils}.py`` and ``src/training/dataset.py`` (1f630af). Its TorchScript network resizes and
  scales by itself; the authors measured it to be TF-Hub's up to rounding
  (universome/fvd-comparison, 1c54d8d). It cuts real clips at a random frame without a seed, which
  no one can repeat: ours begin at the first frame, as its generated ones do.
* ``videogpt``: wilson1yan/VideoGPT, ``videogpt/fvd/{fvd,pytorch_i3d}.py``, ``videogpt/data.py`` and
  ``scripts/compute_fvd.py`` (3eee7ec). At that commit the network sees x/255 - 0.5; the later code,
  which its copies carry (JunyaoHu/common_metrics_on_video_quality, 7098471), doubles it to
  [-1, 1], as here. It averages four runs with other random videos; one run is one number here.
  Its file ``i3d_pretrained_400.pt`` could not be looked into; were its arrays others than TF-Hub's,
  a result with it would say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from i3d.errors import UsageError
from i3d.models.format import BATCH_NORM_EPS
from i3d.presets import MIN_FRAMES
from i3d.tasks.fvd.options import DEFAULT_CHECKPOINT, Divisor, Endpoint, Fit, Resize
from i3d.tasks.options import check_choice

SCALE = "2x/255-1"  # of all three: pixels 0..255 -> [-1, 1]
MAX_FRAMES = 4096
MAX_SIZE = 1024


@dataclass(frozen=True)
class Protocol:
    """How videos become features, and features a number.

    Attributes:
        name: key of `PROTOCOLS`.
        source: repository and commit that it was read from.
        weights: name of the released network that it uses; arrays are known by their hash.
        bn_eps: BatchNorm's epsilon, applied to whatever weights are given.
        endpoint: ``logits`` (averaged over time, before softmax), or ``features``, what the
            classifier is fed (1024, averaged over time).
        size: pixels a side of the network's input.
        resize: bilinear without antialiasing; source of output pixel i at ``i * in / out`` (TF1's
            ``resize_bilinear``), or at ``(i + 0.5) * in / out - 0.5``.
        fit: ``squash`` to a square, or the short side to ``size`` and ``crop`` the centre.
        frames: length of each clip, from the video's first.
        stride: every so many frames of the video.
        divisor: the covariance's: ``n-1`` or ``n``.
        videos: number of each set, from the first; None: all.

    Raises:
        UsageError: a value without meaning.
    """

    name: str
    source: str
    weights: str = DEFAULT_CHECKPOINT
    bn_eps: float = BATCH_NORM_EPS
    endpoint: Endpoint = "logits"
    size: int = 224
    resize: Resize = "half-pixel"
    fit: Fit = "squash"
    frames: int = 16
    stride: int = 1
    divisor: Divisor = "n-1"
    videos: int | None = None

    def __post_init__(self) -> None:
        check_choice("endpoint", self.endpoint, get_args(Endpoint))
        check_choice("resize", self.resize, get_args(Resize))
        check_choice("fit", self.fit, get_args(Fit))
        check_choice("divisor", self.divisor, get_args(Divisor))
        if not 0 < self.bn_eps < 1:
            raise UsageError(f"bn_eps {self.bn_eps}: it must lie between 0 and 1, as 1e-3 does")
        if not MIN_FRAMES <= self.frames <= MAX_FRAMES:
            raise UsageError(
                f"frames {self.frames}: the network needs at least {MIN_FRAMES}, and at most "
                f"{MAX_FRAMES} are taken"
            )
        if not 1 <= self.stride <= MAX_FRAMES:
            raise UsageError(f"stride {self.stride}: it must be 1 to {MAX_FRAMES}")
        if not 32 <= self.size <= MAX_SIZE:
            raise UsageError(f"size {self.size}: it must be 32 to {MAX_SIZE} pixels")
        if self.videos is not None and self.videos < 2:
            raise UsageError(f"videos {self.videos}: a covariance needs at least 2")

    @property
    def unbiased(self) -> bool:
        """Whether covariances are divided by N - 1."""
        return self.divisor == "n-1"

    @property
    def frames_needed(self) -> int:
        """The shortest video that gives a clip."""
        return (self.frames - 1) * self.stride + 1

    @property
    def settings(self) -> dict[str, Any]:
        """What moves a number, by the names that lines and files use; without name and number."""
        apart = ("name", "source", "weights", "videos")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}

    @property
    def changes(self) -> dict[str, Any]:
        """Settings that are not those of the named protocol."""
        named = find_protocol(self.name)
        return {key: value for key, value in self.settings.items() if value != named.settings[key]}


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "google-2018",
            source="google-research/google-research@0090728 frechet_video_distance",
            resize="tf1",
        ),
        Protocol(
            "stylegan-v",
            source="universome/stylegan-v@1f630af src/metrics",
            divisor="n",
            videos=2048,
        ),
        Protocol(
            "videogpt",
            source="wilson1yan/VideoGPT@3eee7ec videogpt/fvd",
            bn_eps=1e-5,
            fit="crop",
            videos=256,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"protocol {name!r}: there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def change_protocol(protocol: str | Protocol, changes: Mapping[str, Any]) -> Protocol:
    """A protocol with some settings replaced; it keeps its name, and `Protocol.changes` tells.

    Raises:
        UsageError: no such protocol, or a value without meaning.
    """
    base = find_protocol(protocol) if isinstance(protocol, str) else protocol
    find_protocol(base.name)
    return replace(base, **changes)
