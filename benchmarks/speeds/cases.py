"""What is compared: for each case the contestants, ours first, and what they are asked to reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from . import calls, contestants
from .measure import Call


@dataclass(frozen=True)
class Goal:
    """What a figure of a contestant is asked to be at most.

    Attributes:
        figure: "seconds", "above" (peak memory above the weights) or "peak" (the whole process).
        of: The contestant.
        at_most: A share of the figure of `against`; without that, seconds or bytes.
        against: Another contestant.
    """

    figure: str
    of: str
    at_most: float
    against: str | None = None


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        title: What is done.
        makers: For each contestant what makes its call; models are loaded in there.
        goals: What is asked.
        rounds: Rounds of the timing, of which the best counts; 0 where one run takes minutes: it is
            timed while memory is measured.
        memory: Whether peak memory is measured.
        operations: Contestants whose floating-point operations are counted: PyTorch does them.
        dtype: Of which matrix products the machine's rate is shown for comparison.
    """

    title: str
    makers: Mapping[str, Callable[[], Call]]
    goals: tuple[Goal, ...] = ()
    rounds: int = 3
    memory: bool = True
    operations: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32


KERAS_CASES = {
    "keras-encoder": Case(
        "Encoder of sam_vit_b in TensorFlow, one image of 1024 x 1024, fp32",
        {
            "ours": calls.in_keras("our_encoder"),
            "keras-hub, predict": calls.in_keras("keras_hub_predict"),
            "keras-hub, in a tf.function": calls.in_keras("keras_hub_graph"),
        },
        goals=(
            Goal("seconds", "ours", 0.9, "keras-hub, predict"),
            Goal("seconds", "ours", 0.9, "keras-hub, in a tf.function"),
            Goal("above", "ours", 0.5, "keras-hub, predict"),
            Goal("above", "ours", 0.5, "keras-hub, in a tf.function"),
        ),
        rounds=5,
    ),
    "keras-decoder": Case(
        "Decoder of sam_vit_b in TensorFlow, 64 clicks, three masks each, fp32",
        {
            "ours": calls.in_keras("our_decoder"),
            "keras-hub": calls.in_keras("keras_hub_decoder"),
        },
        goals=(Goal("seconds", "ours", 0.3, "keras-hub"),),
        rounds=5,
    ),
    "keras-everything": Case(
        "Everything in a photograph of 1800 x 1200, 1024 clicks, sam_vit_b, with the encoder",
        {
            "TensorFlow": calls.our_keras_generator,
            "PyTorch": partial(calls.our_generator, "sam_vit_b", (1800, 1200)),
        },
        goals=(Goal("seconds", "TensorFlow", 1.2, "PyTorch"),),
        rounds=2,
        memory=False,
    ),
}

_EVERYTHING_GOALS = (
    Goal("seconds", "our generator", 0.1, "transformers' pipeline"),
    Goal("above", "our generator", 0.4, "transformers' pipeline"),
    Goal("seconds", "stock pipeline, our classes", 0.15, "transformers' pipeline"),
)

CASES = {
    "encoder": Case(
        "Encoder of sam_vit_b, one image of 1024 x 1024, fp32",
        {
            "ours": calls.our_encoder,
            "transformers": calls.their_encoder,
            "Meta": calls.meta_encoder,
            "OpenVINO": calls.openvino_encoder,
            "ONNX Runtime, our export": calls.onnxruntime_encoder,
        },
        goals=(
            Goal("seconds", "ours", 0.62, "transformers"),
            Goal("above", "ours", 0.35, "transformers"),
            Goal("seconds", "ours", 1.0, "OpenVINO"),
        ),
        operations=("ours", "transformers", "Meta"),
    ),
    "encoder-bf16": Case(
        "The same in bf16",
        {
            "ours": partial(calls.our_encoder, torch.bfloat16),
            "transformers": partial(calls.their_encoder, torch.bfloat16),
            "OpenVINO": partial(calls.openvino_encoder, "bf16"),
        },
        goals=(Goal("seconds", "ours", 0.6, "transformers"),),
        operations=("ours", "transformers"),
        dtype=torch.bfloat16,
    ),
    "encoder-batch": Case(
        "Encoder of sam_vit_b, four images, fp32",
        {
            "a batch of four": partial(calls.our_encoder, count=4),
            "four calls": calls.our_encoder_by_one,
        },
        goals=(Goal("seconds", "a batch of four", 1.0, "four calls"),),
        rounds=2,
        operations=("a batch of four", "four calls"),
    ),
    "decoder": Case(
        "Decoder of sam_vit_b, 64 clicks, three masks each, fp32",
        {
            "ours": partial(calls.decoder, contestants.ours),
            "transformers": partial(calls.decoder, contestants.transformers),
            "Meta": calls.meta_decoder,
        },
        goals=(
            Goal("seconds", "ours", 0.25, "transformers"),
            Goal("above", "ours", 0.2, "transformers"),
        ),
        operations=("ours", "transformers", "Meta"),
    ),
    "click": Case(
        "One click into an image of 1800 x 1200 that is encoded already, sam_vit_b, fp32",
        {"SAMPredictor": calls.our_predictor, "Meta's predict": calls.meta_predictor},
        goals=(Goal("seconds", "SAMPredictor", 0.3, "Meta's predict"),),
        rounds=10,
        memory=False,
    ),
    "everything": Case(
        "Everything in a photograph of 1800 x 1200, 1024 clicks, sam_vit_b, with the encoder",
        calls.everything("sam_vit_b"),
        goals=_EVERYTHING_GOALS,
        rounds=0,
    ),
    "everything-small": Case(
        "The same with the model in the package, sam_vit_t",
        calls.everything("sam_vit_t"),
        goals=_EVERYTHING_GOALS,
        rounds=0,
    ),
    "large": Case(
        "Everything in a photograph of 4000 x 3000, 1024 clicks, sam_vit_t",
        {"our generator": partial(calls.our_generator, "sam_vit_t", (4000, 3000))},
        goals=(Goal("peak", "our generator", 1.6e9),),
        rounds=0,
    ),
    **KERAS_CASES,
}
