import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segment_anything_transformers.data.annotations import (
    dataset_samples,
    folder_samples,
    load_samples,
    masks_of_map,
)
from segment_anything_transformers.data.annotations_coco import coco_samples
from segment_anything_transformers.data.samples import AnnotationError, Sample, without_faults
from segment_anything_transformers.model.mask_ops import masks_to_rles, rle_to_coco
from tests.sample_folders import hide_rows, rectangles, write_folder

MAPS = {
    "boolean": (np.array([[True, False], [True, True]]), [[[1, 0], [1, 1]]]),
    "0 and 1": (np.array([[0, 1], [0, 0]]), [[[0, 1], [0, 0]]]),
    "0 and 255": (np.array([[0, 255], [255, 0]], np.uint8), [[[0, 1], [1, 0]]]),
    "ids": (np.array([[7, 0], [300, 7]], np.uint16), [[[1, 0], [0, 1]], [[0, 0], [1, 0]]]),
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", size_hw=(64, 48))


@pytest.mark.parametrize("kind", MAPS)
def test_maps_of_each_kind(kind):
    values, expected = MAPS[kind]
    masks, ignored = masks_of_map(values)
    np.testing.assert_array_equal(masks, np.array(expected, bool))
    assert masks.dtype == bool
    assert ignored is None


def test_an_ignore_value_is_no_object():
    masks, ignored = masks_of_map(np.array([[255, 1], [0, 255]], np.uint8), ignore_value=255)
    np.testing.assert_array_equal(masks, [[[False, True], [False, False]]])
    np.testing.assert_array_equal(ignored, [[True, False], [False, True]])
    masks, ignored = masks_of_map(np.array([[0, 1], [2, 2]]), ignore_value=0)
    assert masks.sum() == 3
    np.testing.assert_array_equal(ignored, [[True, False], [False, False]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 0.5]]), "booleans, 0 and 1, 0 and 255, or instance ids, got float64"),
        (np.zeros((2, 3, 3), int), r"shape \(H, W\), got \(2, 3, 3\)"),
        (np.array([[-1, 2]]), "from 0, got -1; name the value of unknown pixels"),
    ],
)
def test_other_maps_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        masks_of_map(values)


def test_a_folder_with_maps_and_with_files_for_each_object(folder):
    image, masks = rectangles(1, (64, 48))
    (folder / "masks" / "1.png").unlink()
    (folder / "masks" / "1").mkdir()
    Image.fromarray(masks[0]).save(folder / "masks" / "1" / "a.png")  # 1 bit a pixel
    Image.fromarray(masks[1].astype(np.uint8) * 255).save(folder / "masks" / "1" / "b.png")
    samples = load_samples(folder)
    assert samples.names == ["0.png", "1.png", "2.png"]
    for seed, sample in enumerate(samples):
        expected_image, expected_masks = rectangles(seed, (64, 48))
        np.testing.assert_array_equal(sample.image, expected_image)
        np.testing.assert_array_equal(sample.masks, expected_masks)
        assert sample.ignored is None
    assert [sample.name for sample in samples[1:]] == ["1.png", "2.png"]
    np.testing.assert_array_equal(samples[-2].image, image)


def test_truth_says_what_is_not_known(folder):
    hide_rows(folder)
    sample = folder_samples(folder, ignore_value=255)[0]
    expected = rectangles(0, (64, 48))[1].astype(np.int8)
    expected[:, :8] = -1
    np.testing.assert_array_equal(sample.truth(), expected)


def corrupt(path):
    path.write_bytes(path.read_bytes()[:200])


FAULTS = {
    "an image that is cut off": (
        lambda folder: corrupt(folder / "images" / "1.png"),
        "1.png: {folder}/images/1.png: the image is damaged",
    ),
    "no mask": (
        lambda folder: (folder / "masks" / "1.png").unlink(),
        "1.png: it has no mask; expected masks/1.png, or files in masks/1/",
    ),
    "a mask that is cut off": (
        lambda folder: (folder / "masks" / "1.png").write_bytes(b"GIF89a"),
        "1.png: {folder}/masks/1.png: not an image that can be read",
    ),
    "another size": (
        lambda folder: Image.new("L", (30, 20), 1).save(folder / "masks" / "1.png"),
        "1.png: a mask has 30 x 20 pixels, the image 48 x 64",
    ),
    "no object": (
        lambda folder: Image.new("L", (48, 64)).save(folder / "masks" / "1.png"),
        "1.png: there is no object in its masks",
    ),
    "colours": (
        lambda folder: Image.new("RGB", (48, 64), "red").save(folder / "masks" / "1.png"),
        "1.png: the mask is coloured",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named_and_refused_or_skipped(folder, kind):
    make_fault, message = FAULTS[kind]
    message = message.format(folder=folder)
    make_fault(folder)
    samples = folder_samples(folder)
    with pytest.raises(AnnotationError, match="1 of 3 samples are faulty: ") as caught:
        samples.sound()
    assert message in str(caught.value)
    sound, faults = samples.sound("skip")
    assert sound.names == ["0.png", "2.png"]
    assert len(faults) == 1
    assert faults[0].startswith(message)
    found = []
    assert [s.name for s in without_faults(samples, "skip", found)] == ["0.png", "2.png"]
    assert found == faults
    with pytest.raises(AnnotationError, match=r"^1\.png: "):
        list(without_faults(samples, "refuse", []))


def test_an_empty_mask_among_several_is_named(folder):
    (folder / "masks" / "2.png").unlink()
    (folder / "masks" / "2").mkdir()
    for name, value in (("a", 1), ("b", 0)):
        Image.new("L", (48, 64), value).save(folder / "masks" / "2" / f"{name}.png")
    with pytest.raises(AnnotationError, match=r"2\.png: mask 1 is empty"):
        folder_samples(folder)[2]


def test_a_folder_of_faults_leaves_nothing(folder):
    for path in (folder / "masks").iterdir():
        path.unlink()
    with pytest.raises(AnnotationError, match="3 of 3 samples"):
        folder_samples(folder).sound("skip")
    with pytest.raises(ValueError, match='"refuse" or "skip", got \'drop\''):
        folder_samples(folder).sound("drop")


def test_folders_that_are_none(tmp_path, folder):
    with pytest.raises(ValueError, match="images and masks, images is missing"):
        folder_samples(tmp_path)
    (tmp_path / "no" / "images").mkdir(parents=True)
    (tmp_path / "no" / "masks").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        folder_samples(tmp_path / "no")
    Image.new("L", (3, 3)).save(folder / "images" / "0.bmp")
    with pytest.raises(ValueError, match="two images 0, with different endings"):
        folder_samples(folder)


POLYGONS = [[5.0, 4.0, 30.5, 6.0, 22.0, 40.0], [35.0, 50.0, 45.0, 50.0, 45.0, 60.0, 35.0, 60.0]]


@pytest.fixture
def coco(folder):
    """Annotations beside the images: polygons, run lengths of both kinds, and a crowd."""
    _, masks = rectangles(0, (64, 48))
    runs = masks_to_rles(masks)
    crowd = np.zeros((1, 64, 48), bool)
    crowd[:, :30] = True
    annotations = [
        {"id": 1, "image_id": 10, "segmentation": runs[0]},
        {"id": 2, "image_id": 10, "segmentation": rle_to_coco(runs[1])},
        {"id": 3, "image_id": 10, "segmentation": masks_to_rles(crowd)[0], "iscrowd": 1},
        {"id": 4, "image_id": 12, "segmentation": POLYGONS, "iscrowd": 0},
    ]
    images = [{"id": 10 + n, "file_name": f"{n}.png", "width": 48, "height": 64} for n in range(3)]
    content = {"images": images, "annotations": annotations}
    (folder / "images" / "coco.json").write_text(json.dumps(content))
    return folder / "images" / "coco.json", content


def test_coco_annotations(coco):
    samples = load_samples(coco[0])
    image, masks = rectangles(0, (64, 48))
    np.testing.assert_array_equal(samples[0].image, image)
    np.testing.assert_array_equal(samples[0].masks, masks)
    expected = np.zeros((64, 48), bool)
    expected[:30] = True
    np.testing.assert_array_equal(samples[0].ignored, expected & ~masks.any(axis=0))
    runs = coco_mask.merge(coco_mask.frPyObjects(POLYGONS, 64, 48))
    assert coco_mask.encode(np.asfortranarray(samples[2].masks[0], np.uint8)) == runs
    with pytest.raises(AnnotationError, match=r"^1\.png: it has no annotation"):
        samples[1]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "annotation 4 has no segmentation"),
        ([[1.0, 2.0, 3.0]], "at least three corners"),
        ({"size": [3, 3], "counts": [2, 7]}, "annotation 4 has 3 x 3 pixels, the image 48 x 64"),
        ({"size": [64, 48], "counts": [64 * 48]}, "the mask of annotation 4 is empty"),
        ({"size": [64, 48], "counts": [5]}, "must be non-negative and add up"),
    ],
)
def test_faulty_coco_annotations_are_named(coco, segmentation, message):
    path, content = coco
    content["annotations"][3]["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=rf"^2\.png: .*{message}"):
        coco_samples(path)[2]


def test_files_that_are_no_coco_annotations(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="no such file"):
        coco_samples(path)
    for text, message in (("{", "cannot be read as JSON"), ("[]", "must be COCO annotations")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            coco_samples(path)


def test_rows_of_a_data_set():
    image, masks = rectangles(0)
    other, _ = rectangles(1)
    rows = {
        "image": [Image.fromarray(image), Image.fromarray(other), Image.fromarray(other)],
        "mask": [
            [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
            [Image.fromarray(masks[0].astype(np.uint8))],
            [],
        ],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.List(datasets.Image())}
    )
    samples = dataset_samples(datasets.Dataset.from_dict(rows, features=features))
    np.testing.assert_array_equal(samples[0].image, image)
    np.testing.assert_array_equal(samples[0].masks, masks)
    np.testing.assert_array_equal(samples[1].masks, masks[:1])
    with pytest.raises(AnnotationError, match="row 2: it has no mask"):
        samples[2]


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("at", [0, 1], ids=["first row", "second row"])
def test_a_corrupt_picture_in_a_row_is_named_and_refused_or_skipped(folder, column, at):
    rows = {
        name: [{"bytes": (folder / f"{name}s" / f"{n}.png").read_bytes()} for n in range(3)]
        for name in ("image", "mask")
    }
    rows[column][at]["bytes"] = rows[column][at]["bytes"][:60]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    samples = dataset_samples(datasets.Dataset.from_dict(rows, features=features))
    fault = f"row {at}: its image or mask cannot be read (image file is truncated)"
    with pytest.raises(AnnotationError, match=re.escape(f"1 of 3 samples are faulty: {fault}")):
        samples.sound()
    sound, faults = samples.sound("skip")
    assert faults == [fault]
    assert sound.names == [f"row {n}" for n in range(3) if n != at]


def test_a_data_set_in_a_folder_is_loaded_by_its_name(tmp_path, monkeypatch):
    """Of its parquet file, as the library loads one from the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pictures = [rectangles(seed) for seed in range(2)]
    ids = [(masks * np.array([[[1]], [[2]]])).sum(axis=0).astype(np.uint8) for _, masks in pictures]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {
        "image": [Image.fromarray(image) for image, _ in pictures],
        "mask": [Image.fromarray(values) for values in ids],
    }
    folder = tmp_path / "cells"
    folder.mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(folder / "validation-00000-of-00001.parquet")
    samples = load_samples(folder, split="validation")
    assert samples.names == ["row 0", "row 1"]
    for sample, (image, masks) in zip(samples, pictures, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.masks, masks)
    with pytest.raises(ValueError, match=r"cells: expected a folder with images and masks, or"):
        load_samples(folder, split="test")


def test_pixels_that_are_no_numbers_are_a_fault():
    image, masks = rectangles(0)
    spoilt = image / np.float32(255)
    rows = [{"image": spoilt.copy(), "mask": masks[0]}, {"image": spoilt, "mask": masks[0]}]
    spoilt[3, 4, 1] = np.nan
    sound, faults = dataset_samples(rows).sound("skip")
    assert sound.names == ["row 0"]
    assert faults == ["row 1: its image has pixels that are NaN or infinite"]


def test_any_sequence_of_rows_and_the_names_of_columns():
    image, masks = rectangles(0)
    rows = [{"picture": image, "label": masks[1]}]
    samples = dataset_samples(rows, "picture", "label")
    np.testing.assert_array_equal(samples[0].masks, masks[1:])
    with pytest.raises(ValueError, match=r"no column 'image'; its columns are \['picture'"):
        dataset_samples(rows)


def test_a_sample_whose_ignored_pixels_hide_an_object_is_faulty(folder):
    ids = np.array(Image.open(folder / "masks" / "0.png"))
    Image.fromarray(np.where(ids == 2, 255, ids).astype(np.uint8)).save(folder / "masks" / "0.png")
    assert len(folder_samples(folder, 255)[0].masks) == 1
    assert len(folder_samples(folder)[0].masks) == 2


def test_truth_without_unknown_pixels():
    image, masks = rectangles(0)
    np.testing.assert_array_equal(Sample("a", image, masks).truth(), masks.astype(np.int8))
