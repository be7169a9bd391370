"""Several images, one after the other: the next ones are made ready in a thread."""

import threading

import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from tests.fake_backend import FakeBackend, small_config
from tests.generator_inputs import LENIENT, PHOTOGRAPH, compare, picture

IMAGES = [
    picture(seed=1),
    picture(50, 40, seed=2),
    picture(80, 81, seed=3),
    picture(60, 33, seed=4),
]


@pytest.fixture
def fake():
    return FakeBackend(small_config(input_size=(128, 96)))


@pytest.fixture(params=[False, True], ids=["shares the processor", "encodes aside"])
def any_fake(request, fake):
    fake.encodes_aside = request.param
    return fake


@pytest.mark.slow
@pytest.mark.parametrize("images_per_batch", [1, 2, 3, 9])
@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_several_images_equal_one_by_one(any_fake, images_per_batch, crop_n_layers):
    generator = SAMAutomaticMaskGenerator(any_fake, **LENIENT, crop_n_layers=crop_n_layers)
    batch = list(generator.generate_batch(IMAGES, images_per_batch=images_per_batch))
    assert len(batch) == len(IMAGES)
    for image, records in zip(IMAGES, batch, strict=True):
        compare(records, generator.generate(image))
    assert not generator.predictor.is_image_set


@pytest.mark.slow
def test_several_images_equal_one_by_one_with_the_model_in_the_package():
    generator = SAMAutomaticMaskGenerator(
        SegmentAnythingModel.from_pretrained("sam_vit_t", input_size=(512, 512)),
        points_per_side=4,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    photograph = Image.open(PHOTOGRAPH)
    images = [photograph, photograph.crop((100, 0, 500, 400)), photograph.rotate(90, expand=True)]
    expected = [generator.generate(image) for image in images]
    for options in ({}, {"images_per_batch": 2}):
        for records, one in zip(generator.generate_batch(images, **options), expected, strict=True):
            compare(records, one)


def test_the_encoder_gets_as_many_images_as_asked_for(any_fake):
    generator = SAMAutomaticMaskGenerator(any_fake, **LENIENT)
    list(generator.generate_batch(IMAGES, images_per_batch=3))
    assert [len(pixels) for pixels in any_fake.encoded] == [3, 1]


def test_the_next_image_is_taken_ahead_and_no_further_one(any_fake):
    taken, may_go_on = [], threading.Event()

    def load():
        for seed in range(4):
            taken.append(seed)
            if seed == 2:
                may_go_on.wait(10)
            yield picture(seed=seed)

    batch = SAMAutomaticMaskGenerator(any_fake, **LENIENT).generate_batch(load())
    assert taken == []
    next(batch)
    next(batch)  # by now the third is being made, however long that takes
    assert taken == [0, 1, 2]
    may_go_on.set()
    assert len(list(batch)) == 2


def test_a_model_that_shares_the_processor_is_never_run_in_a_thread(fake, monkeypatch):
    for aside in (False, True):
        threads, encode = [], FakeBackend.encode_images
        monkeypatch.setattr(
            FakeBackend,
            "encode_images",
            lambda self, pixels, encode=encode, threads=threads: (
                threads.append(threading.current_thread()) or encode(self, pixels)
            ),
        )
        fake.encodes_aside = aside
        list(SAMAutomaticMaskGenerator(fake, **LENIENT).generate_batch(IMAGES))
        assert {thread is threading.current_thread() for thread in threads} == {not aside}
        monkeypatch.undo()


@pytest.mark.parametrize("images_per_batch", [1, 3])
def test_an_image_that_fails_does_so_when_it_is_its_turn(any_fake, images_per_batch):
    images = [*IMAGES[:2], np.full((5, 5, 3), np.nan), IMAGES[3]]
    generator = SAMAutomaticMaskGenerator(any_fake, **LENIENT)
    batch = generator.generate_batch(images, images_per_batch=images_per_batch)
    for image in images[:2]:
        compare(next(batch), generator.generate(image))
    with pytest.raises(ValueError, match="finite, got NaN"):
        next(batch)
    assert list(batch) == []


def test_closing_ends_the_thread(any_fake):
    before, closed = set(threading.enumerate()), []

    def load():
        try:
            yield from IMAGES
        finally:
            closed.append(True)

    batch = SAMAutomaticMaskGenerator(any_fake, **LENIENT).generate_batch(load())
    next(batch)
    assert set(threading.enumerate()) > before
    batch.close()
    assert set(threading.enumerate()) == before
    assert closed == [True]


def test_an_array_of_images(fake):
    images = np.stack([picture(seed=1), picture(seed=2)])
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT)
    assert len(list(generator.generate_batch(images))) == 2


def test_one_image_is_not_taken_for_many(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT)
    with pytest.raises(ValueError, match=r"shape \(70, 110, 3\)\. For one image there is gen"):
        generator.generate_batch(picture())
    with pytest.raises(ValueError, match="images_per_batch must be at least 1, got 0"):
        generator.generate_batch([picture()], images_per_batch=0)
