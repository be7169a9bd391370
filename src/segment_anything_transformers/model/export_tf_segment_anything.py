"""Exports of the Keras model that run without this package: SavedModel and TFLite.

Both have one part for the image, which is slow, and one for prompts, which is quick.
"""

import shutil
import tempfile
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import keras

FORMATS = ("tf_saved_model", "litert")
IMAGE_ENDPOINT = "encode_images"
MASK_ENDPOINT = "decode_masks"
FOR_TFLITE: ContextVar[bool] = ContextVar("FOR_TFLITE", default=False)
"""Whether the graph that is being traced has to do with TFLite's operations."""

_FILES = {IMAGE_ENDPOINT: "image_encoder.tflite", MASK_ENDPOINT: "mask_decoder.tflite"}


def export_model(
    model: Any,
    folder: Path,
    format: str,
    input_size: tuple[int, int] | None = None,
    verbose: bool = False,
    **converter_options: Any,
) -> None:
    """Writes the model's two parts into a folder; see `TFSegmentAnythingModel.export`."""
    if format == "onnx":
        raise ValueError(
            "ONNX is written from the PyTorch class, which has the same weights: "
            "`model.save_pretrained(folder)`, then "
            "`export_onnx(SegmentAnythingModel.from_pretrained(folder), output)`."
        )
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Only TensorFlow can export, and Keras runs on {keras.backend.backend()}. Set "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Remove it, or choose another folder.")
    if converter_options and format != "litert":
        raise TypeError(f"Unknown options {sorted(converter_options)}: they are for litert.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        made = Path(place) / "saved_model"
        token = FOR_TFLITE.set(format == "litert")
        try:
            _write_saved_model(model, made, input_size or model.config.input_size, verbose)
        finally:
            FOR_TFLITE.reset(token)
        if format == "litert":
            made = _convert(made, Path(place) / "tflite", converter_options)
        shutil.move(made, folder)


def _write_saved_model(
    model: Any, folder: Path, input_size: tuple[int, int], verbose: bool
) -> None:
    from tensorflow import TensorSpec

    config = model.config

    def encode_images(images: Any) -> dict[str, Any]:
        return {"image_embeddings": model.get_image_embeddings(images)}

    def decode_masks(
        image_embeddings: Any, points: Any, labels: Any, boxes: Any, masks: Any
    ) -> dict[str, Any]:
        mask_logits, iou_scores = model.decode(image_embeddings, points, labels, boxes, masks)
        return {"mask_logits": mask_logits, "iou_scores": iou_scores}

    def spec(*shape: int | None, dtype: str = "float32") -> Any:
        return TensorSpec(shape, dtype)

    embeddings = (None, *config.grid_size(input_size), config.embed_dim)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        IMAGE_ENDPOINT, encode_images, [spec(None, *input_size, config.in_channels)]
    )
    archive.add_endpoint(
        MASK_ENDPOINT,
        decode_masks,
        [
            TensorSpec(embeddings, model.compute_dtype),
            spec(None, None, None, 2),
            spec(None, None, None, dtype="int32"),
            spec(None, None, None, 4),
            spec(None, None, None, *config.mask_size(input_size)),
        ],
    )
    archive.write_out(str(folder), verbose=verbose)


def _convert(saved_model: Path, folder: Path, options: dict[str, Any]) -> Path:
    """Both endpoints of a SavedModel as TFLite files."""
    from tensorflow import lite

    folder.mkdir()
    for endpoint, name in _FILES.items():
        converter = lite.TFLiteConverter.from_saved_model(
            str(saved_model), signature_keys=[endpoint]
        )
        for option, value in options.items():
            setattr(converter, option, value)
        (folder / name).write_bytes(converter.convert())
    return folder
