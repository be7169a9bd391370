"""Sizes, names and random pictures that the tests of the processors share."""

import numpy as np

INPUT_SIZE = (96, 64)
MASK_SIZE = (24, 16)
SIZES = [(50, 40), (30, 70), (120, 90)]
PROMPT_NAMES = ("input_points", "input_labels", "input_boxes", "input_masks")


def random_image(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
