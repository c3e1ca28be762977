"""Moving patterns, and OpenCV's flow of them."""

import cv2
import numpy as np


def texture(height, width, seed=0):
    """A smooth random pattern, float32 in 0..255."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    pattern = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 10))
    return cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX)


def moved(pattern, matrix):
    """The middle of a pattern after an affine motion of its content, uint8."""
    height, width = pattern.shape
    image = cv2.warpAffine(pattern, np.float32(matrix), (width, height), flags=cv2.INTER_CUBIC)
    return np.clip(np.rint(image[16:-16, 16:-16]), 0, 255).astype(np.uint8)


def translated(pattern, dx, dy):
    return moved(pattern, [[1, 0, dx], [0, 1, dy]])


def opencv_flow(first, second):
    return cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)
