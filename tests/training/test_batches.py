import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers.data.annotations import folder_samples
from segment_anything_transformers.data.samples import Samples
from segment_anything_transformers.training.batches import Collator, ObjectsDataset, keep_embeddings
from tests.fake_backend import small_config
from tests.sample_folders import rectangles, write_folder
from tests.tiny import random_model
from tests.training.test_finetuning import processor_of


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", objects=3)


@pytest.fixture
def model():
    return random_model(small_config())


def test_an_image_with_many_objects_is_several_items(folder):
    dataset = ObjectsDataset(folder_samples(folder), objects_per_image=2)
    assert len(dataset) == 6
    for seed in range(3):
        _, masks = rectangles(seed, count=3)
        first, second = (dataset[2 * seed + part][0].masks for part in (0, 1))
        np.testing.assert_array_equal(first, masks[[0, 2]])
        np.testing.assert_array_equal(second, masks[[1]])
    assert len(ObjectsDataset(folder_samples(folder))) == 3


def test_batches_are_the_processors(folder, model):
    dataset = ObjectsDataset(folder_samples(folder), objects_per_image=2)
    batch = Collator(processor_of(model), with_prompts=True)([dataset[0], dataset[1]])
    assert set(batch) == {"pixel_values", "labels", "input_points", "input_labels", "input_boxes"}
    image, masks = rectangles(0, (64, 64), 3)
    expected = processor_of(model)(
        [image, image],
        input_boxes=[[box_of(masks[0]), box_of(masks[2])], [box_of(masks[1])]],
        segmentation_maps=[masks[[0, 2]].astype(int), masks[[1]].astype(int)],
        return_tensors="pt",
    )
    for name in ("pixel_values", "input_boxes"):
        assert torch.equal(batch[name], expected[name])
    assert torch.equal(batch["labels"].long(), expected["labels"])
    x, y = batch["input_points"][0, 0, 0].round().long().tolist()
    assert masks[0][y, x]  # the image fills the width of the input, 64 pixels of 64
    assert batch["input_labels"].tolist() == [[[1], [1]], [[1], [-10]]]


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


def test_objects_that_vanish_when_scaled_do_not_count(model):
    image, masks = rectangles(0, (256, 256), 2)
    masks[1] = False
    masks[1, 3, 250] = True
    sample = Samples(["a"], lambda index: (image, masks, None))
    batch = Collator(processor_of(model))([ObjectsDataset(sample)[0]])
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"][0, 0].max() == 1
    assert (batch["labels"][0, 1] == -1).all()


def test_unknown_pixels_stay_unknown(folder, model):
    ids = np.array(Image.open(folder / "masks" / "0.png"))
    ids[:32] = 255
    Image.fromarray(ids).save(folder / "masks" / "0.png")
    dataset = ObjectsDataset(folder_samples(folder, ignore_value=255))
    labels = Collator(processor_of(model))([dataset[0]])["labels"]
    assert labels.shape == (1, 3, 48, 32)
    assert (labels[:, :, :16] == -1).all()
    assert (labels[:, :, 16:32] >= 0).all()


@pytest.fixture
def counted(model, monkeypatch):
    """The number of images that the model encoded."""
    calls, encode = [], model.get_image_embeddings
    monkeypatch.setattr(
        model, "get_image_embeddings", lambda x: (calls.append(len(x)), encode(x))[1]
    )
    return calls


def test_embeddings_are_made_once(folder, model, counted, tmp_path):
    processor = processor_of(model)
    for _ in range(2):
        dataset = ObjectsDataset(folder_samples(folder), objects_per_image=1)
        keep_embeddings(dataset, model, processor, tmp_path / "kept")
        assert counted == [1, 1, 1]
    assert isinstance(dataset.embeddings, np.memmap)
    for item in (0, 5, 8):
        sample, embeddings = dataset[item]
        pixels = processor(sample.image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            assert torch.equal(embeddings, model.get_image_embeddings(pixels)[0])
    batch = Collator(processor)([dataset[0], dataset[8]])
    assert set(batch) == {"image_embeddings", "labels"}
    assert batch["image_embeddings"].shape == (2, 32, 12, 8)


def test_what_changes_is_encoded_anew(folder, model, counted, tmp_path):
    def keep(model):
        dataset = ObjectsDataset(folder_samples(folder))
        keep_embeddings(dataset, model, processor_of(model), tmp_path / "kept")

    keep(model)
    Image.fromarray(rectangles(9)[0]).save(folder / "images" / "1.png")
    keep(model)
    assert len(counted) == 6
    with torch.no_grad():
        model.mask_decoder.iou_token.weight.add_(1)
    keep(model)  # the decoder has nothing to do with it
    assert len(counted) == 6
    with torch.no_grad():
        model.image_encoder.blocks[0].mlp.lin1.bias[0] += 1e-3
    keep(model)
    assert len(counted) == 9


def test_encoding_goes_on_where_it_was_cut_off(folder, model, counted, tmp_path):
    dataset = ObjectsDataset(folder_samples(folder))

    def cut(indices):
        yield from list(indices)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_embeddings(dataset, model, processor_of(model), tmp_path, cut)
    keep_embeddings(dataset, model, processor_of(model), tmp_path)
    assert len(counted) == 3
    assert np.isfinite(dataset.embeddings).all()
    assert (np.ptp(dataset.embeddings, axis=(1, 2, 3)) > 0).all()
