"""Shards -> batches for training: which clips a step sees, and how each of them is cut.

An epoch is a permutation of the videos. Its steps, micro-batches and processes take consecutive
parts of it, so that W processes of batch B see in a step what one process of batch W x B sees; the
rest that fills no step is left out of that epoch.

    | step 0                            | step 1                            | ... | rest |
    | micro-batch 0   | micro-batch 1   |
    | rank 0 | rank 1 | rank 0 | rank 1 |

All that is random about a clip (its place in the video, the corner of its crop, whether it is
mirrored) is drawn by (seed, epoch, video) alone: neither workers nor processes nor a resumed run
change it. The draws are raw words of PCG64, the same in every version of NumPy.
"""

from collections.abc import Generator
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from i3d import files
from i3d.classes import ClassList
from i3d.clips import loop_frames
from i3d.data.precomputed import Precomputed, open_precomputed
from i3d.data.shards import VideoInfo
from i3d.errors import DatasetError, UsageError
from i3d.parallel.ahead import read_items
from i3d.presets import Preset, Scale, Stream, find_preset

if TYPE_CHECKING:
    import torch

# What a stream of random words is for; different purposes never share one.
_ORDER, _CUT, _KEEP = range(3)


def random_words(count: int, *key: int) -> np.ndarray:
    """``count`` random words, uint64, that depend on the key alone."""
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


@dataclass(frozen=True)
class TrainingSet:
    """The videos of a folder of shards that can be trained on.

    Attributes:
        dataset: the shards.
        stream: what the network sees of them.
        preset: preprocessing.
        classes: names, in the order of the labels.
        keys: names of the videos that are used.
        labels: int64 (videos,), the class of each.
        places: int64 (videos,), each one's number in the plan, on which its draws depend.
        unlabelled: videos left out for want of a label.
        failed: videos that precompute could not read.
        without_flow: videos of a single frame, which have no flow.
    """

    dataset: Precomputed
    stream: Stream
    preset: Preset
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    places: np.ndarray
    unlabelled: int
    failed: int
    without_flow: int

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_numbers(self) -> bool:
        """Whether the labels are numbers without names; see `i3d.classes.numbered_classes`."""
        classes = self.dataset.manifest.classes
        return classes is not None and classes.is_numbered

    def __str__(self) -> str:
        reasons = {
            "without a label": self.unlabelled,
            "failed in precompute": self.failed,
            "of one frame, without flow": self.without_flow,
        }
        left_out = "".join(f", {n} {reason}" for reason, n in reasons.items() if n)
        return (
            f"{self.dataset.folder}: {len(self)} of {self.dataset.found} videos"
            f"{left_out}; {len(self.classes)} classes, {self.preset.name}"
        )


def open_labelled(
    folder: files.Location, stream: Stream, *, classes: files.Location | ClassList | None = None
) -> Precomputed:
    """Open complete shards that have labels and the stream.

    Args:
        folder: path or URL.
        stream: RGB or flow.
        classes: see `open_precomputed`.

    Raises:
        DatasetError: no shards, incomplete ones, or without labels.
        UsageError: made without flow, or classes for shards that have their own.
    """
    dataset = open_precomputed(folder, classes=classes)
    if dataset.manifest.classes is None:
        raise DatasetError(f"{folder}: its videos have no labels to learn")
    if stream not in dataset.manifest.streams:
        raise UsageError(
            f"{folder} was made without {stream}; run precompute without --no-flow, or train "
            f"--stream {dataset.manifest.streams[0]}"
        )
    return dataset


def open_training_set(
    folder: files.Location, stream: Stream, *, classes: files.Location | ClassList | None = None
) -> TrainingSet:
    """Find the videos to train on; reads all sidecars. Arguments and errors of `open_labelled`.

    Raises:
        DatasetError: there are none.
    """
    dataset = open_labelled(folder, stream, classes=classes)
    manifest = dataset.manifest
    assert manifest.classes is not None
    # Of a copy, so that what goes to the workers is smaller without the sidecars.
    pictures = copy(dataset).find_pictures(stream)
    keys, labels, places = [], [], []
    unlabelled = failed = without_flow = 0
    for place, sample in enumerate(manifest.samples()):
        if sample.key not in pictures:
            failed += 1
        elif sample.class_index is None:
            unlabelled += 1
        elif not pictures[sample.key]:
            without_flow += 1
        else:
            keys.append(sample.key)
            labels.append(sample.class_index)
            places.append(place)
    if not keys:
        raise DatasetError(f"{folder}: none of {manifest.found} videos can be trained on")
    return TrainingSet(
        dataset,
        stream,
        find_preset(manifest.preset),
        manifest.classes.names,
        tuple(keys),
        np.array(labels, np.int64),
        np.array(places, np.int64),
        unlabelled,
        failed,
        without_flow,
    )


@dataclass(frozen=True)
class Order:
    """Which videos each micro-batch of each process takes.

    Attributes:
        videos: how many there are.
        batch_size: clips of a micro-batch, in each process.
        accumulate: micro-batches of a step.
        rank: number of this process.
        processes: how many take part.
        seed: what the permutations are drawn by.

    Raises:
        UsageError: a step needs more clips than there are videos.
    """

    videos: int
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips_per_step > self.videos:
            raise UsageError(
                f"a step takes {self.clips_per_step} clips (batch {self.batch_size} x accumulate "
                f"{self.accumulate} x {self.processes} processes), and there are {self.videos} "
                "videos; use a smaller --batch-size"
            )

    @property
    def clips_per_step(self) -> int:
        """Of all processes together."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps; the rest of the videos is left out of the epoch."""
        return self.videos // self.clips_per_step

    def epoch_of(self, step: int) -> int:
        """The epoch that a step lies in; both count from 0."""
        return step // self.steps_per_epoch

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Epoch and videos, int64 (batch_size,), of this process's micro-batch.

        Args:
            number: counted from the start of training, ``step * accumulate + micro-batch``.
        """
        step, micro = divmod(number, self.accumulate)
        epoch, step = divmod(step, self.steps_per_epoch)
        first = (step * self.accumulate + micro) * self.batch_size * self.processes
        first += self.rank * self.batch_size
        return epoch, _permutation(self.videos, self.seed, epoch)[first : first + self.batch_size]


@lru_cache(maxsize=2)
def _permutation(videos: int, seed: int, epoch: int) -> np.ndarray:
    return np.argsort(random_words(videos, _ORDER, seed, epoch), kind="stable")


@dataclass(frozen=True)
class Cut:
    """Where a training clip lies in its video.

    Attributes:
        start: first frame.
        top: pixels above the crop.
        left: pixels to the left of it.
        mirrored: whether left and right are exchanged.
    """

    start: int
    top: int
    left: int
    mirrored: bool

    @classmethod
    def draw(
        cls,
        info: VideoInfo,
        stream: Stream,
        key: tuple[int, ...],
        *,
        frames: int,
        crop: int,
        flip: bool,
    ) -> "Cut":
        """Every start, corner and (with ``flip``) side is as likely as every other.

        Args:
            info: the video's.
            stream: whose pictures are counted.
            key: seed, epoch and video.
            frames: length of the clip; in a shorter video it starts at the first frame.
            crop: pixels of its side.
            flip: whether to mirror half of the clips.

        Raises:
            DatasetError: pictures smaller than the crop.
        """
        if min(info.height, info.width) < crop:
            raise DatasetError(
                f"{info.key}: frames of {info.width}x{info.height} are smaller than the crop of "
                f"{crop}x{crop}"
            )
        room = max(info.length(stream) - frames, 0)
        most = (room, info.height - crop, info.width - crop, 1)
        # 64 bits modulo a small number: no value is more likely than another by over 1e-15.
        words = random_words(len(most), _CUT, *key)
        start, top, left, side = (int(w) % (n + 1) for w, n in zip(words, most, strict=True))
        return cls(start, top, left, flip and side == 1)


def mirror(pixels: np.ndarray, stream: Stream, storage: Scale) -> np.ndarray:
    """Exchange left and right of uint8 (T, H, W, C).

    In a mirrored video things move the other way: x of the flow changes its sign, which is
    2 zero - q in what is stored: 256 - q with ours, where q is in 1..255.
    """
    pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    if stream == "flow":
        x = pixels[..., 0]
        np.subtract(np.uint8(int(2 * storage.zero) % 256), x, out=x)  # modulo 256
    return pixels


def read_clip(
    dataset: Precomputed,
    video: str,
    stream: Stream,
    key: tuple[int, ...],
    *,
    frames: int,
    preset: Preset,
    flip: bool = True,
) -> np.ndarray:
    """A random clip of a video: uint8 (frames, crop, crop, C); flow as stored.

    Only its pictures are read, and of them only the crop is kept; a short video is looped from its
    start.

    Raises:
        DatasetError: the video is damaged; says which and what to do.
    """
    stored, crop = dataset.find_sample(video, streams=(stream,)), preset.crop
    cut = Cut.draw(stored.info, stream, key, frames=frames, crop=crop, flip=flip)
    sample = stored.read(cut.start, cut.start + frames)
    box = slice(cut.top, cut.top + crop), slice(cut.left, cut.left + crop)
    pixels = sample.decode(stream, box=box)
    if cut.mirrored:
        pixels = mirror(pixels, stream, preset.flow_storage)
    return loop_frames(pixels, frames)


def _read_batch(
    number: int, *, data: TrainingSet, order: Order, frames: int, flip: bool
) -> tuple[dict[str, np.ndarray], None]:
    """Micro-batch ``number`` as a worker hands it over: ``pixels``, uint8 (B, T, h, w, C)."""
    epoch, videos = order.batch(number)
    clips = [
        read_clip(
            data.dataset,
            data.keys[video],
            data.stream,
            (order.seed, epoch, int(data.places[video])),
            frames=frames,
            preset=data.preset,
            flip=flip,
        )
        for video in videos
    ]
    return {"pixels": np.stack(clips)}, None


def load_batches(
    data: TrainingSet,
    order: Order,
    *,
    first: int,
    stop: int,
    frames: int,
    workers: int,
    flip: bool = True,
    pin: bool = False,
) -> "Generator[torch.Tensor]":
    """This process's micro-batches ``first`` to ``stop - 1``: uint8 (B, frames, crop, crop, C).

    Args:
        data: the videos.
        order: the videos of each micro-batch.
        first: number of the first one, see `Order.batch`.
        stop: number of the one before which to stop.
        frames: length of each clip.
        workers: processes that read ahead; 0 reads in this one.
        flip: mirror half of the clips.
        pin: put the pixels into page-locked memory, for CUDA.

    Raises:
        DatasetError: a video is damaged; training stops, for to leave it out would be another run.
        I3DError: what is no single video's fault, or a worker died.
    """
    read = partial(_read_batch, data=data, order=order, frames=frames, flip=flip)
    for item in read_items(read, range(first, stop), workers=workers, pin=pin):
        if item.error is not None:
            raise DatasetError(item.error)
        yield item.tensors["pixels"]


def keep_masks(
    shape: tuple[int, ...], *, drop: float, seed: int, epoch: int, places: np.ndarray
) -> "torch.Tensor":
    """Dropout's factors for a batch: 0, or 1 / (1 - drop): float32 (B, *shape) on the CPU.

    Each clip's are drawn like its cut, by (seed, epoch, video), so that dropout is the same however
    clips are shared between steps, processes and devices.

    Args:
        shape: size of one clip's features.
        drop: probability of 0.
        seed: the run's.
        epoch: its number, from 0.
        places: int64 (B,), the videos' numbers in the plan.
    """
    import torch

    count = int(np.prod(shape))
    words = [
        # half a word each is enough: probabilities in steps of 2^-32
        random_words(-(-count // 2), _KEEP, seed, epoch, int(place)).view(np.uint32)[:count]
        for place in places
    ]
    kept = np.stack(words) >= np.uint32(round(drop * 2**32))
    factors = kept.astype(np.float32) / np.float32(1 - drop)
    return torch.from_numpy(factors.reshape(len(places), *shape))
