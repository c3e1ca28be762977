"""Makes resize_bilinear.npz: TensorFlow's bilinear resize on both of its grids.

    python tests/reference/resize_bilinear.py       (TensorFlow 2.21.0, NumPy 2.4, CPU)

``tf.compat.v1.image.resize_bilinear`` is this operation with ``half_pixel_centers=False``. Of every
result each seventh row and fifth column are kept. The first input is stored, the others are
``pattern``, for larger pictures than belong into a repository.
"""

from pathlib import Path

import numpy as np

OUT = 224
SHAPES = ((37, 53), (64, 64), (240, 320), (256, 340), (224, 224), (720, 406))


def pattern(height, width):
    """uint8 (1, height, width, 3) without symmetries."""
    y, x, c = np.indices((height, width, 3))
    return ((7 * y + 13 * x + 29 * c + x * y) % 256).astype(np.uint8)[None]


if __name__ == "__main__":
    import tensorflow as tf

    noise = np.random.default_rng(0).integers(0, 256, (1, *SHAPES[0], 3), dtype=np.uint8)
    arrays = {"noise": noise}
    for shape in SHAPES:
        frames = noise if shape == SHAPES[0] else pattern(*shape)
        for half_pixel in (False, True):
            resized = tf.raw_ops.ResizeBilinear(
                images=frames,
                size=[OUT, OUT],
                align_corners=False,
                half_pixel_centers=half_pixel,
            ).numpy()
            name = f"{shape[0]}x{shape[1]}_{'half_pixel' if half_pixel else 'tf1'}"
            arrays[name] = resized[:, ::7, ::5]
    np.savez_compressed(Path(__file__).with_name("resize_bilinear.npz"), **arrays)
