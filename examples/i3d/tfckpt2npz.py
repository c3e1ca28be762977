"""Convert a released TensorFlow checkpoint to the ``.npz`` that the Chainer program loads.

python3 examples/i3d/tfckpt2npz.py path/to/rgb_imagenet/model.ckpt rgb_imagenet.npz
"""

import sys

from i3d.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
