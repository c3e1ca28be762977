"""Inputs and weights of `make_fvd_goldens.py`, made from seeds, for it and for the tests.

Integers and NumPy's `RandomState`, whose numbers never change, so that nothing need be stored.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

SHAPES = ((37, 53), (53, 37), (48, 48), (20, 28))  # wide, tall, square; the last one is enlarged
RESOLUTION = 32  # pixels a side, of first resizes and of network inputs
FRAMES = 2  # of the clips of one shape
VIDEOS = 8  # of a set: VideoGPT's code wants both sets' together to be a multiple of 16
LENGTH = 16  # frames of a set's videos
LENGTHS = (10, 16)  # of those that common_metrics_on_video_quality scores, the ones that are kept
HEIGHT, WIDTH = 40, 52

# pytorch-i3d's units: name -> (in, out, kernel); modules below
_UNITS = {
    "Conv3d_1a_7x7": (3, 64, 7),
    "Conv3d_2b_1x1": (64, 64, 1),
    "Conv3d_2c_3x3": (64, 192, 3),
}
_MODULES = {  # name -> channels in, and out of b0, b1a, b1b, b2a, b2b, b3b
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def frames(height: int, width: int) -> np.ndarray:
    """uint8 (FRAMES, height, width, 3): noise, on which every filter and offset shows."""
    rng = np.random.RandomState(1000 * height + width)
    return rng.randint(0, 256, (FRAMES, height, width, 3)).astype(np.uint8)


def levels() -> np.ndarray:
    """uint8 (1, 16, 16, 3): all 256 of them, in every channel."""
    return np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


def videos(real: bool) -> np.ndarray:
    """uint8 (VIDEOS, LENGTH, HEIGHT, WIDTH, 3): coloured tiles that move, and noise."""
    rng = np.random.RandomState(1 if real else 2)
    made = np.empty((VIDEOS, LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    for video in made:
        tile = rng.randint(3, 14)
        tiles = rng.randint(0, 225 if real else 200, (HEIGHT // tile + 1, WIDTH // tile + 1, 3))
        picture = tiles.repeat(tile, axis=0).repeat(tile, axis=1)[:HEIGHT, :WIDTH]
        down, right = rng.randint(-2, 3, 2) if real else rng.randint(-4, 5, 2)
        for t, frame in enumerate(video):
            noise = rng.randint(0, 30, frame.shape)
            frame[:] = np.roll(picture, (down * t, right * t), axis=(0, 1)) + noise
    return made


def weights() -> dict[str, np.ndarray]:
    """Arrays by pytorch-i3d's names, of the full network for RGB and 400 classes.

    Signals keep their size to the end. Running variances go down to 0.01, and what a unit makes is
    as small as they say, so that an epsilon of 1e-3 gives other features than one of 1e-5.
    """
    units = dict(_UNITS)
    for module, (channels, (b0, b1a, b1b, b2a, b2b, b3b)) in _MODULES.items():
        units |= {
            f"{module}.b0": (channels, b0, 1),
            f"{module}.b1a": (channels, b1a, 1),
            f"{module}.b1b": (b1a, b1b, 3),
            f"{module}.b2a": (channels, b2a, 1),
            f"{module}.b2b": (b2a, b2b, 3),
            f"{module}.b3b": (channels, b3b, 1),
        }
    made: dict[str, np.ndarray] = {}
    for name, (channels, out, kernel) in units.items():
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        variance = 10 ** rng.uniform(-2, 0, out)
        spread = np.sqrt(2 * variance / (channels * kernel**3))[:, None, None, None, None]
        shape = (out, channels, kernel, kernel, kernel)
        made[f"{name}.conv3d.weight"] = rng.standard_normal(shape) * spread
        made[f"{name}.bn.weight"] = rng.uniform(0.8, 1.2, out)
        made[f"{name}.bn.bias"] = rng.uniform(-0.5, 0.1, out)
        made[f"{name}.bn.running_mean"] = rng.uniform(-0.3, 0.3, out) * np.sqrt(variance)
        made[f"{name}.bn.running_var"] = variance
    rng = np.random.RandomState(zlib.crc32(b"logits"))
    made["logits.conv3d.weight"] = rng.standard_normal((400, 1024, 1, 1, 1))
    made["logits.conv3d.bias"] = rng.standard_normal(400)
    return {name: array.astype(np.float32) for name, array in made.items()}


def save_weights(path: Path) -> None:
    """Write `weights` as the programs' own file, a state dict of `torch.save`."""
    state = {name: torch.from_numpy(array) for name, array in weights().items()}
    for name in [n for n in state if n.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, path)
