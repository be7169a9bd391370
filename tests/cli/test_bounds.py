"""What nobody can mean is refused in a line, at once; and no picture takes the machine down."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers import SAMAutomaticMaskGenerator, SegmentAnythingImageProcessor
from segment_anything_transformers.cli import files as cli_files
from segment_anything_transformers.cli.main import main
from segment_anything_transformers.model.mask_ops import masks_to_rles, rle_to_coco, rle_to_mask
from tests.environments import run_python
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--points-per-side 1000000", "at most 1000 points a side, got 1000000"),
        ("--crop-n-layers 20", "crop_n_layers must be at most 6, got 20"),
        ("--points-per-batch 1000000", "points_per_batch must be at most 10000, got 1000000"),
    ],
)
def test_searches_without_end_are_refused(run_on_data, options, message):
    code, _, error = run_on_data(f"generate data/images/0.png {options}")
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate a.png --pred-iou-thresh nan", "expected a number, got 'nan'"),
        ("generate a.png --box-nms-thresh inf", "expected a number, got 'inf'"),
        ("demo --serve --port 99999", "expected a whole number from 0 to 65535, got '99999'"),
        ("demo --serve --port -1", "expected a whole number from 0 to 65535, got '-1'"),
        ("evaluate data --max-images -1", "expected a whole number of at least 1, got '-1'"),
        ("finetune data -o a --steps 0", "expected a whole number from 1 to 1000000000, got '0'"),
        ("finetune data -o a --batch-size 1e3", "expected a whole number from 1 to 10000, got"),
        ("finetune data -o a --clicks 1000000", "expected a whole number from 0 to 1000, got"),
        ("finetune data -o a --workers 99999", "expected a whole number from 0 to 1000, got"),
        ("finetune data -o a --seed -1", "expected a whole number from 0 to 4294967295, got '-1'"),
        ("finetune data -o a --learning-rate nan", "expected a number above 0, got 'nan'"),
        ("finetune data -o a --learning-rate 0", "expected a number above 0, got '0'"),
        ("finetune data -o a --learning-rate inf", "expected a number above 0, got 'inf'"),
        ("predict a.png --point 1,1 --bands 0,1,2", "numbers from 1 such as 4,3,2"),
    ],
)
def test_numbers_that_are_none_are_refused(capsys, line, message):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_generator_and_the_processor_have_the_same_bounds():
    model = random_model(small_config())
    for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
        with pytest.raises(ValueError, match=f"{name} must be a number, got nan"):
            SAMAutomaticMaskGenerator(model, **{name: float("nan")})
    with pytest.raises(ValueError, match="at most 1000 points a side, got 1001"):
        SAMAutomaticMaskGenerator(model, points_per_side=1001)
    with pytest.raises(ValueError, match="crop_n_layers must be at most 6, got 7"):
        SAMAutomaticMaskGenerator(model, crop_n_layers=7)
    with pytest.raises(ValueError, match="crop_n_layers must be at most 6, got 20"):
        SegmentAnythingImageProcessor().generate_crop_boxes(np.zeros((9, 9, 3)), crop_n_layers=20)


def test_clicks_without_end_are_refused(run_on_data):
    code, _, error = run_on_data("evaluate data --clicks 1,999999999999")
    assert code == 2
    assert error == "segment-anything: At most 1000 clicks are measured, got 999999999999.\n"


def test_a_pipe_is_no_image_and_is_not_waited_for(run_on_data):
    os.mkfifo("pipe.png")
    code, _, error = run_on_data("predict pipe.png data/images/0.png --point 9,9")
    assert code == 1
    assert error.startswith("segment-anything: pipe.png: neither a file nor a folder, but a pipe")


def test_a_name_that_the_terminal_cannot_print(run_on_data, monkeypatch):
    os.rename("data/images/0.png", "data/images/Grüße[b].png")
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        monkeypatch.setattr(sys, name, stream)
    code, _, _ = run_on_data("predict data/images/Grüße[b].png --point 9,9")
    assert code == 0
    sys.stdout.flush()
    shown = sys.stdout.buffer.getvalue().decode("ascii")
    assert "Gr\\xfc\\xdfe[b].png" in shown


def test_the_overlay_of_a_large_image_fits(tmp_path, monkeypatch):
    assert cli_files.MAX_OVERLAY_PIXELS == 4096**2
    monkeypatch.setattr(cli_files, "MAX_OVERLAY_PIXELS", 10_000)
    image = Image.new("RGB", (600, 400), "grey")
    mask = np.zeros((400, 600), bool)
    mask[100:300, 150:450] = True
    records = [{"segmentation": rle_to_coco(masks_to_rles(mask[None])[0])}]
    prompts = {"points": [[300, 200]], "labels": [1], "boxes": [[150, 100, 450, 300]]}
    cli_files.write_results(tmp_path, "large.jpg", image, records, {"prompts": prompts})
    overlay = Image.open(tmp_path / "large_overlay.png")
    assert 9_500 < overlay.width * overlay.height <= 10_000
    assert overlay.width / overlay.height == pytest.approx(1.5, abs=2e-2)
    written = np.asarray(Image.open(tmp_path / "large_mask_00.png")) > 0
    np.testing.assert_array_equal(written, rle_to_mask(records[0]["segmentation"]))
    scale = overlay.width / 600
    x, y = round(200 * scale), round(150 * scale)
    assert overlay.getpixel((x, y)) != overlay.getpixel((round(50 * scale), y))


def peak_gib(code):
    """The most memory that a process of its own took, beyond what importing takes."""
    measured = (
        "import resource\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
    )
    return run_python(measured + code)


def test_drawing_large_images_takes_little_memory(tmp_path):
    """Predict on a JPEG of 12,000 x 9,000 took 9.3 GB, of which 7.6 for its overlay.

    A sixteenth of it, and of the largest overlay: 0.06 GiB, where all of it would take 0.48.
    """
    code = (
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from segment_anything_transformers.cli import files\n"
        "files.MAX_OVERLAY_PIXELS //= 16\n"
        "image = Image.new('RGB', (3000, 2250))\n"
        "runs = {'size': [2250, 3000], 'counts': [2250 * 750, 2250 * 1500, 2250 * 750]}\n"
        "before = peak()\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "files.write_results(folder, 'a.jpg', image, [{'segmentation': runs}] * 3, {})\n"
        "result = peak() - before"
    )
    assert peak_gib(code) < 0.12


def test_coco_shapes_that_asked_for_all_memory_take_none(tmp_path):
    code = (
        "import json\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from segment_anything_transformers.data.annotations_coco import coco_samples\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "Image.new('L', (48, 64)).save(folder / '0.png')\n"
        "shapes = [[[float('nan'), 1, 2, 3, 4, 5]], [[1e9, 0, 5, 5, 0, 1e9]],\n"
        "          {'size': [10**6, 10**6], 'counts': [10**12]}]\n"
        "before = peak()\n"
        "for shape in shapes:\n"
        "    one = {'id': 1, 'image_id': 1, 'segmentation': shape}\n"
        "    file = {'images': [{'id': 1, 'file_name': '0.png'}], 'annotations': [one]}\n"
        "    (folder / 'a.json').write_text(json.dumps(file))\n"
        "    try:\n"
        "        coco_samples(folder / 'a.json')[0]\n"
        "    except ValueError:\n"
        "        continue\n"
        "    raise SystemExit(f'{shape} was taken')\n"
        "result = peak() - before"
    )
    assert peak_gib(code) < 0.1
