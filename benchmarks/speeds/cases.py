"""What is compared: for each case the contestants, ours first, and what they are asked to reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor

from . import contestants
from .measure import Call


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        title: What is done.
        makers: For each contestant what makes its call; models are loaded in there.
        time_goals: For a contestant the largest share of its time that ours should take.
        memory_goals: The same for the peak memory above the weights.
        rounds: Rounds of the timing, of which the best counts; 0 where one run takes minutes: it is
            timed while memory is measured.
        memory: Whether peak memory is measured.
    """

    title: str
    makers: Mapping[str, Callable[[], Call]]
    time_goals: Mapping[str, float] = field(default_factory=dict)
    memory_goals: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 3
    memory: bool = True


def _pixels(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))


def _embeddings() -> torch.Tensor:
    return torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))


def _our_encoder(dtype: torch.dtype = torch.float32, images: int = 1) -> Call:
    model, pixels = contestants.ours(dtype=dtype), _pixels(images)
    return lambda: model.get_image_embeddings(pixels)


def _our_encoder_by_one() -> Call:
    model, pixels = contestants.ours(), _pixels(4)
    return lambda: [model.get_image_embeddings(image) for image in pixels.split(1)]


def _their_encoder(dtype: torch.dtype = torch.float32) -> Call:
    model, pixels = contestants.transformers(dtype=dtype), _pixels().to(dtype)
    return lambda: model.get_image_embeddings(pixels)


def _meta_encoder() -> Call:
    model, pixels = contestants.meta(), _pixels()
    return lambda: model.image_encoder(pixels)


def _openvino_encoder() -> Call:
    compiled, pixels = contestants.openvino_encoder(_pixels()), _pixels().numpy()
    return lambda: compiled(pixels)


def _decoder(model_of: Callable, points: int = 64) -> Call:
    model, embeddings = model_of(), _embeddings()
    clicks = torch.from_numpy(contestants.grid(points, 1024))[None]
    labels = torch.ones(clicks.shape[:3], dtype=torch.long)
    return lambda: (
        model(image_embeddings=embeddings, input_points=clicks, input_labels=labels).pred_masks
    )


def _meta_decode(sam, embeddings, points, multimask_output=True):
    tokens, dense = sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
    positions = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(embeddings, positions, tokens, dense, multimask_output)


def _meta_decoder(points: int = 64) -> Call:
    sam, embeddings = contestants.meta(), _embeddings()
    clicks = torch.from_numpy(contestants.grid(points, 1024))
    return lambda: _meta_decode(sam, embeddings, clicks)


def _our_predictor() -> Call:
    predictor = SAMPredictor(contestants.ours())
    predictor.set_image(np.zeros((1200, 1800, 3), np.uint8))
    return lambda: predictor(points=np.array([[900, 600]]))


def _meta_predictor() -> Call:
    """What Meta's `SamPredictor.predict` does, which needs torchvision to be imported."""
    sam, embeddings = contestants.meta(), _embeddings()

    def predict():
        clicks = torch.tensor([[[512.0, 341.0]]])
        low_resolution, scores = _meta_decode(sam, embeddings, clicks)
        masks = sam.postprocess_masks(low_resolution, (683, 1024), (1200, 1800)) > 0
        return masks[0].numpy(), scores[0].numpy(), low_resolution[0].numpy()

    return predict


def _thresholds(preset: str) -> dict[str, float]:
    """Three masks in ten pass, about as many as with fully trained weights.

    The random masks of random weights change with every threshold, so there all count as stable.
    """
    predictor = SAMPredictor(contestants.ours(preset))
    predictor.set_image(np.asarray(contestants.photograph(1800, 1200)))
    scores = predictor.predict_logits(contestants.grid(64, 1200))[1]
    stability = 0.5 if preset == "sam_vit_t" else 0.0
    return {
        "pred_iou_thresh": float(np.quantile(scores, 0.7)),
        "stability_score_thresh": stability,
    }


def _our_generator(preset: str, size: tuple[int, int], points_per_side: int = 32) -> Call:
    options: Any = _thresholds(preset)
    generator = SAMAutomaticMaskGenerator(
        contestants.ours(preset), points_per_side, output_mode="uncompressed_rle", **options
    )
    image = contestants.photograph(*size)
    return lambda: generator.generate(image)


def _pipeline(pipeline_of: Callable, preset: str) -> Call:
    generate, image = pipeline_of(preset), contestants.photograph(1800, 1200)
    options = {**_thresholds(preset), "points_per_crop": 32, "points_per_batch": 64}
    return lambda: generate(image, **options)


def _everything(preset: str) -> dict[str, Callable[[], Call]]:
    return {
        "our generator": partial(_our_generator, preset, (1800, 1200)),
        "stock pipeline, our classes": partial(_pipeline, contestants.stock_pipeline, preset),
        "transformers' pipeline": partial(_pipeline, contestants.their_pipeline, preset),
    }


def _our_keras_generator() -> Call:
    from . import keras_contestants

    options: Any = _thresholds("sam_vit_b")
    generator = SAMAutomaticMaskGenerator(
        keras_contestants.ours(), output_mode="uncompressed_rle", **options
    )
    image = contestants.photograph(1800, 1200)
    return lambda: generator.generate(image)


def _in_keras(maker: str, **options: Any) -> Callable[[], Call]:
    """Makes a call of `keras_contestants`: TensorFlow is imported where it is asked for."""

    def make() -> Call:
        from . import keras_contestants

        return getattr(keras_contestants, maker)(**options)

    return make


KERAS_CASES = {
    "keras-encoder": Case(
        "Encoder of sam_vit_b in TensorFlow, one image of 1024 x 1024, fp32",
        {"ours": _in_keras("our_encoder"), "keras-hub": _in_keras("keras_hub_encoder")},
        time_goals={"keras-hub": 0.9},
        memory_goals={"keras-hub": 0.5},
    ),
    "keras-decoder": Case(
        "Decoder of sam_vit_b in TensorFlow, 64 clicks, three masks each, fp32",
        {"ours": _in_keras("our_decoder"), "keras-hub": _in_keras("keras_hub_decoder")},
        time_goals={"keras-hub": 0.3},
        rounds=5,
    ),
    "keras-decoder-above": Case(
        "The same as the mask generator uses it: masks of the three best qualities in ten",
        {
            "ours": _in_keras("our_decoder", quantile=0.7),
            "keras-hub, all masks": _in_keras("keras_hub_decoder"),
        },
        time_goals={"keras-hub, all masks": 0.3},
        rounds=5,
        memory=False,
    ),
    "keras-everything": Case(
        "Everything in a photograph of 1800 x 1200, 1024 clicks, sam_vit_b, with the encoder",
        {
            "TensorFlow": _our_keras_generator,
            "PyTorch": partial(_our_generator, "sam_vit_b", (1800, 1200)),
        },
        time_goals={"PyTorch": 1.2},
        rounds=2,
        memory=False,
    ),
}

CASES = {
    "encoder": Case(
        "Encoder of sam_vit_b, one image of 1024 x 1024, fp32",
        {
            "ours": _our_encoder,
            "transformers": _their_encoder,
            "Meta": _meta_encoder,
            "OpenVINO": _openvino_encoder,
        },
        time_goals={"transformers": 0.62, "OpenVINO": 1.0},
        memory_goals={"transformers": 0.35},
    ),
    "encoder-bf16": Case(
        "The same in bf16",
        {
            "ours": partial(_our_encoder, torch.bfloat16),
            "transformers": partial(_their_encoder, torch.bfloat16),
        },
        time_goals={"transformers": 0.6},
    ),
    "encoder-batch": Case(
        "Encoder of sam_vit_b, four images, fp32",
        {"a batch of four": partial(_our_encoder, images=4), "four calls": _our_encoder_by_one},
        time_goals={"four calls": 1.0},
        rounds=2,
    ),
    "decoder": Case(
        "Decoder of sam_vit_b, 64 clicks, three masks each, fp32",
        {
            "ours": partial(_decoder, contestants.ours),
            "transformers": partial(_decoder, contestants.transformers),
            "Meta": _meta_decoder,
        },
        time_goals={"transformers": 0.25},
        memory_goals={"transformers": 0.2},
    ),
    "click": Case(
        "One click into an image of 1800 x 1200 that is encoded already, sam_vit_b, fp32",
        {"SAMPredictor": _our_predictor, "Meta's predict": _meta_predictor},
        time_goals={"Meta's predict": 0.3},
        rounds=10,
        memory=False,
    ),
    "everything": Case(
        "Everything in a photograph of 1800 x 1200, 1024 clicks, sam_vit_b, with the encoder",
        _everything("sam_vit_b"),
        time_goals={"transformers' pipeline": 0.1},
        memory_goals={"transformers' pipeline": 0.4},
        rounds=0,
    ),
    "everything-small": Case(
        "The same with the model in the package, sam_vit_t",
        _everything("sam_vit_t"),
        time_goals={"transformers' pipeline": 0.1},
        memory_goals={"transformers' pipeline": 0.4},
        rounds=0,
    ),
    "large": Case(
        "Everything in a photograph of 4000 x 3000, 1024 clicks, sam_vit_t",
        {"our generator": partial(_our_generator, "sam_vit_t", (4000, 3000))},
        rounds=0,
    ),
    **KERAS_CASES,
}
