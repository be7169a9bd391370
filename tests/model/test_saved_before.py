"""Folders that were saved before the package had wings load, and give the masks that they gave.

`saved_before` holds what commit c9789a3 wrote of `random_model(small_config())`, the PyTorch and
the Keras class and the processor (both classes wrote the same bytes), without the code beside it.
`answers.npz` holds an image, and what that commit's predictor answered to a click at (20, 30).
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor

from segment_anything_transformers import (
    SAMPredictor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
    TFSegmentAnythingModel,
)
from tests.made_once import ROOT

FOLDER = ROOT / "tests" / "model" / "saved_before"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loads", "saved_by"),
    [
        (SegmentAnythingModel, "torch"),
        (AutoModel, "torch"),
        (SegmentAnythingModel, "tensorflow"),
        pytest.param(TFSegmentAnythingModel, "tensorflow", marks=pytest.mark.tf),
        pytest.param(TFSegmentAnythingModel, "torch", marks=pytest.mark.tf),
    ],
)
@pytest.mark.parametrize("loads_processor", [SegmentAnythingProcessor, AutoProcessor])
def test_the_masks_are_those_of_before(loads, saved_by, loads_processor):
    model, processor = loads.from_pretrained(FOLDER), loads_processor.from_pretrained(FOLDER)
    answers = np.load(FOLDER / "answers.npz")
    predictor = SAMPredictor(model, processor.image_processor)
    predictor.set_image(answers["image"])
    masks, scores, logits = predictor(points=np.array([[20, 30]]))
    np.testing.assert_array_equal(masks, answers[f"{saved_by}_masks"])
    np.testing.assert_allclose(scores, answers[f"{saved_by}_scores"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, answers[f"{saved_by}_logits"], rtol=0, atol=1e-4)


def test_saving_them_again_writes_the_same_weights(tmp_path):
    SegmentAnythingModel.from_pretrained(FOLDER).save_pretrained(tmp_path)
    written = Path(tmp_path, "model.safetensors").read_bytes()
    assert written == (FOLDER / "model.safetensors").read_bytes()
