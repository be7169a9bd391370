"""Trains a small model on two virtual processors and on one, in a process of its own.

    python -m tests.model.replicas

prints, as JSON, what became of both: losses, and how far apart weights are.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from segment_anything_transformers import TFSegmentAnythingModel
from tests.fake_backend import small_config

IMAGES = 4


def data(config):
    rng = np.random.default_rng(0)
    masks = np.zeros((IMAGES, *config.input_size), np.uint8)
    masks[:, 10:50, 5:40] = 1
    inputs = {
        "images": rng.normal(size=(IMAGES, *config.input_size, 3)).astype(np.float32),
        "points": np.full((IMAGES, 1, 2), 9, np.float32),
        "labels": np.ones((IMAGES, 1), np.int32),
    }
    return inputs, masks


def main():
    """Prints the result."""
    [processor] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    config = small_config(encoder_nb_blocks=1, encoder_global_attn_indices=(), decoder_nb_blocks=1)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        two = TFSegmentAnythingModel(config)
        two.compile(keras.optimizers.SGD(1e-2), run_eagerly=True)
    one = TFSegmentAnythingModel(config)
    start = two.state_dict()
    one.load_state_dict(start)
    one.compile(keras.optimizers.SGD(1e-2), run_eagerly=True)
    losses = []
    for model in (one, two):
        history = model.fit(*data(config), batch_size=IMAGES, verbose=0).history
        losses.append([history["loss"][0], history["iou"][0]])
    weights = [model.state_dict() for model in (one, two)]

    def distance(first, second):
        return max(float(np.abs(first[name] - second[name]).max()) for name in first)

    found = {
        "replicas": strategy.num_replicas_in_sync,
        "of_one": losses[0],
        "of_two": losses[1],
        "change": distance(start, weights[0]),
        "difference": distance(*weights),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
