"""The Keras class on TensorFlow, with the weights of the PyTorch contestants, and keras-hub's SAM.

keras-hub asks for TensorFlow under the name of its build with CUDA; `make bench` therefore installs
it without what it asks for.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
import torch

from segment_anything_transformers import TFSegmentAnythingModel
from segment_anything_transformers.prediction.backends import KerasBackend

from . import contestants

tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())


def ours(preset: str = "sam_vit_b") -> TFSegmentAnythingModel:
    """Our Keras model, with the weights of `contestants.ours`."""
    theirs = contestants.ours(preset)
    model = TFSegmentAnythingModel(theirs.config)
    model.load_state_dict({name: weight.numpy() for name, weight in theirs.state_dict().items()})
    return model


def pixels() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, 1024, 1024), np.float32)


def our_encoder() -> Callable:
    backend, images = KerasBackend(ours()), pixels()
    return lambda: np.asarray(backend.encode_images(images))


def keras_hub_encoder() -> Any:
    """keras-hub's image encoder of the same dimensions, with random weights."""
    from keras_hub.models import ViTDetBackbone

    return ViTDetBackbone(
        hidden_size=768,
        num_layers=12,
        intermediate_dim=3072,
        num_heads=12,
        global_attention_layer_indices=[2, 5, 8, 11],
        patch_size=16,
        num_output_channels=256,
        window_size=14,
        image_shape=(1024, 1024, 3),
    )


def keras_hub_predict() -> Callable:
    """keras-hub's encoder as its users call it."""
    encoder, images = keras_hub_encoder(), pixels().transpose(0, 2, 3, 1)
    return lambda: encoder.predict(images, verbose=0)


def keras_hub_graph() -> Callable:
    """keras-hub's encoder in nothing but a graph."""
    graph, images = tf.function(keras_hub_encoder()), tf.constant(pixels().transpose(0, 2, 3, 1))
    return lambda: graph(images).numpy()


def embeddings() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 64, 64, 256), np.float32)


def our_decoder(points: int = 64) -> Callable:
    backend, image = KerasBackend(ours()), tf.constant(embeddings())
    clicks = contestants.grid(points, 1024)
    labels = np.ones(clicks.shape[:2], np.int64)
    return lambda: backend.decode(image, clicks, labels, None, None, True)


def keras_hub_decoder(points: int = 64) -> Callable:
    """keras-hub's mask decoder with random weights: the form of Meta's code.

    The image is repeated and projected for every prompt. It gets the tokens of clicks ready made.
    """
    from keras_hub.layers import SAMMaskDecoder

    decoder = SAMMaskDecoder(hidden_size=256, num_layers=2, intermediate_dim=2048, num_heads=8)
    decoder.build()
    rng = np.random.default_rng(2)
    shapes = ((1, 64, 64, 256), (points, 2, 256), (1, 64, 64, 256))
    inputs = [tf.constant(embeddings())]
    inputs += [tf.constant(rng.standard_normal(shape, np.float32)) for shape in shapes]
    graph = tf.function(decoder)
    return lambda: graph(*inputs)["masks"].numpy()
