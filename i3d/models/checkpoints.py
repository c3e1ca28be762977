"""Named checkpoints, and loading and saving of networks.

The five networks that DeepMind released are one table, :data:`CHECKPOINTS`. ``load`` takes their
names; the first time it downloads the original TensorFlow files, verifies them to the last bit
and keeps them as safetensors in the user's cache folder. Everything else is a path or URL.

A checkpoint of ours is described in `i3d.models.format`.
"""

import difflib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from i3d import files
from i3d.errors import CheckpointError, UsageError
from i3d.models.foreign.readers import read_npz, read_state_dict, read_tensorflow
from i3d.models.foreign.tf_bundle import find_prefix
from i3d.models.format import BATCH_NORM_EPS, Weights, read_metadata, write_safetensors
from i3d.models.i3d import I3D
from i3d.presets import Stream
from i3d.records import plain

KINETICS_I3D_COMMIT = "0667e889a5904b4dc122e0ded4c332f49f8df42c"
KINETICS_I3D_URL = (
    f"https://github.com/google-deepmind/kinetics-i3d/raw/{KINETICS_I3D_COMMIT}/data/checkpoints"
)
INDEX_FILE = "model.ckpt.index"
DATA_FILE = "model.ckpt.data-00000-of-00001"

README_PROTOCOL = (
    "Kinetics test set, 10 s at 25 fps, 224 centre crop; README of deepmind/kinetics-i3d"
)
KINETICS_600_PROTOCOL = "Kinetics-600, RGB; A Short Note about Kinetics-600 (arXiv 1808.01340)"


@dataclass(frozen=True)
class Checkpoint:
    """A released network.

    Attributes:
        name: what ``i3d.load`` takes.
        stream: ``"rgb"`` or ``"flow"``.
        classes: name of its class list.
        folder: where its files lie below the source's ``data/checkpoints``.
        index_sha256: SHA-256 of ``model.ckpt.index``, which holds the CRC32C of every tensor.
        data_bytes: size of ``model.ckpt.data-00000-of-00001``.
        pretraining: what the network was trained on before Kinetics.
        top1: published top-1 accuracy in percent, under ``protocol``.
        top5: published top-5 accuracy in percent; None where it was not published.
        protocol: what was measured, and who says so.
    """

    name: str
    stream: Stream
    classes: str
    folder: str
    index_sha256: str
    data_bytes: int
    pretraining: str
    top1: float
    top5: float | None
    protocol: str

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        return f"deepmind/kinetics-i3d@{KINETICS_I3D_COMMIT[:7]} {self.folder}"


CHECKPOINTS: dict[str, Checkpoint] = {
    c.name: c
    for c in (
        Checkpoint(
            "rgb_imagenet_kinetics400",
            stream="rgb",
            classes="kinetics400",
            folder="rgb_imagenet",
            index_sha256="f4bfd6f4af485f276c68333d3eca3697b691bb647f0167a03fe021147ca7f8eb",
            data_bytes=50_818_176,
            pretraining="ImageNet, inflated",
            top1=71.1,
            top5=89.3,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "rgb_scratch_kinetics400",
            stream="rgb",
            classes="kinetics400",
            folder="rgb_scratch",
            index_sha256="4fcd08b3e140f0267730e462295054c6a38f6cfd9991c310ee3d37bbdfd7030c",
            data_bytes=50_818_176,
            pretraining="none",
            top1=68.4,
            top5=88.0,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "flow_imagenet_kinetics400",
            stream="flow",
            classes="kinetics400",
            folder="flow_imagenet",
            index_sha256="71594ac5f63cb0eb58512a13b56097dc0368d09e5959dffcc6e7a45b19832366",
            data_bytes=50_730_368,
            pretraining="ImageNet, inflated",
            top1=63.4,
            top5=84.9,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "flow_scratch_kinetics400",
            stream="flow",
            classes="kinetics400",
            folder="flow_scratch",
            index_sha256="81fccedbe8352f8509b05ca9f2959f5aac13552dc680c808acd4f39be82620e6",
            data_bytes=50_730_368,
            pretraining="none",
            top1=61.5,
            top5=83.4,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "rgb_scratch_kinetics600",
            stream="rgb",
            classes="kinetics600",
            folder="rgb_scratch_kin600",
            index_sha256="366815af85b76e46222db13761f087584b3dc9c56abf67b822949846302e432a",
            data_bytes=103_218_112,
            pretraining="none",
            top1=71.9,
            top5=None,
            protocol=KINETICS_600_PROTOCOL,
        ),
    )
}


# --- loading and saving ---------------------------------------------------------------------------


def load(
    name_or_path: files.Location,
    *,
    trainable: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> I3D:
    """Load a network.

    Args:
        name_or_path: a name of :data:`CHECKPOINTS` (downloaded at first use), or a path or URL of
            a ``.safetensors``, ``.npz``, PyTorch or TensorFlow checkpoint, or the folder that
            ``save_pretrained`` wrote.
        trainable: False: in eval mode, BatchNorm folded into the convolutions. Its
            logits were measured to differ from the unfolded network's by at most 3.4e-4 where they
            reach ±18, and as little from TensorFlow's (2.7e-4). True: the unfolded network in
            training mode, which can be trained and saved.
        device: where to put it.
        progress: draw a progress bar while downloading.

    Raises:
        UsageError: no checkpoint has that name and no file either.
        CheckpointError: the file is damaged or of another network; the download failed.
    """
    weights = read_weights(resolve(name_or_path, progress=progress))
    model = build(weights)
    if trainable:
        model.train()
    else:
        model.fold()
    return model.to(device)


def build(weights: Weights) -> I3D:
    """The unfolded network that holds ``weights``, in eval mode."""
    with torch.device("meta"):  # no memory, no random numbers: the weights come next
        model = I3D(**plain(weights.config))
    model.load_state_dict(weights.tensors, assign=True)
    model.requires_grad_(True)
    return model.eval()


def fingerprint(weights: Weights) -> str:
    """SHA-256 of the network, the same whatever file format it was read from.

    Of the names, shapes and float32 bytes of its parameters and statistics in the order of their
    names, and of BatchNorm's epsilon: 64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"bn_eps {weights.config.bn_eps!r}\n".encode())
    for name in sorted(weights.tensors):
        if name.endswith("num_batches_tracked"):  # not in every format, and of no effect
            continue
        array = weights.tensors[name].float().contiguous().numpy()
        digest.update(f"{name} {list(array.shape)}\n".encode())
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def resolve(name_or_path: files.Location, *, progress: bool = False) -> files.Location:
    """The file behind a name (downloading it if need be), or the path itself if it exists."""
    text = os.fspath(name_or_path)
    if text in CHECKPOINTS:
        return download(text, progress=progress)
    if files.exists(text) or files.exists(f"{text}.index"):
        return name_or_path
    looks_like_a_name = "/" not in text and "." not in text
    near = difflib.get_close_matches(text, CHECKPOINTS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near and looks_like_a_name else ""
    raise UsageError(
        f"{text}: no such checkpoint or file; {hint}the names are {', '.join(CHECKPOINTS)}"
    )


def read_weights(location: files.Location, *, bn_eps: float | None = None) -> Weights:
    """Read a checkpoint of any format that we know, by its suffix.

    Args:
        location: path or URL of a ``.safetensors``, ``.npz``, ``.pt``/``.pth``/``.bin``/``.tar``
            file or a TensorFlow checkpoint (anything else).
        bn_eps: BatchNorm's epsilon of a PyTorch state dict, which does not carry it.

    Raises:
        CheckpointError: missing, damaged or of another network.
        UsageError: ``bn_eps`` for a format whose epsilon is known.
    """
    text = os.fspath(location)
    pretrained = files.join(text, "model.safetensors")
    if files.is_dir(text) and files.exists(pretrained):
        text = pretrained  # a folder that save_pretrained wrote
    if text.endswith(".safetensors"):
        return _read_safetensors(text, bn_eps)
    if text.endswith((".pt", ".pth", ".bin", ".tar", ".pyth")):
        return read_state_dict(text, bn_eps=BATCH_NORM_EPS if bn_eps is None else bn_eps)
    if bn_eps is not None:
        raise UsageError(f"{text}: --bn-eps is for PyTorch state dicts; here it is known (1e-3)")
    if text.endswith(".npz"):
        return read_npz(text)
    weights = read_tensorflow(text)
    released = _find_released(text)
    return weights if released is None else weights.with_config(source=released.source)


def _read_safetensors(name: str, bn_eps: float | None) -> Weights:
    """A file of ours, which says itself what its tensors cannot, or another program's."""
    own = read_metadata(name)
    if own is None:
        return read_state_dict(name, bn_eps=BATCH_NORM_EPS if bn_eps is None else bn_eps)
    if bn_eps is not None:
        raise UsageError(f"{name}: its own bn_eps is {own.bn_eps}; leave --bn-eps out")
    weights = read_state_dict(name, bn_eps=own.bn_eps, width=own.width)
    classes = weights.config.classes if own.classes is None else own.classes
    return weights.with_config(classes=classes, preset=own.preset, source=own.source)


def _find_released(location: str) -> Checkpoint | None:
    """Which released checkpoint a TensorFlow bundle is: the index holds every tensor's checksum."""
    with files.open_read(f"{find_prefix(location)}.index") as f:
        digest = hashlib.file_digest(cast(Any, f), "sha256").hexdigest()
    return next((c for c in CHECKPOINTS.values() if c.index_sha256 == digest), None)


def save(model: I3D, path: str | os.PathLike[str]) -> None:
    """Write an unfolded network to a ``.safetensors`` file, atomically.

    Raises:
        CheckpointError: the network is folded (load it with ``trainable=True``).
    """
    write_safetensors(model.weights(), Path(path))


# --- the cache and downloads ----------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloaded checkpoints are kept: ``I3D_CACHE``, or the user's cache folder."""
    import platformdirs

    override = os.environ.get("I3D_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("i3d")


def cached_path(name: str) -> Path:
    """Where the named checkpoint is kept, whether or not it is there yet."""
    if name not in CHECKPOINTS:
        raise UsageError(f"{name}: no such checkpoint; the names are {', '.join(CHECKPOINTS)}")
    return cache_folder() / f"{name}.safetensors"


def download(
    name: str, *, url: str | None = None, progress: bool = False, force: bool = False
) -> Path:
    """Fetch, verify and convert a named checkpoint; what is in the cache is not fetched again.

    A broken download goes on where it stopped, also in a later call. Two processes at once wait
    for each other. Nothing appears under its final name before all of it is verified.

    Args:
        name: a key of :data:`CHECKPOINTS`.
        url: folder that holds ``FOLDER/model.ckpt.index`` and the data file beside it, a URL or a
            local path; default ``I3D_CHECKPOINT_URL``, else the original repository.
        progress: draw a progress bar.
        force: fetch and convert again what is there.

    Returns:
        Path of the ``.safetensors`` file.

    Raises:
        CheckpointError: nothing could be fetched, or it is not the released file.
    """
    from filelock import FileLock

    target = cached_path(name)
    if target.exists() and not force:
        return target
    base = url or os.environ.get("I3D_CHECKPOINT_URL") or KINETICS_I3D_URL
    checkpoint = CHECKPOINTS[name]
    partial = cache_folder() / "partial" / checkpoint.folder
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_suffix(".lock")):
            if target.exists() and not force:  # another process was faster
                return target
            _fetch_and_convert(checkpoint, base, partial, target, progress=progress)
            shutil.rmtree(partial)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or target}: {error.strerror or error}; "
            "set I3D_CACHE to a folder with room that you can write"
        ) from error
    return target


def _fetch_and_convert(
    checkpoint: Checkpoint, base: str, partial: Path, target: Path, *, progress: bool
) -> None:
    from i3d.models.fetch import FetchError, fetch

    index, data = partial / INDEX_FILE, partial / DATA_FILE
    where = files.join(base, checkpoint.folder)
    try:
        if not (index.exists() and _sha256(index) == checkpoint.index_sha256):
            index.unlink(missing_ok=True)
            fetch(files.join(where, INDEX_FILE), index, max_bytes=1 << 20)
            if _sha256(index) != checkpoint.index_sha256:
                index.unlink()
                raise CheckpointError(
                    f"{files.join(where, INDEX_FILE)}: not the released file "
                    f"(its SHA-256 should be {checkpoint.index_sha256})"
                )
        fetch(
            files.join(where, DATA_FILE),
            data,
            max_bytes=checkpoint.data_bytes,
            title=checkpoint.name if progress else None,
        )
    except FetchError as error:
        raise CheckpointError(
            f"{error}. Without a network, put {INDEX_FILE} and {DATA_FILE} of {where} into "
            f"DIR/{checkpoint.folder} on this machine and set I3D_CHECKPOINT_URL=DIR"
        ) from error
    try:
        weights = read_tensorflow(partial / "model.ckpt")
    except CheckpointError:
        data.unlink(missing_ok=True)  # wrong bytes must not be resumed
        raise
    write_safetensors(weights.with_config(source=checkpoint.source), target)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
