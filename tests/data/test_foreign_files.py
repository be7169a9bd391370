"""Files of annotations that others wrote: whatever is in them, a fault is a message."""

import copy
import functools
import json
import operator
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from segment_anything_transformers import load_samples
from segment_anything_transformers.data.annotations_coco import coco_samples
from segment_anything_transformers.data.samples import AnnotationError
from segment_anything_transformers.data.writers import open_writer
from segment_anything_transformers.model.mask_ops import masks_to_rles

HEIGHT, WIDTH = 24, 20
ODD = (None, True, -1, 1e9, 1e300, 10**30, float("nan"), "x", "\ud800", [], {}, [None], [[1, 2]])
"""What stands in the place of everything."""


def rectangle():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:15, 3:12] = True
    return mask


@pytest.fixture
def image(tmp_path):
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "0.png")
    return tmp_path / "0.png"


def by_writer(format, exact):
    def write(image):
        with open_writer(format, image.parent, exact=exact) as writer:
            writer.add(image, (HEIGHT, WIDTH), [{"segmentation": rectangle(), "label": "cup"}])
        [path] = image.parent.rglob("*.*json")
        return path

    return write


def by_command(image):
    records = [{"file": None, "segmentation": masks_to_rles(rectangle()[None])[0]}]
    path = image.parent / "0.json"
    path.write_text(json.dumps({"image": "0.png", "masks": records}))
    return path


KINDS = {
    "coco": by_writer("coco", False),
    "coco, run lengths": by_writer("coco", True),
    "labelme": by_writer("labelme", False),
    "labelme, masks": by_writer("labelme", True),
    "geojson": by_writer("geojson", False),
    "command": by_command,
}


def places(value, path=()):
    """Paths to all values; of lists to the first two."""
    yield path
    inside = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value[:2]) if isinstance(value, list) else inside:
        yield from places(child, (*path, key))


def changed(content, path):
    """The content with each of `ODD` in that place, and without it."""
    for odd in ODD:
        if not path:
            yield odd
            continue
        other = copy.deepcopy(content)
        at = other
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = odd
        yield other
    if path:
        del at[path[-1]]
        yield other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_stands_anywhere_is_taken_or_refused_in_words(image, kind):
    path = KINDS[kind](image)
    content = json.loads(path.read_text())
    np.testing.assert_array_equal(load_samples(path)[0].masks, rectangle()[None])
    taken, messages = 0, []
    for place in places(content):
        for other in changed(content, place):
            path.write_text(json.dumps(other))
            try:
                samples, _ = load_samples(path).sound("skip")
            except ValueError as error:
                messages.append(str(error))
            else:
                assert samples[0].masks.shape[1:] == (HEIGHT, WIDTH)
                taken += 1
    assert all(messages)
    assert len(messages) > 50
    assert taken > 10


FIRST_CORNER = {
    "labelme": ("shape 0", ["shapes", 0, "points", 0]),
    "geojson": ("feature 0", ["features", 0, "geometry", "coordinates", 0, 0]),
}


@pytest.mark.parametrize("far", [1e9, float("nan")])
@pytest.mark.parametrize("kind", FIRST_CORNER)
def test_corners_far_outside_are_named(image, kind, far):
    path = KINDS[kind](image)
    where, place = FIRST_CORNER[kind]
    content = json.loads(path.read_text())
    functools.reduce(operator.getitem, place, content)[0] = far
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=rf"{where} .*: a corner at .* is far outside"):
        load_samples(path)[0]


def test_masks_of_another_size_in_labelmes_files_are_not_decoded(image):
    path = KINDS["labelme, masks"](image)
    content = json.loads(path.read_text())
    content["shapes"][0]["points"] = [[0, 0], [3, 3]]
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"shape 0 .*its 9 x 11 pixels do not fit"):
        load_samples(path)[0]


def yolo(folder, labels, description=None):
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "images/0.png")
    (folder / "labels/0.txt").write_bytes(labels)
    if description is not None:
        (folder / "data.yaml").write_text(description)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"", "there is no object in its masks"),
        (b"\n \n", "there is no object in its masks"),
        (b"0 nan .1 .5 .1 .5 .5", "corners from 0 to 1"),
        (b"0 1e300 .1 .5 .1 .5 .5", "corners from 0 to 1"),
        (b"0 a b c d e f", "0.txt, line 1: expected numbers"),
        (b"\xff\xfe", "its labels 0.txt cannot be read"),
    ],
)
def test_labels_of_yolo_that_are_none(tmp_path, labels, message):
    yolo(tmp_path, labels)
    with pytest.raises(AnnotationError, match=message):
        load_samples(tmp_path)[0]


DESCRIPTION = {"path": ".", "train": "images", "val": "images", "names": {0: "cup"}}


def test_whatever_stands_in_a_description_of_yolos_is_taken_or_refused(tmp_path):
    yolo(tmp_path, b"0 .1 .1 .5 .1 .5 .5")
    texts = [
        yaml.safe_dump(other)
        for place in places(DESCRIPTION)
        for other in changed(DESCRIPTION, place)
    ]
    texts += ["[", "a: &a [*a]", "a: *b", "!!python/object:os.system x", "a: 2020-13-45", "\0"]
    messages = []
    for text in ["[" * 500, *texts]:
        (tmp_path / "data.yaml").write_text(text)
        try:
            load_samples(tmp_path / "data.yaml")
        except ValueError as error:
            messages.append(str(error))
    assert all(messages)
    assert len(messages) > 30


@pytest.mark.parametrize("name", ["a.json", "a.geojson"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="neither a file nor a folder, but a pipe"):
        load_samples(tmp_path / name)


def test_more_masks_than_there_is_room_for_are_not_made(image, monkeypatch, tmp_path):
    monkeypatch.setattr("segment_anything_transformers.data.checks.MAX_MASK_BYTES", 1000)
    for kind, write in KINDS.items():
        folder = tmp_path / kind
        folder.mkdir()
        Image.new("L", (WIDTH, HEIGHT)).save(folder / "0.png")
        path = write(folder / "0.png")
        content = json.loads(path.read_text())
        name = {"coco": "annotations", "geojson": "features", "command": "masks"}.get(
            kind.partition(",")[0], "shapes"
        )
        content[name] *= 3
        path.write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match="3 objects in 20 x 24 pixels need"):
            load_samples(path)[0]
    yolo(tmp_path, b"0 .1 .1 .5 .1 .5 .5\n" * 3)
    with pytest.raises(AnnotationError, match="3 objects in 20 x 24 pixels need"):
        load_samples(tmp_path)[0]


def test_numbers_of_too_many_digits_are_refused(image):
    (image.parent / "a.json").write_text(f'{{"images": [], "annotations": [{"1" * 9999}]}}')
    with pytest.raises(ValueError, match=r"a\.json cannot be read as JSON"):
        coco_samples(image.parent / "a.json")
