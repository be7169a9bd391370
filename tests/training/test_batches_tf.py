"""`fit` over a folder of images and masks."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import keras
import numpy as np
import pytest

from segment_anything_transformers import SegmentAnythingImageProcessor, SegmentAnythingProcessor
from segment_anything_transformers.data.annotations import folder_samples
from segment_anything_transformers.data.samples import AnnotationError, Samples
from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from segment_anything_transformers.training.batches_tf import ObjectBatches
from tests.fake_backend import small_config
from tests.sample_folders import rectangles, write_folder

pytestmark = pytest.mark.tf


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", count=5)


@pytest.fixture
def processor():
    return SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(small_config()))


def test_batches_have_a_prompt_for_every_object(folder, processor):
    batches = ObjectBatches(folder_samples(folder), processor, batch_size=2, objects_per_image=3)
    assert len(batches) == 3
    inputs, labels = batches[0]
    assert labels.shape == (2, 3, 48, 32)
    expected = [rectangles(int(seed))[1] for seed in batches._order[:2]]
    for sets, masks in zip(labels, expected, strict=True):
        wanted = processor.image_processor(
            np.zeros((64, 64, 3), np.uint8), masks.astype(int), return_tensors="np"
        )["labels"][0]
        found = {mask.tobytes() for mask in sets}
        assert found == {mask.tobytes() for mask in wanted}  # both of two, one of them twice
    has_point = inputs["input_labels"][..., 0] == 1
    has_box = (inputs["input_boxes"][:, :, 0] >= 0).all(axis=-1)
    np.testing.assert_array_equal(has_point, ~has_box)
    assert inputs["pixel_values"].shape == (2, 3, 96, 64)
    assert batches[2][1].shape[0] == 1
    order = batches._order.copy()
    batches.on_epoch_end()
    assert sorted(batches._order) == sorted(order)


def test_objects_that_vanish_when_scaled_do_not_count(processor):
    image, masks = rectangles(0, (256, 256), 2)
    masks[1] = False
    masks[1, 3, 250] = True
    batches = ObjectBatches(Samples(["a"], lambda _: (image, masks, None)), processor)
    inputs, labels = batches[0]
    found = labels.max(axis=(2, 3))[0]
    assert sorted(found) == [-1, -1, 1, 1]
    assert (labels[0, found == -1] == -1).all()
    model = TFSegmentAnythingModel(small_config())
    model.compile("sgd", run_eagerly=True)  # one batch is not worth a graph
    assert np.isfinite(model.train_on_batch(inputs, labels)).all()


@pytest.mark.slow
def test_fit_learns_from_a_folder(folder, processor):
    keras.utils.set_random_seed(0)
    model = TFSegmentAnythingModel(small_config())
    # XLA takes longer than all steps; test_fit_tf.py fits with it.
    model.compile(keras.optimizers.AdamW(2e-3), jit_compile=False)
    samples = folder_samples(folder)[:4]
    batches = ObjectBatches(samples, processor, objects_per_image=2)
    history = model.fit(batches, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize("clicks", [0, 1])
def test_fit_simulates_corrections(folder, processor, clicks):
    keras.utils.set_random_seed(0)
    model = TFSegmentAnythingModel(small_config())
    assert model.clicks == 0
    model.clicks = clicks
    before = model.state_dict()
    model.compile(keras.optimizers.SGD(1e-2), run_eagerly=clicks == 0)  # a graph takes longer
    batches = ObjectBatches(folder_samples(folder)[:2], processor, objects_per_image=2)
    history = model.fit(batches, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert 0.0 <= history["iou"][0] <= 1.0
    after = model.state_dict()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any(name.startswith("image_encoder") for name in changed)
    # masks of earlier rounds are prompts of the corrections alone
    assert any("mask_downscaling" in name for name in changed) == bool(clicks)
    model.run_eagerly = True  # one batch is not worth another graph
    assert model.evaluate(batches, return_dict=True, verbose=0).keys() == {"loss", "iou"}


def test_faults_are_refused_or_skipped(folder, processor):
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(AnnotationError, match=r"1 of 5 samples are faulty: 3\.png: it has no mask"):
        ObjectBatches(folder_samples(folder), processor)
    batches = ObjectBatches(folder_samples(folder), processor, faults="skip")
    assert len(batches.samples) == 4
    assert len(batches.faults) == 1
