"""Each test runs an interpreter of its own: what one import brings in cannot be undone."""

import ast
from pathlib import Path

import pytest

import segment_anything_transformers
from tests.environments import run_preloaded, run_python

FRAMEWORKS = "{'torch', 'tensorflow', 'keras', 'jax'}"
BLOCK_TORCH = "import sys; sys.modules['torch'] = None\n"
TORCH_IS_MISSING = (
    "SegmentAnythingModel needs torch, which is not installed. "
    "Install it with `pip install 'segment-anything-transformers[torch]'`."
)
CHECK_AUTO_CLASSES = """
import segment_anything_transformers as ours
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForMaskGeneration
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = AutoConfig.for_model("segment_anything")
assert type(config) is ours.SegmentAnythingModelConfig
for auto in (AutoModel, AutoModelForMaskGeneration):
    assert auto._model_mapping[type(config)] is ours.SegmentAnythingModel
processors = set(IMAGE_PROCESSOR_MAPPING[type(config)].values())
assert processors == {ours.SegmentAnythingImageProcessor}
assert set(IMAGE_PROCESSOR_MAPPING[type(config)]) == {"pil", "torchvision"}
assert PROCESSOR_MAPPING[type(config)] is ours.SegmentAnythingProcessor
"""


def test_the_package_imports_no_framework():
    code = "import sys, segment_anything_transformers as ours\n"
    code += f"result = [ours.__version__, list({FRAMEWORKS} & set(sys.modules))]"
    assert run_python(code) == [segment_anything_transformers.__version__, []]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import segment_anything_transformers.model.modeling_segment_anything",
        "import segment_anything_transformers; from transformers import pipeline",
        "from transformers import AutoModel",  # Transformers first, ours after it
    ],
)
def test_auto_classes_know_the_model_whatever_comes_first(first):
    run_preloaded(first + CHECK_AUTO_CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "from transformers import pipeline",
        "from transformers import ProcessorMixin",
        "from transformers import BaseImageProcessor",
        "import transformers.modeling_layers",
        "ours.SegmentAnythingImageProcessor",
        "ours.SegmentAnythingProcessor",
        "ours.SegmentAnythingMaskGenerationPipeline",
        "ours.SAMAutomaticMaskGenerator",
    ],
)
def test_auto_classes_know_the_model_in_any_order_of_imports(first):
    run_preloaded(f"import segment_anything_transformers as ours\n{first}\n{CHECK_AUTO_CLASSES}")


def test_other_models_get_what_they_got_before():
    code = "import segment_anything_transformers\nfrom transformers import *\n"
    code += "assert type(AutoConfig.for_model('sam')) is SamConfig\n"
    code += "assert AutoModelForMaskGeneration._model_mapping[SamConfig] is SamModel"
    names = "AutoConfig, AutoModelForMaskGeneration, SamConfig, SamModel"
    run_preloaded(code.replace("*", names))


def test_everything_but_the_model_works_without_pytorch():
    code = """
import numpy as np
import segment_anything_transformers as ours
from transformers import AutoConfig, AutoProcessor, AutoImageProcessor
config = AutoConfig.for_model("segment_anything", input_size=(64, 96))
processor = ours.SegmentAnythingImageProcessor(size={"longest_edge": 96})
pixels = processor(np.zeros((30, 40, 3), np.uint8), return_tensors="np")["pixel_values"]
assert pixels.dtype == np.float32
ours.draw_masks(np.zeros((3, 4, 3), np.uint8), [])
ours.SAMAutomaticMaskGenerator, ours.SAMPredictor
try:
    ours.SegmentAnythingModel
except ModuleNotFoundError as error:
    result = str(error)
"""
    assert run_python(BLOCK_TORCH + code) == TORCH_IS_MISSING


@pytest.mark.parametrize("framework", ["auto", "torch"])
def test_the_command_says_that_pytorch_is_missing(framework, tmp_path):
    """Without Keras `auto` means PyTorch; with it, whoever wants PyTorch has to ask for it."""
    arguments = ["demo", "--framework", framework, "-o", str(tmp_path)]
    code = BLOCK_TORCH + ("sys.modules['keras'] = None\n" if framework == "auto" else "")
    code += f"""
import contextlib, io
from segment_anything_transformers.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as said:
    result = [main({arguments}), said.getvalue()]
"""
    assert run_python(code) == [2, f"segment-anything: {TORCH_IS_MISSING}\n"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'SamModel'"):
        _ = segment_anything_transformers.SamModel


def test_the_lists_of_public_names_agree():
    """The names for type checkers, for `import *`, for `dir` and for loading are the same."""
    tree = ast.parse(Path(segment_anything_transformers.__file__).read_text())
    imported = {
        (node.module, alias.name)
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = segment_anything_transformers._MODULE_OF
    assert {(module, name) for name, module in loaded.items()} == imported
    public = segment_anything_transformers.__all__
    assert sorted(loaded) == sorted(public)
    assert set(public) <= set(dir(segment_anything_transformers))
    for name in public:
        assert getattr(segment_anything_transformers, name).__name__ == name
