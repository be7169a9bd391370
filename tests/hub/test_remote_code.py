"""A saved folder, loaded by processes that have one framework and not this package."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    SegmentAnythingProcessor,
)
from segment_anything_transformers.model.remote_code import AUTO_CLASSES, copy_code
from tests.environments import SOURCE, TENSORFLOW, TORCH, link_packages, run_python
from tests.fake_backend import small_config
from tests.tiny import random_model

MODEL_WING = SOURCE / "segment_anything_transformers" / "model"
POINTS = [[[12.0, 20.0]], [[30.0, 44.0]]]
LOAD = """
import sys
import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
trust = {{"trust_remote_code": True}}
config = AutoConfig.from_pretrained({folder!r}, **trust)
image_processor = AutoImageProcessor.from_pretrained({folder!r}, **trust)
processor = AutoProcessor.from_pretrained({folder!r}, **trust)
image = Image.open({folder!r} + "/image.png")
pixels = image_processor(image, return_tensors="np")["pixel_values"]
{use}
result["classes"] = [type(o).__name__ for o in (config, image_processor, processor)]
result["modules"] = sorted(
    {{name.split(".")[0] for name in sys.modules}}
    & {{"torch", "keras", "tensorflow", "segment_anything_transformers"}}
)
"""
USE_TORCH = """
import torch
from transformers import AutoModel, AutoModelForMaskGeneration, pipeline
models = [auto.from_pretrained({folder!r}, **trust)
          for auto in (AutoModel, AutoModelForMaskGeneration)]
inputs = processor(image, input_points={points}, return_tensors="pt")
prompts = {{name: inputs[name] for name in ("input_points", "input_labels")}}
with torch.no_grad():
    made = [model(pixel_values=torch.from_numpy(pixels), **prompts) for model in models]
assert torch.equal(made[0].pred_masks, made[1].pred_masks)
np.savez({out!r}, logits=made[0].pred_masks, scores=made[0].iou_scores)
generate = pipeline("mask-generation", model={folder!r}, **trust)
found = generate(image, points_per_crop=3, pred_iou_thresh=-9, stability_score_thresh=0.0)
models[1].save_pretrained({folder!r} + "/again")
processor.save_pretrained({folder!r} + "/again")
result = {{"models": [type(m).__name__ for m in models], "masks": len(found["masks"])}}
"""
USE_TENSORFLOW = """
from transformers.dynamic_module_utils import get_class_from_dynamic_module
model_class = get_class_from_dynamic_module(config.auto_map["TFAutoModel"], {folder!r})
model = model_class.from_pretrained({folder!r})
inputs = processor(image, input_points={points}, return_tensors="np")
prompts = {{name: inputs[name] for name in ("input_points", "input_labels")}}
masks, scores, logits = model({{"pixel_values": pixels, **prompts}}, multimask_output=True)
np.savez({out!r}, logits=logits, scores=scores)
model.save_pretrained({folder!r} + "/again")
processor.save_pretrained({folder!r} + "/again")
result = {{"models": [type(model).__name__]}}
"""
REFUSED = """
from transformers import AutoModel
try:
    AutoModel.from_pretrained({folder!r}, trust_remote_code=False)
except ValueError as error:
    result = str(error)
"""
OTHERS = {"torch": TENSORFLOW, "tensorflow": TORCH}


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture
def folder(model, tmp_path):
    """A saved model with its processor, and an image beside them."""
    saved = tmp_path / "my-sam.v1"  # a name that is no name of a module
    model.save_pretrained(saved)
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(model.config))
    processor.save_pretrained(saved)
    pixels = np.random.default_rng(0).integers(0, 255, (72, 50, 3), np.uint8)
    Image.fromarray(pixels).save(saved / "image.png")
    return saved


def code_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


def run_without_the_package(code, packages, tmp_path):
    return run_python(
        code,
        packages,
        PYTHONPATH=str(packages),
        HF_HOME=str(tmp_path / "huggingface"),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )


@torch.no_grad()
def expected_masks(model, folder):
    processor = SegmentAnythingProcessor.from_pretrained(folder)
    image = Image.open(folder / "image.png")
    inputs = processor(image, input_points=[POINTS], return_tensors="pt")
    names = ("pixel_values", "input_points", "input_labels")
    return model(**{name: inputs[name] for name in names})


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.parametrize(
    ("framework", "use"), [("torch", USE_TORCH), ("tensorflow", USE_TENSORFLOW)]
)
def test_everything_loads_without_the_package(model, folder, tmp_path, framework, use):
    """With one framework alone; and what was loaded so can be saved and loaded again."""
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(packages, OTHERS[framework])
    expected = expected_masks(model, folder)
    for place in (folder, folder / "again"):
        if place != folder:
            (folder / "image.png").rename(place / "image.png")
        out = str(tmp_path / "made.npz")
        names = {"folder": str(place), "out": out, "points": [POINTS]}
        code = LOAD.format(use=use.format(**names), **names)
        result = run_without_the_package(code, packages, tmp_path)
        assert result["classes"] == [
            "SegmentAnythingModelConfig",
            "SegmentAnythingImageProcessor",
            "SegmentAnythingProcessor",
        ]
        modules = {"torch": ["torch"], "tensorflow": ["keras", "tensorflow"]}
        assert result["modules"] == modules[framework]
        if framework == "torch":
            assert result["models"] == ["SegmentAnythingModel"] * 2
            assert result["masks"] > 0
        else:
            assert result["models"] == ["TFSegmentAnythingModel"]
        made = np.load(out)
        np.testing.assert_allclose(made["logits"], expected.pred_masks, rtol=0, atol=1e-4)
        np.testing.assert_allclose(made["scores"], expected.iou_scores, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_code_runs_only_when_it_is_trusted(folder, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(packages, TENSORFLOW)
    error = run_without_the_package(REFUSED.format(folder=str(folder)), packages, tmp_path)
    assert "custom code" in error
    assert "trust_remote_code=True" in error
    assert not (tmp_path / "modules" / "transformers_modules").exists()


def test_with_the_package_its_own_classes_are_taken(folder):
    for options in ({}, {"trust_remote_code": True}):
        assert type(AutoModel.from_pretrained(folder, **options)) is SegmentAnythingModel
        assert type(AutoProcessor.from_pretrained(folder, **options)) is SegmentAnythingProcessor
        image_processor = AutoImageProcessor.from_pretrained(folder, **options)
        assert type(image_processor) is SegmentAnythingImageProcessor


def test_a_folder_carries_the_files_of_every_class(folder, tmp_path):
    copy_code(tmp_path / "code")
    assert code_in(folder) == code_in(tmp_path / "code")
    for name in code_in(folder):
        assert (folder / name).read_bytes() == (MODEL_WING / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())["auto_map"]
    processor = json.loads((folder / "processor_config.json").read_text())
    written = config | processor["auto_map"] | processor["image_processor"]["auto_map"]
    assert written == AUTO_CLASSES


def test_saving_changes_nothing_that_is_compared(model, tmp_path):
    config = small_config()
    config.save_pretrained(tmp_path)
    assert SegmentAnythingModelConfig.from_pretrained(tmp_path) == config
    processor = SegmentAnythingImageProcessor.from_config(config)
    processor.save_pretrained(tmp_path)
    loaded = SegmentAnythingImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()


PARTS = (
    "fast_decoder",
    "image_encoder",
    "layers",
    "mask_decoder",
    "prompt_encoder",
    "tiny_vit_encoder",
    "two_way_transformer",
)
"""Parts of the model, each a file for each framework."""


def test_the_code_needs_little_and_lies_flat(folder):
    """What Transformers checks before it loads a file: that its imports are installed."""
    everywhere = {"PIL", "huggingface_hub", "numpy", "safetensors", "transformers"}
    known = everywhere | sys.stdlib_module_names
    beyond = {name: set(get_imports(folder / name)) - known for name in code_in(folder)}
    assert {name for name, found in beyond.items() if "torch" in found} == {
        "loss_segment_anything.py",
        "modeling_segment_anything.py",
        "outputs.py",
        *(f"{part}.py" for part in PARTS),
    }
    assert {name for name, found in beyond.items() if "keras" in found} == {
        "export_tf_segment_anything.py",
        "loss_tf_segment_anything.py",
        "modeling_tf_segment_anything.py",
        *(f"{part}_tf.py" for part in PARTS),
    }
    assert set().union(*beyond.values()) == {"torch", "keras", "tensorflow"}
    for name in code_in(folder):
        assert {f"{module}.py" for module in get_relative_imports(folder / name)} <= code_in(folder)
