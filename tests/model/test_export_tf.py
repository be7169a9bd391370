"""Exports of the Keras model, run by interpreters that do not have this package."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pytest

from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from tests.environments import TORCH, link_packages, run_python
from tests.fake_backend import small_config

pytestmark = [pytest.mark.tf, pytest.mark.slow]
RUN = """
import sys, numpy as np
{load}
given = np.load({folder!r} + "/given.npz")
embeddings = encode(images=given["images"])["image_embeddings"]
made = {{"embeddings": embeddings}}
for case in range({cases}):
    names = ("points", "labels", "boxes", "masks")
    made |= {{
        f"{{name}} {{case}}": array
        for name, array in decode(
            image_embeddings=embeddings, **{{n: given[f"{{n}} {{case}}"] for n in names}}
        ).items()
    }}
np.savez({folder!r} + "/made.npz", **{{name: np.asarray(a) for name, a in made.items()}})
result = sorted(m for m in ("keras", "transformers", "segment_anything_transformers")
                if m in sys.modules)
"""
SAVED_MODEL = """
import tensorflow as tf
endpoints = tf.saved_model.load({folder!r} + "/exported").signatures
def run(name):
    return lambda **arrays: endpoints[name](**{{n: tf.constant(a) for n, a in arrays.items()}})
encode, decode = run("encode_images"), run("decode_masks")
"""
TFLITE = """
from ai_edge_litert.interpreter import Interpreter
encoder = Interpreter({folder!r} + "/exported/image_encoder.tflite")
decoder = Interpreter({folder!r} + "/exported/mask_decoder.tflite")
encode = encoder.get_signature_runner("encode_images")
decode = decoder.get_signature_runner("decode_masks")
"""
CASES = [(1, 1, 1, 1), (3, 2, 1, 1), (2, 4, 2, 2)]  # P, M1, M2, M3
LOADERS = {"tf_saved_model": SAVED_MODEL, "litert": TFLITE}


@pytest.fixture(scope="module")
def model():
    return TFSegmentAnythingModel(small_config(fixed_input_size=False))


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """TensorFlow and its interpreters, but nothing that the model is made with."""
    return link_packages(tmp_path_factory.mktemp("packages"), (*TORCH, "transformers"))


def prompts_of(config, sets, points, boxes, masks, images=2):
    """Some prompts of each kind, some of them padding."""
    rng = np.random.default_rng(sets)
    given = {
        "points": rng.uniform(0, 60, (images, sets, points, 2)).astype(np.float32),
        "labels": rng.integers(-1, 2, (images, sets, points), np.int32),
        "boxes": np.full((images, sets, boxes, 4), -10, np.float32),
        "masks": rng.standard_normal(
            (images, sets, masks, *config.mask_size(config.input_size))
        ).astype(np.float32),
    }
    given["labels"][0, 0, -1] = -10
    given["boxes"][0] = (3, 4, 40, 30)
    given["masks"][1] = np.nan
    return given


@pytest.mark.parametrize("format", LOADERS)
def test_exports_compute_the_same_without_this_package(model, packages, tmp_path, format):
    model.export(tmp_path / "exported", format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    size = model.config.input_size
    images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    cases = [prompts_of(model.config, *numbers) for numbers in CASES]
    given = {f"{n} {i}": array for i, case in enumerate(cases) for n, array in case.items()}
    np.savez(tmp_path / "given.npz", images=images, **given)
    load = LOADERS[format].format(folder=str(tmp_path))
    code = RUN.format(folder=str(tmp_path), load=load, cases=len(CASES))
    loaded = run_python(code, packages, PYTHONPATH=str(packages))
    assert "segment_anything_transformers" not in loaded

    made = np.load(tmp_path / "made.npz")
    embeddings = model.get_image_embeddings(images)
    np.testing.assert_allclose(made["embeddings"], embeddings, rtol=0, atol=1e-4)
    for number, case in enumerate(cases):
        logits, scores = model.decode(embeddings, *case.values())
        np.testing.assert_allclose(made[f"mask_logits {number}"], logits, rtol=0, atol=1e-4)
        np.testing.assert_allclose(made[f"iou_scores {number}"], scores, rtol=0, atol=1e-4)


def test_another_input_size_and_a_smaller_file(model, tmp_path):
    import tensorflow as tf

    size = (64, 128)
    model.export(tmp_path / "plain", format="litert", input_size=size)
    quantised = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    model.export(tmp_path / "small", format="litert", input_size=size, **quantised)
    for name in ("image_encoder.tflite", "mask_decoder.tflite"):
        plain, small = ((tmp_path / folder / name).stat() for folder in ("plain", "small"))
        assert small.st_size < plain.st_size


def test_what_cannot_be_exported_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match="format must be one of tf_saved_model, litert, got 'h5'"):
        model.export(tmp_path / "exported", format="h5")
    with pytest.raises(TypeError, match=r"Unknown options \['optimizations'\]"):
        model.export(tmp_path / "exported", optimizations=[])
    (tmp_path / "exported").mkdir()
    with pytest.raises(FileExistsError, match="exported exists"):
        model.export(tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
