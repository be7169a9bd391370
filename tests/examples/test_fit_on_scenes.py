"""The Keras class learns from rendered scenes, and PyTorch has what it has learnt."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import torch

from examples.scenes.compose import render_scene
from examples.scenes.pools import Pools
from segment_anything_transformers import SegmentAnythingModel, SegmentAnythingProcessor
from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]
SIDE, SCENES, OBJECTS = 128, 24, 2


def scenes():
    """Images, for each a box around each of its largest objects, and the objects' masks."""
    images, boxes, masks = [], [], []
    for index in range(10 * SCENES):
        image, instances = render_scene(np.random.default_rng(index), Pools.empty(), SIDE)
        sizes = np.bincount(instances.ravel(), minlength=OBJECTS + 1)[1:]
        if np.count_nonzero(sizes) < OBJECTS:
            continue
        objects = [instances == 1 + number for number in np.argsort(-sizes)[:OBJECTS]]
        images.append(image)
        masks.append(np.stack(objects))
        boxes.append([box_of(mask) for mask in objects])
        if len(images) == SCENES:
            return images, boxes, np.stack(masks)
    raise AssertionError("too few scenes have objects")


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(edge) for edge in (columns[0], rows[0], columns[-1], rows[-1])]


def test_fit_on_rendered_scenes_teaches_and_pytorch_gives_the_same_masks(tmp_path):
    keras.utils.set_random_seed(0)
    model = TFSegmentAnythingModel.from_pretrained("sam_vit_t", input_size=(SIDE, SIDE))
    processor = SegmentAnythingProcessor.from_pretrained("sam_vit_t")
    processor.image_processor.size = {"longest_edge": SIDE}
    processor.image_processor.pad_size = {"height": SIDE, "width": SIDE}
    images, boxes, masks = scenes()
    features = processor(images, input_boxes=boxes, return_tensors="np")
    inputs = {name: features[name] for name in ("pixel_values", "input_boxes")}
    assert inputs["pixel_values"].shape == (SCENES, 3, SIDE, SIDE)

    # XLA takes longer than all steps; tests/training/test_fit_tf.py fits with it.
    model.compile(keras.optimizers.AdamW(3e-4), jit_compile=False)
    before = model.evaluate(inputs, masks, batch_size=8, return_dict=True, verbose=0)
    model.fit(inputs, masks, batch_size=8, epochs=6, verbose=0)
    after = model.evaluate(inputs, masks, batch_size=8, return_dict=True, verbose=0)
    assert after["loss"] < 0.9 * before["loss"]
    assert after["iou"] > before["iou"] + 0.02

    model.save_pretrained(tmp_path)
    theirs = SegmentAnythingModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    made, scores, logits = model(inputs, multimask_output=True)
    np.testing.assert_allclose(logits, expected.pred_masks, rtol=0, atol=2e-3)
    np.testing.assert_allclose(scores, expected.iou_scores, rtol=0, atol=1e-4)
    upscaled = torch.nn.functional.interpolate(
        expected.pred_masks.flatten(0, 1), (SIDE, SIDE), mode="bilinear"
    )
    assert (np.asarray(made).reshape(upscaled.shape) == (upscaled > 0).numpy()).mean() > 0.9999
