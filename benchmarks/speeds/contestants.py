"""The same weights in our classes and in those of the peers, each ready to be called."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.models.sam import image_processing_pil_sam
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    export_onnx,
)
from segment_anything_transformers.model import mask_ops
from tests.parity.peers import huggingface_model, meta_model


def ours(preset: str = "sam_vit_b", dtype: torch.dtype = torch.float32) -> SegmentAnythingModel:
    """Our model: seeded random weights, or for "sam_vit_t" those in the package."""
    if preset == "sam_vit_t":
        return (
            SegmentAnythingModel.from_pretrained(preset, dtype=dtype).eval().requires_grad_(False)
        )
    torch.manual_seed(0)
    model = SegmentAnythingModel(SegmentAnythingModelConfig.from_preset(preset)).eval()
    with torch.no_grad():  # position tables start as zeros, which could be quicker
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
    return model.to(dtype).requires_grad_(False)


def transformers(preset: str = "sam_vit_b", dtype: torch.dtype = torch.float32):
    """Transformers' SamModel with the same weights, attention by sdpa."""
    model: Any = huggingface_model(ours(preset))
    return model.to(dtype).requires_grad_(False)


def meta(preset: str = "sam_vit_b"):
    """Meta's Sam with the same weights."""
    return meta_model(ours(preset)).requires_grad_(False)


def openvino_encoder(pixels: torch.Tensor, precision: str = "f32"):
    """The encoder of transformers' model, compiled by OpenVINO for "f32" or "bf16"."""
    import openvino

    encoder = transformers().vision_encoder
    encoder.config.return_dict = False
    with torch.no_grad():
        converted = openvino.convert_model(encoder, example_input=pixels, input=[*pixels.shape])
    threads = torch.get_num_threads()
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(converted, "CPU", options)


def onnxruntime_encoder():
    """Our export of our encoder, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as place:
        folder = Path(place) / "onnx-model"
        export_onnx(ours(), folder)
        file = folder / "onnx" / "vision_encoder.onnx"
        return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])


class TheirImageProcessor(SamImageProcessorPil):
    """Theirs without torchvision, for which our suppression of duplicates stands in."""

    def generate_crop_boxes(self, *args, **kwargs):
        boxes, points, crops, labels = super().generate_crop_boxes(*args, **kwargs)
        return boxes, points.float(), crops, labels

    def post_process_for_mask_generation(self, *args):
        boxes_module: Any = ModuleType("torchvision.ops.boxes")
        boxes_module.batched_nms = lambda boxes, scores, idxs, iou_threshold: torch.from_numpy(
            mask_ops.nms(boxes.numpy(), scores.numpy(), iou_threshold)
        )
        sys.modules["torchvision.ops.boxes"] = boxes_module
        for name in ("torchvision", "torchvision.ops"):
            sys.modules.setdefault(name, ModuleType(name))
        return image_processing_pil_sam._post_process_for_mask_generation(*args)


def their_pipeline(preset: str):
    """Transformers' pipeline with transformers' model and image processor."""
    model = transformers(preset)
    size = model.config.vision_config.image_size
    image_processor = TheirImageProcessor(
        size={"longest_edge": size},
        pad_size={"height": size, "width": size},
        mask_size={"longest_edge": size // 4},
        mask_pad_size={"height": size // 4, "width": size // 4},
    )
    return pipeline("mask-generation", model=model, image_processor=image_processor)


def stock_pipeline(preset: str):
    """Transformers' pipeline with our model and image processor."""
    model = ours(preset)
    image_processor = SegmentAnythingImageProcessor.from_config(model.config)
    return pipeline("mask-generation", model=model, image_processor=image_processor)


def photograph(width: int, height: int) -> Image.Image:
    """The photograph of a rocket that scikit-image carries, at another size."""
    import skimage.data

    return Image.fromarray(skimage.data.rocket()).resize((width, height), Image.Resampling.BICUBIC)


def grid(points: int, side: int) -> np.ndarray:
    """Points (P, 1, 2) spread over a square of that side, in pixels."""
    per_side = round(points**0.5)
    return (mask_ops.point_grid(per_side) * side).astype(np.float32)[:points, None]
