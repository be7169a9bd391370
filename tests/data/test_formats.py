"""Results written in each format, read again by ours and by the format's own reader."""

import json

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segment_anything_transformers.data.annotations import load_samples
from segment_anything_transformers.data.coco import coco_content
from segment_anything_transformers.data.geojson import geojson_content
from segment_anything_transformers.data.labelme import labelme_content
from segment_anything_transformers.data.outlines import signed_area
from segment_anything_transformers.data.pictures import instance_map
from segment_anything_transformers.data.records import Categories, cropped, run_lengths
from segment_anything_transformers.data.writers import WRITERS, open_writer
from segment_anything_transformers.model.mask_ops import masks_to_rles, rle_to_coco, rle_to_mask

SIZE = (120, 160)
LABELS = ("cup", "spoon", "plate")


def objects(shift):
    """A disc with a hole, two parts that belong together, and a slanted bar; none overlap."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 40, columns - 45 - shift)
    parts = np.zeros(SIZE, bool)
    parts[5:45, 100:140] = parts[50:80, 105 : 135 - shift] = True
    bar = (np.abs(rows - 100 - (columns - 80) // 8) < 9) & (np.abs(columns - 80) < 60)
    return [(distance < 35) & (distance > 12), parts, bar]


def records(shift=0):
    return [
        {"segmentation": mask, "label": label, "predicted_iou": 0.9, "stability_score": 0.8}
        for mask, label in zip(objects(shift), LABELS, strict=True)
    ]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def write(format, folder, photos, **options):
    with open_writer(format, folder, **options) as writer:
        for index in range(3):
            writer.add(photos / f"{index}.png", SIZE, records(index))
    assert not [path for path in folder.rglob("*") if "part" in path.name]
    return folder


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


SOURCES = {"coco": "coco.json", "yolo": ".", "labelme": ".", "geojson": ".", "map": ".", "png": "."}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("format", WRITERS)
def test_evaluate_and_finetune_read_what_is_written(format, exact, photos, tmp_path):
    out = write(format, tmp_path / "out", photos, exact=exact)
    finds_images = format in ("labelme", "geojson")
    samples = load_samples(out / SOURCES[format], None if finds_images else photos)
    assert len(samples) == 3
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(photos / f"{index}.png")))
        assert len(sample.masks) == 3
        for mask, expected in zip(sample.masks, objects(index), strict=True):
            if format in ("map", "png") or (exact and format != "yolo"):
                np.testing.assert_array_equal(mask, expected)
            assert iou(mask, expected) >= 0.99


@pytest.mark.parametrize("exact", [False, True])
def test_coco_for_pycocotools(exact, photos, tmp_path, capsys):
    coco = COCO(write("coco", tmp_path / "out", photos, exact=exact) / "coco.json")
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == [*LABELS]
    assert coco.getCatIds() == [1, 2, 3]
    assert [entry["file_name"] for entry in coco.loadImgs(coco.getImgIds())] == [
        "0.png",
        "1.png",
        "2.png",
    ]
    for index, image_id in enumerate(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        for annotation, mask in zip(annotations, objects(index), strict=True):
            runs = coco.annToRLE(annotation)
            assert iou(rle_to_mask(runs), mask) >= (1 if exact else 0.99)
            assert annotation["area"] == mask.sum()
            [exact_runs] = map(rle_to_coco, masks_to_rles(mask[None]))
            assert annotation["bbox"] == coco_mask.toBbox(exact_runs).tolist()
            assert annotation["score"] == 0.9
            assert annotation["iscrowd"] == 0
    assert len(set(coco.anns)) == 9
    capsys.readouterr()


def test_yolo_for_ultralytics(photos, tmp_path):
    """What its loader checks, and how it fills: coordinates cut to integers, OpenCV's fillPoly."""
    out = write("yolo", tmp_path / "out", photos)
    description = yaml.safe_load((out / "data.yaml").read_text())
    assert description["names"] == dict(enumerate(LABELS))
    for index in range(3):
        lines = (out / "labels" / f"{index}.txt").read_text().splitlines()
        for number, (line, mask) in enumerate(zip(lines, objects(index), strict=True)):
            category, *numbers = line.split()
            assert int(category) == number
            shares = np.array(numbers, np.float32).reshape(-1, 2)
            assert len(shares) >= 3
            assert shares.min() >= 0
            assert shares.max() <= 1
            filled = np.zeros(SIZE, np.uint8)
            cv2.fillPoly(filled, [(shares * SIZE[::-1]).astype(np.int32)], 1)
            assert iou(filled == 1, mask) >= 0.99


@pytest.mark.parametrize("exact", [False, True])
def test_labelme_for_labelme(exact, photos, tmp_path):
    """How labelme reads: polygons painted by PIL, masks pasted between their two points."""
    out = write("labelme", tmp_path / "out", photos, exact=exact)
    for index in range(3):
        path = out / "labelme" / f"{index}.json"
        content = json.loads(path.read_text())
        assert (path.parent / content["imagePath"]).resolve() == photos / f"{index}.png"
        assert (content["imageHeight"], content["imageWidth"]) == SIZE
        assert content["imageData"] is None
        shapes = content["shapes"]
        assert [shape["label"] for shape in shapes][:2] == ["cup", "spoon"]
        assert len(shapes) == (3 if exact else 4)
        assert {shape["shape_type"] for shape in shapes} == {"mask" if exact else "polygon"}
        groups = [shape["group_id"] for shape in shapes]
        assert groups == ([None] * 3 if exact else [None, 2, 2, None])
        if not exact:
            canvas = Image.new("1", SIZE[::-1])
            points = [tuple(point) for point in shapes[0]["points"]]
            ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
            assert iou(np.array(canvas), objects(index)[0]) >= 0.99


def test_geojson_keeps_holes_and_directions(photos):
    content = geojson_content("0.png", SIZE, records(), tolerance=0)
    disc, parts, _ = content["features"]
    assert content["image"] == {"path": "0.png", "width": 160, "height": 120}
    assert disc["geometry"]["type"] == "Polygon"
    assert parts["geometry"]["type"] == "MultiPolygon"
    assert len(parts["geometry"]["coordinates"]) == 2
    outer, hole = (np.array(ring) for ring in disc["geometry"]["coordinates"])
    for ring in (outer, hole):
        np.testing.assert_array_equal(ring[0], ring[-1])
    areas = [signed_area(ring[:-1]) for ring in (outer, hole)]
    assert areas[0] > 0 > areas[1]  # counterclockwise and clockwise, as RFC 7946 asks
    assert sum(areas) == objects(0)[0].sum() == disc["properties"]["area"]
    assert disc["properties"]["label"] == "cup"


def test_geojson_on_a_map(photos, tmp_path):
    north_up = (0.5, 0.0, 1000.0, 0.0, -0.5, 7000.0)
    content = geojson_content(
        str(photos / "0.png"), SIZE, records(), tolerance=0, transform=north_up
    )
    outer = np.array(content["features"][0]["geometry"]["coordinates"][0])
    assert signed_area(outer[:-1]) > 0
    assert outer[:, 0].min() == 1000 + 0.5 * np.nonzero(objects(0)[0].any(axis=0))[0][0]
    assert outer[:, 1].max() == 7000 - 0.5 * np.nonzero(objects(0)[0].any(axis=1))[0][0]
    (tmp_path / "map.geojson").write_text(json.dumps(content))
    [sample] = load_samples(tmp_path / "map.geojson")
    np.testing.assert_array_equal(sample.masks, objects(0))


def test_an_instance_map_has_16_bits(photos, tmp_path):
    many = np.arange(300 * 300).reshape(300, 300) // 290
    found = [{"segmentation": many == number} for number in range(many.max() + 1)]
    np.testing.assert_array_equal(instance_map((300, 300), found), many + 1)
    with open_writer("map", tmp_path) as writer:
        writer.add(photos / "0.png", (300, 300), found)
    with Image.open(tmp_path / "masks" / "0.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(picture), many + 1)


def test_in_a_map_the_smaller_mask_shows():
    big, small = np.ones((4, 4), bool), np.eye(4, dtype=bool)
    both = instance_map((4, 4), [{"segmentation": small}, {"segmentation": big}])
    np.testing.assert_array_equal(both, np.where(small, 1, 2))


def test_a_million_pixels_of_another_form_are_the_same_record():
    mask = objects(0)[0]
    [runs] = masks_to_rles(mask[None])
    for segmentation in (mask, runs, rle_to_coco(runs)):
        part = cropped(run_lengths({"segmentation": segmentation}, SIZE))
        left, top, width, height = part.box_xywh
        np.testing.assert_array_equal(part.mask, mask[top : top + height, left : left + width])
        assert part.mask.sum() == mask.sum()


@pytest.mark.parametrize("format", WRITERS)
def test_nothing_found_is_written_too(format, photos, tmp_path):
    with open_writer(format, tmp_path / "out") as writer:
        writer.add(photos / "0.png", SIZE, [])
        writer.add(photos / "1.png", SIZE, [{"segmentation": np.zeros(SIZE, bool)}])
    if format == "coco":
        content = json.loads((tmp_path / "out" / "coco.json").read_text())
        assert len(content["images"]) == 2
        assert content["annotations"][0]["bbox"] == [0, 0, 0, 0]


@pytest.mark.parametrize("format", ["yolo", "labelme", "geojson", "map", "png"])
def test_a_second_run_replaces_an_images_results_and_keeps_the_others(format, photos, tmp_path):
    out = write(format, tmp_path / "out", photos)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with open_writer(format, out) as writer:
        writer.add(photos / "1.png", SIZE, records()[1:2])
    place = None if format in ("labelme", "geojson") else photos
    samples = load_samples(out, place)
    assert [len(sample.masks) for sample in samples] == [3, 1, 3]
    for path, content in before.items():
        if "1" not in path.relative_to(out).parts[1:2] and path.stem != "1":
            assert path.read_bytes() == content


def test_yolo_goes_on_with_the_numbers_that_are_there(photos, tmp_path):
    out = write("yolo", tmp_path / "out", photos)
    with open_writer("yolo", out) as writer:
        writer.add(photos / "1.png", SIZE, [{**records()[0], "label": "fork"}, records()[1]])
    text = (out / "labels" / "1.txt").read_text()
    assert [line.split()[0] for line in text.splitlines()] == ["3", "1"]
    assert yaml.safe_load((out / "data.yaml").read_text())["names"][3] == "fork"


def test_a_run_that_fails_leaves_the_file_of_the_last_one(photos, tmp_path):
    path = write("coco", tmp_path / "out", photos) / "coco.json"
    before = path.read_bytes()

    def run():
        with open_writer("coco", tmp_path / "out") as writer:
            writer.add(photos / "0.png", SIZE, records())
            writer.add(photos / "1.png", SIZE, [{"segmentation": np.ones((2, 3), bool)}])

    with pytest.raises(ValueError, match="has 3 x 2 pixels, the image 160 x 120"):
        run()
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_the_writer_of_coco_writes_what_the_function_says(photos, tmp_path):
    out = write("coco", tmp_path / "out", photos)
    expected = coco_content([(f"{index}.png", SIZE, records(index)) for index in range(3)])
    assert json.loads((out / "coco.json").read_text()) == expected


def test_coco_keeps_the_numbers_of_annotations_that_it_is_made_from(tmp_path):
    with open_writer("coco", tmp_path) as writer:
        entry = {"id": 77, "file_name": "a/b.jpg", "width": 160, "height": 120, "license": 3}
        writer.add_image(entry, [{**records()[0], "id": 1234, "category_id": 18}])
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["images"] == [entry]
    [annotation] = content["annotations"]
    assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (1234, 77, 18)


def test_categories_have_the_numbers_that_are_given():
    categories = Categories(["a", "b"], first=1)
    assert categories == {"a": 1, "b": 2}
    assert categories["c"] == 3
    assert Categories({"x": 7})["y"] == 8


FAULTY = {
    "labels/0.txt": ("0 0.1 0.2 0.3 0.4\n", "0.txt, line 1 is a box; expected a segment"),
    "labels/1.txt": ("0 0.1 x 0.3 0.4 1 1\n", "1.txt, line 1: expected numbers"),
    "labels/2.txt": ("\n0 0.1 0.2 0.3 0.4 1.5 1\n", "2.txt, line 2: expected a category, then x"),
}


def test_faulty_labels_are_named(photos, tmp_path):
    out = write("yolo", tmp_path / "out", photos)
    for name, (text, _) in FAULTY.items():
        (out / name).write_text(text)
    samples = load_samples(out, photos)
    for index, (_, message) in enumerate(FAULTY.values()):
        with pytest.raises(ValueError, match=message):
            samples[index]


def test_a_labelme_shape_without_area_is_named(photos, tmp_path):
    content = labelme_content(str(photos / "0.png"), SIZE, records())
    content["shapes"][1]["shape_type"] = "linestrip"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"shape 1 \(counted from 0\) is a linestrip, which has no"
    ):
        load_samples(tmp_path / "a.json")[0]


def test_rectangles_and_circles_of_labelme_are_read(photos, tmp_path):
    content = labelme_content(str(photos / "0.png"), SIZE, [])
    content["shapes"] = [
        {"label": "a", "points": [[10, 20], [30.5, 40]], "shape_type": "rectangle"},
        {"label": "b", "points": [[80, 60], [80, 90]], "shape_type": "circle"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(content))
    rectangle, circle = load_samples(tmp_path / "a.json")[0].masks
    assert rectangle.sum() == rectangle[20:41, 10:31].sum() == 21 * 21
    assert circle.sum() == pytest.approx(np.pi * 30**2, rel=0.05)


def test_a_folder_that_is_no_data_set_is_called_so(photos):
    with pytest.raises(ValueError, match=r"photos is no data set: expected the folders images and"):
        load_samples(photos)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of coco, yolo, .*, got 'voc'"):
        open_writer("voc", tmp_path)
