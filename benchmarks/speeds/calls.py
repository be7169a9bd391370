"""What contestants are timed at: each function loads a model, and returns a call without arguments.

Pictures are the same in all, and so are weights, clicks and thresholds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor
from segment_anything_transformers.model import mask_ops

from . import contestants
from .measure import Call


def pixels(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))


def embeddings() -> torch.Tensor:
    return torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))


def our_encoder(dtype: torch.dtype = torch.float32, count: int = 1) -> Call:
    model, images = contestants.ours(dtype=dtype), pixels(count)
    return lambda: model.get_image_embeddings(images)


def our_encoder_by_one() -> Call:
    model, images = contestants.ours(), pixels(4)
    return lambda: [model.get_image_embeddings(image) for image in images.split(1)]


def their_encoder(dtype: torch.dtype = torch.float32) -> Call:
    model, images = contestants.transformers(dtype=dtype), pixels().to(dtype)
    return lambda: model.get_image_embeddings(images)


def meta_encoder() -> Call:
    model, images = contestants.meta(), pixels()
    return lambda: model.image_encoder(images)


def openvino_encoder(precision: str = "f32") -> Call:
    images = pixels()
    compiled = contestants.openvino_encoder(images, precision)
    return lambda: compiled(images.numpy())


def onnxruntime_encoder() -> Call:
    session, images = contestants.onnxruntime_encoder(), pixels().numpy()
    return lambda: session.run(["image_embeddings"], {"pixel_values": images})


def decoder(model_of: Callable, points: int = 64) -> Call:
    model, image = model_of(), embeddings()
    clicks = torch.from_numpy(contestants.grid(points, 1024))[None]
    labels = torch.ones(clicks.shape[:3], dtype=torch.long)
    return lambda: (
        model(image_embeddings=image, input_points=clicks, input_labels=labels).pred_masks
    )


def meta_decode(sam, image, points):
    tokens, dense = sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
    positions = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(image, positions, tokens, dense, multimask_output=True)


def meta_decoder(points: int = 64) -> Call:
    sam, image = contestants.meta(), embeddings()
    clicks = torch.from_numpy(contestants.grid(points, 1024))
    return lambda: meta_decode(sam, image, clicks)


def our_predictor() -> Call:
    predictor = SAMPredictor(contestants.ours())
    predictor.set_image(np.zeros((1200, 1800, 3), np.uint8))
    return lambda: predictor(points=np.array([[900, 600]]))


def meta_predictor() -> Call:
    """What Meta's `SamPredictor.predict` does, which needs torchvision to be imported."""
    sam, image = contestants.meta(), embeddings()

    def predict():
        clicks = torch.tensor([[[512.0, 341.0]]])
        low_resolution, scores = meta_decode(sam, image, clicks)
        masks = sam.postprocess_masks(low_resolution, (683, 1024), (1200, 1800)) > 0
        return masks[0].numpy(), scores[0].numpy(), low_resolution[0].numpy()

    return predict


def thresholds(model: Any, image: Image.Image, is_trained: bool = True) -> dict[str, float]:
    """Three masks in ten pass the predicted quality, and half of those the stability.

    The random masks of random weights change with every threshold, so there all count as stable.
    """
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    logits, scores = predictor.predict_logits(mask_ops.point_grid(8)[:, None] * image.size)
    least = float(np.quantile(scores, 0.7))
    stability = np.median(mask_ops.stability_scores(logits[scores > least], 0.0, 1.0))
    return {
        "pred_iou_thresh": least,
        "stability_score_thresh": float(stability) if is_trained else 0.0,
    }


def options_for(preset: str, model: Any = None) -> dict[str, Any]:
    """Thresholds for the preset, maybe loaded already, and the photograph of all cases."""
    image = contestants.photograph(1800, 1200)
    return thresholds(model or contestants.ours(preset), image, is_trained=preset == "sam_vit_t")


def generator(preset: str, points_per_side: int = 32) -> SAMAutomaticMaskGenerator:
    model = contestants.ours(preset)
    options = options_for(preset, model)
    return SAMAutomaticMaskGenerator(
        model, points_per_side, output_mode="uncompressed_rle", **options
    )


def our_generator(preset: str, size: tuple[int, int], points_per_side: int = 32) -> Call:
    ours, image = generator(preset, points_per_side), contestants.photograph(*size)
    return lambda: ours.generate(image)


def pipeline(pipeline_of: Callable, preset: str) -> Call:
    generate, image = pipeline_of(preset), contestants.photograph(1800, 1200)
    options = {**options_for(preset), "points_per_crop": 32, "points_per_batch": 64}
    return lambda: generate(image, **options)


def everything(preset: str) -> dict[str, Callable[[], Call]]:
    return {
        "our generator": partial(our_generator, preset, (1800, 1200)),
        "stock pipeline, our classes": partial(pipeline, contestants.stock_pipeline, preset),
        "transformers' pipeline": partial(pipeline, contestants.their_pipeline, preset),
    }


def our_keras_generator() -> Call:
    from . import keras_contestants

    ours = SAMAutomaticMaskGenerator(
        keras_contestants.ours(), output_mode="uncompressed_rle", **options_for("sam_vit_b")
    )
    image = contestants.photograph(1800, 1200)
    return lambda: ours.generate(image)


def in_keras(maker: str) -> Callable[[], Call]:
    """Makes a call of `keras_contestants`: TensorFlow is imported where it is asked for."""

    def make() -> Call:
        from . import keras_contestants

        return getattr(keras_contestants, maker)()

    return make
