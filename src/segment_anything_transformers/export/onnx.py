"""ONNX of the PyTorch model, with the names and files that transformers.js and optimum expect.

One part for the image, which is slow, and one for prompts, which is quick; or both in one.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from ..model.configuration_segment_anything import (
    ENCODER_NORM_EPS,
    PADDING,
    SegmentAnythingModelConfig,
)
from ..model.huggingface_sam import config_to_huggingface, processor_to_huggingface
from ..model.image_processing_segment_anything import SegmentAnythingImageProcessor
from ..model.modeling_segment_anything import SegmentAnythingModel

VARIANTS = ("split", "monolith")
ONNX_FOLDER = "onnx"
LEFT_TOP, RIGHT_BOTTOM = 2, 3
"""Labels of points that are the corners of a box, as in Meta's own ONNX export."""

_PROTOBUF_LIMIT = 2**31 - 2**24
"""Bytes of weights beyond which they go to a file of their own: no ONNX file can be larger."""

_AXES = {
    "pixel_values": ("batch_size",),
    "image_embeddings": ("batch_size",),
    "image_positional_embeddings": ("batch_size",),
    "input_points": ("batch_size", "point_batch_size", "nb_points_per_image"),
    "input_labels": ("batch_size", "point_batch_size", "nb_points_per_image"),
    "input_boxes": ("batch_size", "nb_boxes_per_image"),
    "mask_input": ("batch_size", "point_batch_size"),
    "has_mask_input": ("batch_size", "point_batch_size"),
}
"""Inputs and the names of their first axes, which may have any length; the others are fixed."""


_PROMPTS = ("input_points", "input_labels", "input_boxes", "mask_input", "has_mask_input")


class _VisionEncoder(nn.Module):
    inputs = ("pixel_values",)
    outputs = ("image_embeddings", "image_positional_embeddings")

    def __init__(self, model: SegmentAnythingModel, selection: slice) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.model.get_image_embeddings(pixel_values)
        positions = self.model.prompt_encoder.pe_layer.of_grid(*embeddings.shape[2:])
        return embeddings, positions.permute(2, 0, 1).expand_as(embeddings)


class _PromptEncoderMaskDecoder(nn.Module):
    inputs = ("image_embeddings", "image_positional_embeddings", *_PROMPTS)
    outputs = ("iou_scores", "pred_masks")

    def __init__(self, model: SegmentAnythingModel, selection: slice) -> None:
        super().__init__()
        self.model = model
        self.selection = selection

    def forward(
        self,
        image_embeddings: Tensor,
        image_positional_embeddings: Tensor,  # passed on by transformers.js; `decode` has its own
        input_points: Tensor,
        input_labels: Tensor,
        input_boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        boxes = _boxes_of_corners(input_points, input_labels)
        if input_boxes is not None:
            own = _one_for_each_set(input_boxes, input_points.shape[1])
            boxes = torch.cat([own[:, :, None], boxes], dim=2)
        masks = None
        if mask_input is not None and has_mask_input is not None:
            exists = (has_mask_input > 0)[..., None, None]
            masks = torch.where(exists, mask_input, torch.nan)[:, :, None]
        labels = torch.where(input_labels >= LEFT_TOP, PADDING, input_labels)
        logits, scores = self.model.decode(
            image_embeddings, input_points, labels, boxes, masks, self.selection
        )
        return scores, logits


class _Monolith(nn.Module):
    inputs = ("pixel_values", *_PROMPTS)
    outputs = ("iou_scores", "pred_masks")

    def __init__(self, model: SegmentAnythingModel, selection: slice) -> None:
        super().__init__()
        self.encoder = _VisionEncoder(model, selection)
        self.decoder = _PromptEncoderMaskDecoder(model, selection)

    def forward(
        self,
        pixel_values: Tensor,
        input_points: Tensor,
        input_labels: Tensor,
        input_boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        prompts = input_points, input_labels, input_boxes, mask_input, has_mask_input
        return self.decoder(*self.encoder(pixel_values), *prompts)


_GRAPHS: dict[str, dict[str, Any]] = {
    "split": {
        "vision_encoder": _VisionEncoder,
        "prompt_encoder_mask_decoder": _PromptEncoderMaskDecoder,
    },
    "monolith": {"model": _Monolith},
}


def _boxes_of_corners(points: Tensor, labels: Tensor) -> Tensor:
    """Boxes (N, P, M1, 4) of the points that are left top corners, with the point after each."""
    # Not by slices, of which a graph would remember that they are not empty.
    numbers = torch.arange(1, points.shape[2] + 1, device=points.device)
    following = points[:, :, torch.where(numbers < points.shape[2], numbers, 0)]
    is_box = (labels == LEFT_TOP)[..., None]
    return torch.where(is_box, torch.cat([points, following], dim=-1), float(PADDING))


def _one_for_each_set(boxes: Tensor, sets: int) -> Tensor:
    """Boxes (N, P, 4) of boxes (N, n, 4) for the first n prompt sets; the others have none."""
    none = boxes.new_full((boxes.shape[0], 1, 4), PADDING)
    numbers = torch.arange(sets, device=boxes.device).clamp(max=boxes.shape[1])
    return torch.cat([boxes, none], dim=1)[:, numbers]


def export_onnx(
    model: SegmentAnythingModel,
    folder: str | Path,
    variant: str = "split",
    multimask_output: bool = True,
    box_input: bool = False,
    mask_input: bool = False,
    input_size: tuple[int, int] | None = None,
    image_processor: SegmentAnythingImageProcessor | None = None,
) -> None:
    """Writes a folder that ONNX Runtime and transformers.js segment with, without this package.

    `onnx/vision_encoder.onnx` takes `pixel_values` (N, C, H, W), resized, normalised and padded,
    and returns `image_embeddings` (N, D, H'', W'') and `image_positional_embeddings` of the same
    shape. `onnx/prompt_encoder_mask_decoder.onnx` takes both, `input_points` (N, P, M1, 2) float32
    and `input_labels` (N, P, M1) int64, and returns `iou_scores` (N, P, K) and `pred_masks`
    (N, P, K, H', W'), which are logits. N, P and M1 may differ from call to call; M1 is 0 where
    boxes or masks ask alone.

    Labels are 1 for foreground, 0 for background, -1 for no point and -10 for padding. A box is two
    points that follow each other, labelled 2 (left top) and 3 (right bottom), as in Meta's own
    export; a prompt set may have several, and points besides.

    Args:
        model: The model, in float32.
        folder: Where to write, must not exist yet.
        variant: "split" for the two files, "monolith" for a single `onnx/model.onnx` that takes
            `pixel_values` and the prompts.
        multimask_output: True for K = `nb_multimask_outputs` nested masks, False for one.
        box_input: True for one more input `input_boxes` (N, P, 4) float32, which every call has to
            give then. A prompt set without a box has -10 four times. Boxes alone are asked with
            points (N, P, 0, 2) and labels (N, P, 0), points alone with boxes (N, 0, 4).
        mask_input: True for two more inputs, as Meta's decoder has them, which every call has to
            give then: `mask_input` (N, P, H', W') float32, logits such as an earlier call's, and
            `has_mask_input` (N, P) float32, 1 where there is such a mask and 0 where not.
        input_size: Size (H, W) of the images, by default the configuration's.
        image_processor: What makes `pixel_values`, by default that of the configuration; written
            to `preprocessor_config.json`.

    Raises:
        FileExistsError: The folder exists.
        TypeError: The weights are not float32.
        ValueError: The variant is unknown, or the model does not take this input size.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}.")
    if model.dtype != torch.float32:
        raise TypeError(f"Only float32 weights can be exported, got {model.dtype}: model.float().")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Remove it, or choose another folder.")
    config = _config_for(model, input_size)
    example = _example(config, model.device)
    for name, is_input in _optional(box_input, mask_input).items():
        if not is_input:
            del example[name]
    selection = slice(1, None) if multimask_output else slice(0, 1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        made = Path(place) / "made"
        (made / ONNX_FOLDER).mkdir(parents=True)
        with _ready_for_export(model):
            for name, graph in _GRAPHS[variant].items():
                program = _exported(graph(model, selection), example)
                _save(program, made / ONNX_FOLDER / f"{name}.onnx", model)
        _write_configurations(config, made, image_processor, _needs_data_files(model))
        shutil.move(made, folder)


def _optional(box_input: bool, mask_input: bool) -> dict[str, bool]:
    """Which of the inputs that not every graph has this one has."""
    return {"input_boxes": box_input, "mask_input": mask_input, "has_mask_input": mask_input}


def _config_for(
    model: SegmentAnythingModel, input_size: tuple[int, int] | None
) -> SegmentAnythingModelConfig:
    """The configuration with the size that the export takes."""
    config = model.config
    if input_size is None or tuple(input_size) == config.input_size:
        return config
    if config.fixed_input_size:
        raise ValueError(
            f"This model takes images of {config.input_size} pixels, got {tuple(input_size)}. Load "
            "it with that input_size, or with fixed_input_size=False."
        )
    return type(config).from_dict(config.to_dict(), input_size=input_size)


@contextmanager
def _ready_for_export(model: SegmentAnythingModel) -> Iterator[None]:
    """Evaluation mode and plain attention: fused attention has layouts that cannot be exported."""
    was_training, attention = model.training, model.config._attn_implementation
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        model.eval()
        model.set_attn_implementation("eager")
        logger.setLevel(logging.ERROR)  # it warns that torchvision's operators are missing
        yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(attention)
        logger.setLevel(level)


def _example(config: SegmentAnythingModelConfig, device: torch.device) -> dict[str, Tensor]:
    """Inputs to trace with.

    No free axis has the length 1, which would be taken for fixed, and no two are the same tensor,
    which would be taken for a single input.
    """
    images, sets, points = 2, 3, 4
    embeddings = (images, config.embed_dim, *config.grid_size())
    example = {
        "pixel_values": torch.ones(images, config.in_channels, *config.input_size),
        "image_embeddings": torch.ones(embeddings),
        "image_positional_embeddings": torch.ones(embeddings),
        "input_points": torch.ones(images, sets, points, 2),
        "input_labels": torch.ones(images, sets, points, dtype=torch.long),
        "input_boxes": torch.ones(images, 5, 4),
        "mask_input": torch.ones(images, sets, *config.mask_size()),
        "has_mask_input": torch.ones(images, sets),
    }
    return {name: tensor.to(device) for name, tensor in example.items()}


def _exported(graph: Any, example: dict[str, Tensor]) -> torch.onnx.ONNXProgram:
    """The graph in ONNX, with axes as free as the table says."""
    inputs = [name for name in graph.inputs if name in example]
    axes = {name: Dim(name) for names in _AXES.values() for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about its insides
        program = torch.onnx.export(
            graph,
            tuple(example[name] for name in inputs),
            input_names=inputs,
            output_names=graph.outputs,
            dynamic_shapes=tuple(
                {index: axes[axis] for index, axis in enumerate(_AXES[name])} for name in inputs
            ),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # for type checkers: only the older exporter returns nothing
    return program


def _save(program: torch.onnx.ONNXProgram, path: Path, model: SegmentAnythingModel) -> None:
    """Writes one file, or two where the weights are too many for one."""
    weights = f"{path.name}_data" if _needs_data_files(model) else None
    ir.save(program.model, path, external_data=weights)


def _needs_data_files(model: SegmentAnythingModel) -> bool:
    return sum(weight.nbytes for weight in model.state_dict().values()) > _PROTOBUF_LIMIT


def _write_configurations(
    config: SegmentAnythingModelConfig,
    folder: Path,
    image_processor: SegmentAnythingImageProcessor | None,
    has_data_files: bool,
) -> None:
    """Writes `config.json` and `preprocessor_config.json` in the words of transformers' SAM."""
    processor = image_processor or SegmentAnythingImageProcessor.from_config(config)
    fields = config_to_huggingface(config, ENCODER_NORM_EPS)
    if has_data_files:
        fields["transformers.js_config"] = {"use_external_data_format": True}
    for name, content in (
        ("config.json", fields),
        ("preprocessor_config.json", processor_to_huggingface(processor.to_dict())),
    ):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
