"""Fréchet Video Distance by name: every choice that moves the number, and who made it.

What was read (facts, not code):

* ``google-2018``: google-research/google-research, ``frechet_video_distance.py`` (0090728), and
  TensorFlow GAN's ``classifier_metrics.py`` that it calls: float64, covariances divided by N - 1.
  It takes any number of frames and videos (its example: 15 and 16), so 16 frames are our default.
  Its network is TF-Hub's ``deepmind/i3d-kinetics-400/1``. It has no first resize.
* ``stylegan-v`` (its ``fvd2048_16f``, ``fvd2048_128f`` and ``fvd2048_128f_subsample8f``):
  universome/stylegan-v, ``src/metrics/{frechet_video_distance,metric_main,metric_utils}.py``,
  ``src/training/dataset.py`` and ``src/scripts/convert_videos_to_frames.py`` (1f630af, 3fecd69).
  Its TorchScript network resizes and scales by itself; the authors measured it to be TF-Hub's up to
  rounding (universome/fvd-comparison, 1c54d8d). Data sets are made by the script: Lanczos, centre
  crop. A video shorter than frames x stride is left out. It cuts real clips at a random frame
  without a seed, which no one can repeat: ours begin at the first frame, as its generated ones do.
* ``videogpt``: wilson1yan/VideoGPT, ``videogpt/fvd/{fvd,pytorch_i3d}.py``, ``videogpt/data.py`` and
  ``scripts/compute_fvd.py`` (3eee7ec). At that commit the network sees x/255 - 0.5; the later code
  doubles it to [-1, 1], as here. It averages four runs with other random videos; one run is one
  number here. Its file ``i3d_pretrained_400.pt`` could not be looked into; were its arrays others
  than TF-Hub's, a result with it would say so.
* ``common-metrics-styleganv``, ``common-metrics-videogpt``: the two methods of
  JunyaoHu/common_metrics_on_video_quality, ``calculate_fvd.py`` and ``fvd/*/fvd.py`` (5f75173).
  ``styleganv`` is not StyleGAN-V's: it crops, and divides by N - 1. Both take floats in 0..1, which
  ``videogpt`` cuts to 8 bits, and give a number for every length from 10 frames on.
* ``cd-fvd``, ``cd-fvd-frames``: songweige/content-debiased-fvd, ``cdfvd/fvd.py``,
  ``cdfvd/utils/{data,metric}_utils.py`` and ``cdfvd/third_party/i3d`` (a1e037a), with model="i3d":
  video files, and folders of frames, which it resizes otherwise. Its network is VideoGPT's port,
  epsilon 1e-5, and its covariance is divided by N. It cuts a random clip of each video and, where
  there are fewer than 2,048 generated videos, draws the same ones again; here each is used once.
* ``prediction``: voletiv/mcvd-pytorch, ``runners/ncsn_runner.py`` and ``models/fvd/fvd.py``
  (451da2e): the frames that the model was given, then the predicted ones, both in the clip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from i3d.errors import UsageError
from i3d.models.format import BATCH_NORM_EPS
from i3d.presets import MIN_FRAMES
from i3d.tasks.fvd.options import (
    DEFAULT_CHECKPOINT,
    Clips,
    ContextFrames,
    Crop,
    Divisor,
    Endpoint,
    Filter,
    Fit,
    Resize,
    Short,
    Values,
)
from i3d.tasks.options import check_choice

SCALE = "2x/255-1"  # of all: pixels 0..255 -> [-1, 1]
MAX_FRAMES = 4096
MAX_SIZE = 1024
MAX_SEED = (1 << 63) - 1


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
        resolution: pixels a side to which every video is resized first; None: it stays as it is.
        filter: of that resize: ``bilinear`` (half-pixel grid, no antialiasing, as VideoGPT),
            ``antialias`` (the same with antialiasing, as cd-fvd; both PyTorch's), ``lanczos``
            (Pillow's, in 8 bits, as StyleGAN-V) or ``area`` (PyTorch's).
        crop: how it makes a square: ``short-side`` to the resolution, then the centre; the centre
            ``square``, then to the resolution; or ``squash``.
        values: fractions of a level, before the network's resize: ``float`` keeps them, ``round``
            and ``truncate`` give 8 bits.
        size: pixels a side of the network's input.
        resize: bilinear without antialiasing; source of output pixel i at ``i * in / out`` (TF1's
            ``resize_bilinear``), or at ``(i + 0.5) * in / out - 0.5``.
        fit: ``squash`` to a square, or the short side to ``size`` and ``crop`` the centre.
        frames: length of each clip.
        stride: every so many frames of the video.
        whole_strides: whether a video needs ``frames * stride`` frames, and not only as many as are
            looked at.
        clips: ``first`` of each video, ``every`` one without overlap, or one at ``random``.
        seed: of random clips, with the video's key.
        short: what is done with a video of too few frames: ``refuse``, ``loop`` it from its start,
            or ``stretch`` it by repeating frames evenly.
        context: number K of first frames that a predicting model was given.
        context_frames: whether they are ``counted``, or ``dropped``: then clips begin after them.
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
    resolution: int | None = None
    filter: Filter = "antialias"
    crop: Crop = "short-side"
    values: Values = "float"
    size: int = 224
    resize: Resize = "half-pixel"
    fit: Fit = "squash"
    frames: int = 16
    stride: int = 1
    whole_strides: bool = False
    clips: Clips = "first"
    seed: int = 0
    short: Short = "refuse"
    context: int = 0
    context_frames: ContextFrames = "counted"
    divisor: Divisor = "n-1"
    videos: int | None = None

    def __post_init__(self) -> None:
        check_choice("endpoint", self.endpoint, get_args(Endpoint))
        check_choice("filter", self.filter, get_args(Filter))
        check_choice("crop", self.crop, get_args(Crop))
        check_choice("values", self.values, get_args(Values))
        check_choice("clips", self.clips, get_args(Clips))
        check_choice("short", self.short, get_args(Short))
        check_choice("context_frames", self.context_frames, get_args(ContextFrames))
        check_choice("resize", self.resize, get_args(Resize))
        check_choice("fit", self.fit, get_args(Fit))
        check_choice("divisor", self.divisor, get_args(Divisor))
        for name in ("frames", "stride", "size", "seed", "context", "resolution", "videos"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise UsageError(f"{name} {value!r}: it must be a whole number")
        if not 0 < self.bn_eps < 1:
            raise UsageError(f"bn_eps {self.bn_eps}: it must lie between 0 and 1, as 1e-3 does")
        if not MIN_FRAMES <= self.frames <= MAX_FRAMES:
            raise UsageError(
                f"frames {self.frames}: the network needs at least {MIN_FRAMES}, and at most "
                f"{MAX_FRAMES} are taken"
            )
        if not 1 <= self.stride <= MAX_FRAMES:
            raise UsageError(f"stride {self.stride}: it must be 1 to {MAX_FRAMES}")
        if self.resolution is not None and not 1 <= self.resolution <= MAX_SIZE:
            raise UsageError(f"resolution {self.resolution}: it must be 1 to {MAX_SIZE} pixels")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed}: it must be 0 to {MAX_SEED}")
        if not 0 <= self.context <= MAX_FRAMES:
            raise UsageError(f"context {self.context}: it must be 0 to {MAX_FRAMES} frames")
        if self.context >= self.frames and self.context_frames == "counted":
            raise UsageError(
                f"context {self.context}: all {self.frames} frames of a clip would be given ones"
            )
        if not 32 <= self.size <= MAX_SIZE:
            raise UsageError(f"size {self.size}: it must be 32 to {MAX_SIZE} pixels")
        if self.videos is not None and self.videos < 2:
            raise UsageError(f"videos {self.videos}: a covariance needs at least 2")

    @property
    def unbiased(self) -> bool:
        """Whether covariances are divided by N - 1."""
        return self.divisor == "n-1"

    @property
    def start(self) -> int:
        """The first frame of a video that can be in a clip."""
        return self.context if self.context_frames == "dropped" else 0

    @property
    def span(self) -> int:
        """Number of a video's frames that a clip takes up."""
        if self.whole_strides:
            return self.frames * self.stride
        return (self.frames - 1) * self.stride + 1

    @property
    def frames_needed(self) -> int:
        """The shortest video that gives a clip."""
        return self.start + self.span

    @property
    def settings(self) -> dict[str, Any]:
        """What moves a number, by the names that lines and files use; without name and number.

        What has no effect is not among them: the filter without a resolution, for example.
        """
        apart = {"name", "source", "weights", "videos"}
        if self.resolution is None:
            apart |= {"filter", "crop"}
        if self.clips != "random":
            apart.add("seed")
        if not self.context:
            apart.add("context_frames")
        if self.stride == 1:
            apart.add("whole_strides")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}

    @property
    def changes(self) -> dict[str, Any]:
        """Settings that are not those of the named protocol."""
        named = find_protocol(self.name)
        return {k: value for k, value in self.settings.items() if value != getattr(named, k)}


_STYLEGAN_V = Protocol(
    "stylegan-v",
    source="universome/stylegan-v@1f630af src/metrics fvd2048_16f",
    filter="lanczos",
    values="round",
    whole_strides=True,
    divisor="n",
    videos=2048,
)
_COMMON_METRICS = Protocol(
    "common-metrics-styleganv",
    source="JunyaoHu/common_metrics_on_video_quality@5f75173 fvd/styleganv",
    fit="crop",
)
_CD_FVD = Protocol(
    "cd-fvd",
    source="songweige/content-debiased-fvd@a1e037a load_videos video_folder",
    bn_eps=1e-5,
    resolution=256,
    values="truncate",
    clips="random",
    seed=42,
    divisor="n",
    videos=2048,
)

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "google-2018",
            source="google-research/google-research@0090728 frechet_video_distance",
            resize="tf1",
        ),
        _STYLEGAN_V,
        replace(
            _STYLEGAN_V,
            name="stylegan-v-128f",
            source="universome/stylegan-v@1f630af src/metrics fvd2048_128f",
            frames=128,
        ),
        replace(
            _STYLEGAN_V,
            name="stylegan-v-128f-subsample8f",
            source="universome/stylegan-v@1f630af src/metrics fvd2048_128f_subsample8f",
            stride=8,
        ),
        Protocol(
            "videogpt",
            source="wilson1yan/VideoGPT@3eee7ec videogpt/fvd",
            bn_eps=1e-5,
            filter="bilinear",
            values="truncate",
            fit="crop",
            videos=256,
        ),
        _COMMON_METRICS,
        replace(
            _COMMON_METRICS,
            name="common-metrics-videogpt",
            source="JunyaoHu/common_metrics_on_video_quality@5f75173 fvd/videogpt",
            bn_eps=1e-5,
            values="truncate",
        ),
        _CD_FVD,
        replace(
            _CD_FVD,
            name="cd-fvd-frames",
            source="songweige/content-debiased-fvd@a1e037a load_videos image_folder",
            filter="lanczos",
            crop="square",
        ),
        replace(
            _COMMON_METRICS,
            name="prediction",
            source="voletiv/mcvd-pytorch@451da2e models/fvd",
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


_NEEDED = {  # a setting that has no effect, and what would give it one
    "filter": "a resolution",
    "crop": "a resolution",
    "seed": "random clips",
    "context_frames": "a context",
    "whole_strides": "a stride",
}


def change_protocol(protocol: str | Protocol, changes: Mapping[str, Any]) -> Protocol:
    """A protocol with some settings replaced; it keeps its name, and `Protocol.changes` tells.

    Raises:
        UsageError: no such protocol, or a value without meaning.
    """
    base = find_protocol(protocol) if isinstance(protocol, str) else protocol
    find_protocol(base.name)
    known = {f.name for f in fields(Protocol)} - {"name", "source", "weights"}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"no protocol has a setting {unknown[0]!r}: {', '.join(sorted(known))}")
    changed = replace(base, **changes)
    for setting, needed in _NEEDED.items():
        if setting in changes and setting not in changed.settings:
            raise UsageError(f"{setting} {changes[setting]}: it says nothing without {needed}")
    if changed.name == "prediction" and not changed.context:
        raise UsageError("protocol prediction: say with --context how many frames were given")
    return changed
