"""What each format's folder holds, written from a PyTorch model of ours."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
)
from segment_anything_transformers.model.configuration_segment_anything import (
    ENCODER_NORM_EPS,
    preset_of,
)
from segment_anything_transformers.model.huggingface_sam import (
    config_to_huggingface,
    processor_to_huggingface,
)
from segment_anything_transformers.model.weight_arrays import unfold_batch_norms
from segment_anything_transformers.model.weight_names import to_huggingface


def write_ours(model: SegmentAnythingModel, folder: Path) -> None:
    """A folder of this package: weights, configuration, processor, code."""
    model.save_pretrained(folder)
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    SegmentAnythingProcessor(processor).save_pretrained(folder)


def write_huggingface(model: SegmentAnythingModel, folder: Path) -> None:
    """A folder of transformers' SamModel and SamProcessor.

    Raises:
        ValueError: The input size is not square, which that model asks for.
    """
    _check_square(model, "transformers' SamModel")
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    _write_json(folder / "config.json", config_to_huggingface(model.config, ENCODER_NORM_EPS))
    _write_json(folder / "preprocessor_config.json", processor_to_huggingface(processor.to_dict()))
    weights = {name: w.contiguous() for name, w in to_huggingface(model.state_dict()).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_meta(model: SegmentAnythingModel, folder: Path) -> None:
    """A `.pth` file of Meta's segment_anything, named like the model or the preset that it is.

    Of a TinyViT it is a `.pt` file of MobileSAM's code, whose batch norms add the biases.

    Raises:
        ValueError: The input size is not square, which Meta's code asks for.
    """
    _check_square(model, "Meta's code")
    folder.mkdir(parents=True)
    name = model.config.name or preset_of(model.config.to_dict()) or "sam"
    weights, ending = model.state_dict(), ".pth"
    if model.config.encoder_type == "tiny_vit":
        weights, ending = unfold_batch_norms(weights), ".pt"
    # A configuration may say anything, "../x" too, and the file belongs into the folder.
    torch.save(weights, folder / f"{Path(name).name}{ending}")


def write_onnx(model: SegmentAnythingModel, folder: Path) -> None:
    """ONNX files for ONNX Runtime and transformers.js."""
    from segment_anything_transformers import export_onnx

    export_onnx(model, folder)


def write_saved_model(model: SegmentAnythingModel, folder: Path) -> None:
    """A TensorFlow SavedModel."""
    _export_keras(model, folder, "tf_saved_model")


def write_tflite(model: SegmentAnythingModel, folder: Path) -> None:
    """Two TFLite files."""
    _export_keras(model, folder, "litert")


def _export_keras(model: SegmentAnythingModel, folder: Path, format: str) -> None:
    from segment_anything_transformers import TFSegmentAnythingModel

    keras_model = TFSegmentAnythingModel(model.config)
    keras_model.load_state_dict({name: w.numpy() for name, w in model.state_dict().items()})
    keras_model.export(folder, format=format)


def _check_square(model: SegmentAnythingModel, whose: str) -> None:
    height, width = model.config.input_size
    if height != width:
        raise ValueError(
            f"{whose} takes square images only, this model {(height, width)}. Adapt it with "
            f"--input-size {max(height, width)} {max(height, width)}."
        )


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[SegmentAnythingModel, Path], None]] = {
    "segment_anything": write_ours,
    "huggingface": write_huggingface,
    "meta": write_meta,
    "onnx": write_onnx,
    "tf_saved_model": write_saved_model,
    "litert": write_tflite,
}
"""Formats and what writes them, into a folder that does not exist yet."""
