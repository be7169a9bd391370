"""The options --format, --exact and --label, folders and patterns as images, second runs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers.cli.arguments import FORMATS
from segment_anything_transformers.cli.main import main
from segment_anything_transformers.data.annotations import load_samples
from segment_anything_transformers.data.writers import WRITERS
from segment_anything_transformers.model.mask_ops import rle_to_mask
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model(small_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys, model_folder, tmp_path, monkeypatch):
    """Runs a command line in a folder with photos/a.png, photos/b.png and photos/more/c.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "more/c")):
        noise = np.random.default_rng(seed).integers(0, 256, (10, 15, 3), np.uint8)
        Image.fromarray(noise).resize((90, 60)).save(tmp_path / "photos" / f"{name}.png")

    def run_command(line):
        code = main([*line.split(), "--model", str(model_folder)])
        return code, capsys.readouterr().err

    return run_command


def test_the_formats_are_the_writers():
    assert list(FORMATS) == list(WRITERS)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_found_is_written_for_other_tools(run, format, tmp_path):
    shutil.rmtree(tmp_path / "photos" / "more")
    line = f"predict photos --point 30,20 --format {format} --exact --label cup -o out --quiet"
    assert run(line) == (0, "")
    place = None if format in ("labelme", "geojson") else tmp_path / "photos"
    source = tmp_path / "out" / {"coco": "coco.json"}.get(format, "")
    samples = load_samples(source, place)
    for sample, name in zip(samples, "ab", strict=True):
        content = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        [expected] = [rle_to_mask(mask["segmentation"]) for mask in content["masks"]]
        [mask] = sample.masks
        if format != "yolo":  # the parts of a mask are joined by lines there
            np.testing.assert_array_equal(mask, expected)
        assert (mask | expected == mask).all()


def test_folders_and_patterns_stand_for_images(run, tmp_path):
    def names():
        return sorted(path.stem for path in (tmp_path / "segmented").glob("*.json"))

    assert run("predict photos --point 3,4 --json-only")[0] == 0
    assert names() == ["a", "b"]
    assert run("predict photos --recursive --point 3,4 --json-only")[0] == 0
    assert names() == ["a", "b", "c"]
    (tmp_path / "segmented" / "a.json").unlink()
    assert run("predict photos/?.png photos/a.png --point 3,4 --json-only")[0] == 0
    assert names() == ["a", "b", "c"]
    (tmp_path / "empty").mkdir()
    for named, message in (
        ("empty", "empty: no image in this folder; --recursive looks into its folders"),
        ("*.jpg", "*.jpg: no such file"),
    ):
        assert run(f"predict {named} --point 3,4") == (2, f"segment-anything: {message}\n")


def test_a_second_run_leaves_nothing_of_the_first(run, tmp_path):
    everything = "--pred-iou-thresh -9 --stability-score-thresh 0 --box-nms-thresh 1"
    assert run(f"generate photos --points-per-side 3 {everything}")[0] == 0
    folder = tmp_path / "segmented"
    assert len(list(folder.glob("a_mask_*.png"))) > 3
    others = {path.name for path in folder.glob("b*")}
    (folder / "a_mask_of_mine.png").touch()
    assert run("predict photos/a.png --point 3,4")[0] == 0
    assert {path.name for path in folder.glob("a*")} == {
        "a.json",
        "a_mask_00.png",
        "a_mask_of_mine.png",
        "a_overlay.png",
    }
    assert {path.name for path in folder.glob("b*")} == others
