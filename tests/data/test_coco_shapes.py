"""COCO files as they are found: shapes that are accepted, and shapes that are refused in words."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers.data.annotations_coco import coco_samples
from segment_anything_transformers.data.samples import AnnotationError

SQUARE = [5.0, 4.0, 30.0, 4.0, 30.0, 20.0, 5.0, 20.0]


@pytest.fixture
def sample(tmp_path):
    """The sample of one image, 48 x 64, with one annotation."""
    Image.new("RGB", (48, 64)).save(tmp_path / "0.png")

    def read(segmentation, image=(), **annotation):
        content = {
            "images": [{"id": 7, "file_name": "0.png", **dict(image)}],
            "annotations": [{"id": 1, "image_id": 7, "segmentation": segmentation, **annotation}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        return coco_samples(tmp_path / "a.json")[0]

    return read


def square():
    mask = np.zeros((64, 48), bool)
    mask[4:20, 5:30] = True
    return mask


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        SQUARE,
        [[str(number) for number in SQUARE]],
        [np.array(SQUARE).reshape(-1, 2).tolist()],
        {"size": ["64", "48"], "counts": [5 * 64 + 4, *[16, 48] * 24, 16, 44 + 18 * 64]},
    ],
)
def test_shapes_that_are_common(sample, segmentation):
    found = sample(segmentation)
    assert found.masks.shape == (1, 64, 48)
    np.testing.assert_array_equal(found.masks[0], square())


def test_numbers_in_quotes(sample):
    image = {"id": "7", "height": "64", "width": "48.0"}
    found = sample([SQUARE], image, image_id=7, iscrowd="0")
    np.testing.assert_array_equal(found.masks, square()[None])
    assert found.ignored is None
    with pytest.raises(AnnotationError, match="\"height\" must be a whole number, got 'tall'"):
        sample([SQUARE], {"height": "tall"})


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[float("nan"), 2, 3, 4, 5, 6]], r"a corner at \(nan, 2\) is far outside the image of 48"),
        ([[1e9, 2, 3, 4, 5, 6]], r"a corner at \(1e\+09, 2\) is far outside the image of 48 x 64"),
        ([[1, 2, 3, 4, -1e300, 6]], r"far outside"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "has 1000000 x 1000000 pixels, the image"),
        ({"size": 3, "counts": [9]}, r"size must be \[height, width\], got 3"),
        ({"size": [64, 48], "counts": {"a": 1}}, "counts must be run lengths"),
        ({"size": [64, 48], "counts": ["x"]}, "invalid literal|counts must be"),
        ({"size": [64, 48], "counts": [10**30]}, "counts must be run lengths"),
        ([["a", "b", "c", "d", "e", "f"]], "a polygon must be numbers x1, y1"),
        ([[{"x": 1}] * 6], "a polygon must be numbers x1, y1"),
        ([[[1, 2], [3]]], "a polygon must be numbers x1, y1"),
        ("polygon", "annotation 1 has no segmentation"),
        (5, "annotation 1 has no segmentation"),
    ],
)
def test_shapes_that_make_no_sense_are_named(sample, segmentation, message):
    with pytest.raises(AnnotationError, match=rf"^0\.png: .*({message})"):
        sample(segmentation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read as JSON: it is nested too deep"),
        ('{"images": ["a"], "annotations": []}', "objects {...} in \"images\", got 'a'"),
        ('{"images": [3], "annotations": []}', 'objects {...} in "images", got 3'),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [[1]]}',
            'objects {...} in "annotations", got [1]',
        ),
        ('{"images": [{"id": [1], "file_name": "a"}], "annotations": []}', 'a number as "id"'),
        ('{"images": [{"id": 1, "file_name": 2}], "annotations": []}', 'a text as "file_name"'),
        ('{"images": {"a": 1}, "annotations": []}', "must be COCO annotations"),
    ],
)
def test_files_of_other_shapes_are_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    start = re.escape(str(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=f"^{start}.*{re.escape(message)}"):
        coco_samples(tmp_path / "a.json")
