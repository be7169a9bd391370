import json

import pytest

from segment_anything_transformers import SegmentAnythingModel, evaluate, load_samples
from segment_anything_transformers.data.files import image_size
from tests.sample_folders import hide_rows, write_coco


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [False, True])
def test_evaluate_writes_what_the_function_says(run_on_data, tmp_path, zoom):
    code, out, err = run_on_data(
        "evaluate data --clicks 1,3 --max-images 2 --points-per-side 2 -o out -q" + " --zoom" * zoom
    )
    assert (code, out, err) == (0, "", "")
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["model"], content["data"]) == ("tiny", "data")
    expected = evaluate(
        SegmentAnythingModel.from_pretrained("tiny"), load_samples("data")[:2], [1, 3], zoom=zoom
    )
    assert content["means"] == expected.means()
    assert [row["image"] for row in content["objects"]] == ["0.png", "0.png", "1.png", "1.png"]
    assert image_size(str(tmp_path / "out" / "worst.png"))[0] > 800


def test_coco_annotations_are_measured_as_a_folder_is(run_on_data, tmp_path):
    write_coco(tmp_path / "coco.json")
    measured = {}
    for data in ("coco.json --images data/images", "data"):
        code, _, err = run_on_data(f"evaluate {data} --clicks 1,2 -o out -q")
        assert (code, err) == (0, "")
        measured[data] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["means"]
    of_coco, of_folder = measured.values()
    assert of_coco["all"]["objects"] == 6
    assert of_coco == of_folder


def test_an_ignore_value_is_that_of_load_samples(run_on_data, tmp_path):
    hide_rows(tmp_path / "data", rows=20)
    means = {}
    for option in ("", "--ignore-value 255"):
        code, _, err = run_on_data(f"evaluate data --clicks 1,2 {option} -o out -q")
        assert (code, err) == (0, "")
        means[option] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["means"]
    model = SegmentAnythingModel.from_pretrained("tiny")
    for option, ignore_value in (("", None), ("--ignore-value 255", 255)):
        samples = load_samples("data", ignore_value=ignore_value)
        assert means[option] == evaluate(model, samples, [1, 2]).means()
    assert [means[option]["all"]["objects"] for option in means] == [9, 6]


def test_evaluate_shows_a_table(run_on_data):
    code, out, err = run_on_data(
        "evaluate data --clicks 1 --max-images 1 --everything --points-per-side 2"
    )
    assert code == 0
    for name in ("box_oracle", "click_1", "recall_10", "found", "written to evaluation/"):
        assert name in out
    assert "1/1" in err  # the progress


def test_faulty_images_are_named(run_on_data, tmp_path):
    (tmp_path / "data" / "masks" / "0.png").unlink()
    code, out, err = run_on_data("evaluate data --clicks 1 -q")
    assert (code, out) == (2, "")
    assert err.startswith("segment-anything: 0.png: it has no mask; expected masks/0.png")
    assert err.count("\n") == 1
    code, out, err = run_on_data("evaluate data --clicks 1 --skip-faulty -q")
    assert code == 1
    fault = "0.png: it has no mask; expected masks/0.png, or files in masks/0/"
    assert err == f"segment-anything: skipped {fault}\n"
    content = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert content["means"]["all"]["objects"] == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate nowhere", "nowhere"),
        ("evaluate tiny/config.json", "must be COCO annotations"),
        ("evaluate data --clicks 3,1", "rising numbers from 1"),
        ("evaluate data --clicks many", "--clicks: expected whole numbers"),
        ("evaluate data --everything --points-per-side 0", "at least 1"),
    ],
)
def test_mistakes_get_one_line(run_on_data, line, message):
    code, _, err = run_on_data(f"{line} -q")
    assert code == 2
    assert err.startswith("segment-anything: ")
    assert message in err
    assert err.count("\n") == 1
