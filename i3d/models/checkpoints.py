"""Loading and saving of networks.

``load`` takes the names of the five networks that DeepMind released (`i3d.models.released`); the
first time it fetches them (`i3d.models.download`). Everything else is a path or URL. A checkpoint
of ours is described in `i3d.models.format`.
"""

import difflib
import hashlib
import os
from pathlib import Path

import torch

from i3d import files
from i3d.errors import CheckpointError, I3DError, UsageError
from i3d.models.foreign.readers import read_npz, read_state_dict, read_tensorflow
from i3d.models.foreign.tf_bundle import find_prefix
from i3d.models.format import BATCH_NORM_EPS, Weights, read_metadata, write_safetensors
from i3d.models.i3d import I3D
from i3d.models.released import CHECKPOINTS, Checkpoint
from i3d.records import plain


def load(
    name_or_path: files.Location,
    *,
    trainable: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> I3D:
    """Load a network.

    Args:
        name_or_path: a name of `CHECKPOINTS` (downloaded at first use), or a path or URL of
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


# The network in a folder, the first that is there: save_pretrained's, i3d train's best and newest.
# Other folders are TensorFlow's.
BEST, LAST = "best.safetensors", "last.safetensors"
FOLDER_FILES = ("model.safetensors", BEST, LAST)


def resolve(name_or_path: files.Location, *, progress: bool = False) -> files.Location:
    """The file behind a name (downloading it if need be), or the path itself if it exists."""
    text = os.fspath(name_or_path)
    if text in CHECKPOINTS:
        from i3d.models.download import download  # requests: 50 ms that files do not need

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
            file, a zip of any other name (the Chainer program gave an .npz whatever name it was
            told), a folder of ``save_pretrained`` or ``i3d train`` (whose best network it is), or a
            TensorFlow checkpoint (anything else, folders too).
        bn_eps: BatchNorm's epsilon of a PyTorch state dict, which does not carry it.

    Raises:
        CheckpointError: missing, damaged or of another network.
        UsageError: ``bn_eps`` for a format whose epsilon is known.
    """
    try:
        return _read_weights(location, bn_eps)
    except MemoryError as error:
        raise CheckpointError(
            f"{os.fspath(location)}: not enough memory to read it; end other programs"
        ) from error


def _read_weights(location: files.Location, bn_eps: float | None) -> Weights:
    text = os.fspath(location)
    if files.is_dir(text):
        inside = [files.join(text, name) for name in FOLDER_FILES]
        text = next((path for path in inside if files.exists(path)), text)
    if text.endswith(".safetensors"):
        return _read_safetensors(text, bn_eps)
    if text.endswith((".pt", ".pth", ".bin", ".tar", ".pyth")):
        return read_state_dict(text, bn_eps=BATCH_NORM_EPS if bn_eps is None else bn_eps)
    if bn_eps is not None:
        raise UsageError(f"{text}: --bn-eps is for PyTorch state dicts; here it is known (1e-3)")
    if text.endswith(".npz") or _is_zip(text):
        return read_npz(text)
    weights = read_tensorflow(text)
    released = _find_released(text)
    return weights if released is None else weights.with_config(source=released.source)


def _is_zip(name: str) -> bool:
    """Whether a file begins as a zip does."""
    if not files.exists(name) or files.is_dir(name):
        return False
    return files.read_range(name, 0, 4) == b"PK\3\4"


def _read_safetensors(name: str, bn_eps: float | None) -> Weights:
    """A file of ours, which says itself what its tensors cannot, or another program's."""
    own = read_metadata(name)
    if own is None:
        return read_state_dict(name, bn_eps=BATCH_NORM_EPS if bn_eps is None else bn_eps)
    if bn_eps is not None:
        raise UsageError(f"{name}: its own bn_eps is {own.bn_eps}; leave --bn-eps out")
    try:
        weights = read_state_dict(name, bn_eps=own.bn_eps, width=own.width, origin=own.source)
        classes = weights.config.classes if own.classes is None else own.classes
        return weights.with_config(classes=classes, preset=own.preset)
    except CheckpointError:
        raise
    except I3DError as error:  # a config that no network has
        raise CheckpointError(f"{name}: its metadata: {error}; convert it again") from None


def _find_released(location: str) -> Checkpoint | None:
    """Which released checkpoint a TensorFlow bundle is: the index holds every tensor's checksum."""
    digest = files.sha256(f"{find_prefix(location)}.index")
    return next((c for c in CHECKPOINTS.values() if c.index_sha256 == digest), None)


def save(model: I3D, path: str | os.PathLike[str]) -> None:
    """Write an unfolded network to a ``.safetensors`` file, atomically.

    Raises:
        CheckpointError: the network is folded (load it with ``trainable=True``).
    """
    write_safetensors(model.weights(), Path(path))
