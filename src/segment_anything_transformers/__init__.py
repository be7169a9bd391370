"""Segment Anything for Transformers: one model in PyTorch and TensorFlow, with weights inside.

Importing the package imports no framework: each name below is loaded when it is first used, and
Transformers' Auto classes learn of the model when they are themselves first imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .auto_classes import register_when_imported

if TYPE_CHECKING:
    from .data.annotations import load_samples
    from .evaluation.evaluation import evaluate
    from .export.onnx import export_onnx
    from .model.configuration_segment_anything import SegmentAnythingModelConfig, list_presets
    from .model.image_processing_segment_anything import ImageResizer, SegmentAnythingImageProcessor
    from .model.modeling_segment_anything import SegmentAnythingModel, SegmentAnythingOutput
    from .model.modeling_tf_segment_anything import TFSegmentAnythingModel
    from .model.pipeline_segment_anything import SegmentAnythingMaskGenerationPipeline
    from .model.processing_segment_anything import SegmentAnythingProcessor
    from .prediction.encoded_image import EncodedImage
    from .prediction.mask_generator import SAMAutomaticMaskGenerator
    from .prediction.predictor import SAMPredictor
    from .prediction.visualization import draw_masks, draw_prompts
    from .training.finetuning import finetune

__version__ = "0.1.0"

__all__ = [
    "EncodedImage",
    "ImageResizer",
    "SAMAutomaticMaskGenerator",
    "SAMPredictor",
    "SegmentAnythingImageProcessor",
    "SegmentAnythingMaskGenerationPipeline",
    "SegmentAnythingModel",
    "SegmentAnythingModelConfig",
    "SegmentAnythingOutput",
    "SegmentAnythingProcessor",
    "TFSegmentAnythingModel",
    "draw_masks",
    "draw_prompts",
    "evaluate",
    "export_onnx",
    "finetune",
    "list_presets",
    "load_samples",
]

_MODULES = {
    "data.annotations": ("load_samples",),
    "model.configuration_segment_anything": ("SegmentAnythingModelConfig", "list_presets"),
    "evaluation.evaluation": ("evaluate",),
    "export.onnx": ("export_onnx",),
    "training.finetuning": ("finetune",),
    "model.image_processing_segment_anything": ("ImageResizer", "SegmentAnythingImageProcessor"),
    "prediction.encoded_image": ("EncodedImage",),
    "prediction.mask_generator": ("SAMAutomaticMaskGenerator",),
    "model.modeling_segment_anything": ("SegmentAnythingModel", "SegmentAnythingOutput"),
    "model.modeling_tf_segment_anything": ("TFSegmentAnythingModel",),
    "model.pipeline_segment_anything": ("SegmentAnythingMaskGenerationPipeline",),
    "prediction.predictor": ("SAMPredictor",),
    "model.processing_segment_anything": ("SegmentAnythingProcessor",),
    "prediction.visualization": ("draw_masks", "draw_prompts"),
}
_EXTRAS = {
    "torch": "torch",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "onnx_ir": "export",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module and keeps it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"{name} needs {error.name}, which is not installed. Install it with "
            f"`pip install 'segment-anything-transformers[{_EXTRAS[error.name]}]'`.",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The module's own names and the public ones that are not loaded yet."""
    return sorted({*globals(), *__all__})


register_when_imported()
