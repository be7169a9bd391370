"""What the benchmarks write and count; they themselves are run by `make bench`."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import gpu, growth, profiles, quality, scaling, speed, switches, thresholds
from benchmarks.speeds import calls, measure, page, report
from benchmarks.speeds.cases import CASES
from docs import make_training_curve
from examples.scene_dataset import shards
from examples.scenes.pools import write_pool
from examples.training_start import EncoderShape
from segment_anything_transformers import SAMPredictor
from segment_anything_transformers.data.samples import Sample
from segment_anything_transformers.evaluation.evaluation import Evaluation, ObjectQuality
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.model.checkpoints import WEIGHTS_FOLDER
from segment_anything_transformers.model.layers import linear
from segment_anything_transformers.model.mask_ops import (
    masks_to_boxes,
    point_grid,
    resize_bilinear,
    stability_scores,
)
from tests.fake_backend import small_config
from tests.few_scenes import write_grey_square
from tests.sample_folders import rectangle_samples
from tests.tiny import random_model

RESULTS = {
    "rate": 100e9,
    "seconds": {"ours": 1.0, "transformers": 5.0, "Meta": 8.0},
    "operations": {"ours": 50e9, "transformers": 250e9},
    "memory": {
        "ours": {"above": 0.2e9, "peak": 1e9, "seconds": 1.1},
        "transformers": {"above": 2e9, "peak": 3e9, "seconds": 5.1},
    },
}
TABLE = """\
### Decoder of sam_vit_b, 64 clicks, three masks each, fp32

|  | seconds | ours / theirs | GFLOP | of the machine's rate | peak memory above the weights | \
ours / theirs |
| --- | --- | --- | --- | --- | --- | --- |
| ours | 1 |  | 50 | 50% | 0.20 GB (1.00 in all) |  |
| transformers | 5 | 0.20 | 250 | 50% | 2.00 GB (3.00 in all) | 0.10 |
| Meta | 8 | 0.12 |  |  |  |  |

- time, ours / transformers: 0.20, asked: at most 0.25
- peak memory above the weights, ours / transformers: 0.10, asked: at most 0.2
"""


# ---- the page


def test_a_part_of_the_page_is_replaced_and_no_other(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("# Top\n\n<!-- a -->\nold\n<!-- /a -->\n\ntext\n\n<!-- b -->\nb\n<!-- /b -->\n")
    page.write_part("a", "new\n\n", file)
    expected = "# Top\n\n<!-- a -->\n\nnew\n\n<!-- /a -->\n\ntext\n\n<!-- b -->\nb\n<!-- /b -->\n"
    assert file.read_text() == expected
    page.write_part("a", "new", file)
    assert file.read_text() == expected
    with pytest.raises(ValueError, match="no part between <!-- c --> and <!-- /c -->"):
        page.write_part("c", "new", file)


def test_the_page_has_a_part_for_every_script():
    text = page.PAGE.read_text()
    for name in ("speed", "profiles", "growth", "switches", "gpu"):
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->\n") == 1
        assert f"`python -m benchmarks.{name}`" in text


def test_page_and_readme_show_what_was_measured():
    results = json.loads(speed.RESULTS.read_text())
    for file, text in ((page.PAGE, report.part(results)), (page.README, report.summary(results))):
        assert f"<!-- speed -->\n\n{text.strip()}\n\n<!-- /speed -->" in file.read_text()


def test_the_quality_is_shown_as_measured():
    results = json.loads((make_training_curve.RESULTS / make_training_curve.SHIPPED).read_text())
    text = (WEIGHTS_FOLDER / "sam_vit_t" / "README.md").read_text()
    assert text.endswith(quality.section(results))
    training = (page.ROOT / "docs" / "training.md").read_text()
    parts = {
        "weights": make_training_curve.table(),
        "goals": make_training_curve.estimate(),
        "compared": make_training_curve.compared(),
    }
    for name, part in parts.items():
        assert f"<!-- {name} -->\n\n{part}\n\n<!-- /{name} -->" in training


def test_columns_without_anything_are_left_out():
    table = page.table(["", "seconds", "memory"], [["ours", "1", ""], ["theirs", "2", ""]])
    assert table == "|  | seconds |\n| --- | --- |\n| ours | 1 |\n| theirs | 2 |"


# ---- cases


def test_a_case_as_a_table():
    assert report.table("decoder", RESULTS) == TABLE


def test_what_was_not_measured_is_not_shown():
    table = report.table("decoder", {"seconds": {"ours": 1.0, "Meta": 4.0}, "memory": {}})
    assert table.splitlines()[2:] == [
        "|  | seconds | ours / theirs |",
        "| --- | --- | --- |",
        "| ours | 1 |  |",
        "| Meta | 4 | 0.25 |",
    ]


def test_a_goal_in_bytes():
    figures = {"above": 1.0e9, "peak": 1.5e9}
    results = {"seconds": {"our generator": 9.0}, "memory": {"our generator": figures}}
    asked = "- peak memory with the process, our generator: 1.50 GB, asked: at most 1.6 GB"
    assert asked in report.table("large", results).splitlines()


def test_a_case_of_another_machine_says_so():
    machine = {"processor": "A CPU", "threads": 2, "fp32 matrix products": "400 GFLOP/s"}
    other = {**machine, "fp32 matrix products": "190 GFLOP/s"}
    case = {"seconds": {"ours": 1.0}, "memory": {}}
    text = report.part(
        {"keras-encoder": {**case, "machine": other}, "encoder": {**case, "machine": machine}}
    )
    assert text.startswith(
        "- processor: A CPU\n- threads: 2\n- fp32 matrix products: 400 GFLOP/s\n"
    )
    assert text.count("GFLOP/s") == 2
    line = "Measured apart: fp32 matrix products 190 GFLOP/s."
    assert f"### {CASES['keras-encoder'].title}\n\n{line}\n\n|" in text


@pytest.mark.parametrize("name", CASES)
def test_goals_speak_of_contestants_and_of_what_is_measured(name):
    case = CASES[name]
    assert set(case.operations) <= set(case.makers)
    for goal in case.goals:
        assert {goal.of, goal.against} <= {*case.makers, None}
        assert case.memory or goal.figure == "seconds"


# ---- operations


@pytest.mark.parametrize(
    ("call", "products"),
    [
        (lambda: nn.Linear(7, 5)(torch.randn(3, 7)), 3 * 7 * 5),
        (lambda: linear(nn.Linear(7, 5), torch.randn(3, 2, 7)), 3 * 2 * 7 * 5),
        (lambda: torch.randn(2, 3, 4) @ torch.randn(2, 4, 5), 2 * 3 * 4 * 5),
        (
            lambda: torch.zeros(2, 3, 5).baddbmm_(torch.randn(2, 3, 4), torch.randn(2, 4, 5)),
            2 * 3 * 4 * 5,
        ),
        (lambda: nn.Conv2d(3, 5, 2)(torch.randn(1, 3, 4, 4)), 3 * 5 * 4 * 9),
        (
            lambda: nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 6, 4)),
            2 * 2 * 6 * 6 * 4,
        ),
    ],
    ids=["linear", "our linear", "batched", "in place", "convolution", "attention"],
)
@torch.no_grad()
def test_operations_are_two_for_each_product(call, products):
    call()  # the first one also tries what this build of PyTorch can do
    assert measure.operations(call) == 2 * products


# ---- profiles


def test_the_operators_of_a_call_in_pytorch():
    left, right = torch.randn(2, 200, 200)
    operators = profiles.of_torch(lambda: (left @ right, left @ right, left + right))
    assert operators["aten::mm"][1] == 2
    assert operators["aten::add"][1] == 1
    assert operators["aten::mm"][0] > 0


@pytest.mark.tf
def test_the_operators_of_a_call_in_tensorflow():
    import tensorflow as tf

    matrix = tf.random.normal((200, 200))
    product = tf.function(lambda matrix: tf.nn.softmax(matrix @ matrix) @ matrix)
    product(matrix)
    operators = profiles.of_tensorflow(lambda: product(matrix).numpy())
    [products] = [count for name, (_, count) in operators.items() if "MatMul" in name]
    assert products == 2


def test_a_profile_as_a_table():
    operators = {f"op{index}": (index / 1000, index) for index in range(1, 11)}
    lines = profiles.table("A click", {"seconds": 0.1, "operators": operators}).splitlines()
    assert lines[:6] == [
        "### A click",
        "",
        "100 ms.",
        "",
        "| operator | ms in all its calls | calls |",
        "| --- | --- | --- |",
    ]
    assert lines[6] == "| op10 | 10 | 10 |"
    assert lines[-2] == "| others | 3 | 3 |"
    # the call was timed without the profiler
    assert lines[-1] == "| between operators: Python, numpy | 45 |  |"


# ---- growth, switches, GPU


def test_growth_is_compared_with_proportion():
    figures = {64: {"seconds": 2.0, "above": 1e8}, 256: {"seconds": 6.0, "above": 1e8}}
    assert growth.table("points", figures).splitlines()[2:] == [
        "| 64 | 2 | 1.00 | 0.10 GB |",
        "| 256 | 6 | 0.75 | 0.10 GB |",
    ]
    figures = {1: {"seconds": 2.0, "above": 1e8}, 2: {"seconds": 1.5, "above": 1e8}}
    assert growth.table("threads", figures).splitlines()[3] == "| 2 | 1.5 | 1.50 | 0.10 GB |"


def test_growth_is_drawn(tmp_path):
    figures = {1: {"seconds": 2.0, "above": 1e8}, 2: {"seconds": 1.5, "above": 3e8}}
    file = tmp_path / "images" / "growth.png"
    growth.draw({"images": figures, "threads": figures}, file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    for colour in ((37, 99, 235), (249, 115, 22)):
        is_colour = (pixels == colour).all(axis=2)
        halves = is_colour[:, : pixels.shape[1] // 2], is_colour[:, pixels.shape[1] // 2 :]
        assert all(half.any() for half in halves)


def test_found_again_is_a_share_of_the_masks():
    mask, other = np.zeros((2, 40, 60), bool)
    mask[10:30, 10:30] = other[10:30, 40:60] = True
    larger = mask.copy()
    larger[10:30, 30:32] = True  # an IoU of 10 / 11
    assert switches.found_again([mask, other], [larger], 0.9) == 0.5
    assert switches.found_again([mask, other], [larger], 0.98) == 0.0
    assert switches.found_again([mask, other], [other, mask], 0.98) == 1.0
    assert switches.found_again([mask], [], 0.9) == 0.0


def test_thresholds_let_three_masks_in_ten_pass():
    model = random_model(small_config())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8))
    limits = calls.thresholds(model, image)
    assert limits.keys() == {"pred_iou_thresh", "stability_score_thresh"}
    found = switches.everything(model, image, 8, {**limits, "box_nms_thresh": 1.0})
    assert found.points == 64
    three_in_ten = math.ceil(0.3 * 3 * 64)
    assert 0 < len(found.masks) <= three_in_ten
    limits = calls.thresholds(model, image, is_trained=False)
    found = switches.everything(model, image, 8, {**limits, "box_nms_thresh": 1.0})
    assert len(found.masks) == three_in_ten


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    before = page.PAGE.read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == "PyTorch finds no GPU here, so nothing was measured.\n"
    assert page.PAGE.read_text() == before


def test_contestants_of_the_gpu_are_compared(monkeypatch):
    monkeypatch.setattr(
        measure, "best_times", lambda calls, _: dict(zip(calls, (2, 8), strict=True))
    )
    table = gpu.compared({"ours": int, "transformers": int}, 3, is_gpu=False)
    assert table.splitlines() == [
        "|  | seconds | ours / theirs |",
        "| --- | --- | --- |",
        "| ours | 2 |  |",
        "| transformers | 8 | 0.25 |",
    ]


# ---- trainings of other sizes


@pytest.mark.parametrize("part", scaling.PARTS)
def test_the_page_shows_the_trainings_that_were_measured(part):
    results = json.loads(scaling.RESULTS.read_text())[part]
    measured = [
        scaling.Training(
            EncoderShape(*(one[name] for name in EncoderShape._fields)),
            one["shards"],
            one.get("choice", scaling.AS_IT_WAS),
        )
        for one in results["trainings"]
    ]
    assert measured == list(scaling.PARTS[part])
    text = f"<!-- {part} -->\n\n{scaling.table(part, results)}\n\n<!-- /{part} -->"
    assert text in scaling.PAGE.read_text()


def test_a_training_sees_the_first_shards(tmp_path, monkeypatch):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(6):
        for kind in ("images", "instances"):
            (folder / f"{kind}-{number:05d}.npy").touch()
    paths = [folder / f"images-{number:05d}.npy" for number in range(6)]
    seen = scaling.shards_of(folder, scaling.Training(shards=4))
    assert [images for images, _ in seen] == paths[:4]
    assert [images for images, _ in scaling.shards_of(folder, scaling.Training())] == paths
    found = []

    def run(command, **options):
        assert command[command.index("--blocks") + 1] == "4"
        assert command[-2:] == ["--random", "patches"]
        found.extend(shards(Path(command[command.index("--scenes") + 1])))

    monkeypatch.setattr(scaling.subprocess, "run", run)
    training = scaling.Training(EncoderShape(blocks=4), choice="random patches")
    scaling.train(training, seen, tmp_path / "output", 4)
    assert [[path.name for path in pair] for pair in found] == [
        [f"images-{number:05d}.npy", f"instances-{number:05d}.npy"] for number in range(4)
    ]


# ---- thresholds of everything mode


def test_the_page_shows_what_thresholds_let_through():
    results = json.loads(thresholds.RESULTS.read_text())
    text = f"<!-- thresholds -->\n\n{thresholds.table(results)}\n\n<!-- /thresholds -->"
    assert text in thresholds.PAGE.read_text()


def test_labelled_squares_are_samples_of_full_size(tmp_path):
    masks = np.zeros((2, 32, 32), bool)
    masks[0, 4:20, 8:24] = True
    masks[1, 20:30, 2:30] = True
    write_grey_square(tmp_path, "0009-0", masks)
    Image.new("RGB", (64, 64)).save(tmp_path / "0009-0.jpg")
    [sample] = thresholds.labelled(tmp_path)
    assert sample.name == "0009-0"
    assert sample.image.shape == (64, 64, 3)
    expected = masks.repeat(2, axis=1).repeat(2, axis=2)
    assert (masks_iou(sample.masks, expected) > 0.97).all()


def test_thresholds_and_duplicates_are_those_of_the_generator():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 59, 59]])
    ious = np.array([[0.9, 0], [0.6, 0], [0, 0.4], [0, 0]])
    picture = thresholds.Candidates(
        np.array([0.7, 0.8, 0.3, 0.5]), np.array([0.9, 0.6, 0.8, 0.1]), boxes, ious
    )
    np.testing.assert_array_equal(picture.kept(0, 0), ious[[1, 3, 2]])
    np.testing.assert_array_equal(picture.kept(0, 0.8), ious[[0, 2]])
    np.testing.assert_array_equal(picture.kept(0.5, 0.8), ious[[0]])
    figures = thresholds.summary([picture], (0, 0))
    assert figures == {"found": 0.5, "masks": 3.0, "objects": pytest.approx(1 / 3)}
    assert thresholds.summary([picture], (0.9, 0)) == {"found": 0, "masks": 0, "objects": 0}


def test_candidates_of_a_picture_are_the_masks_of_its_grid():
    predictor = SAMPredictor(random_model(small_config()))
    [sample] = rectangle_samples(1, (64, 48))
    picture = thresholds.Candidates.of(predictor, sample)
    grid = point_grid(32) * (48, 64)
    predictor.set_image(sample.image)
    _, scores, logits = predictor(points=grid[[7], None])
    height, width = round(64 * logits.shape[3] / 48), logits.shape[3]  # it is padded below
    logits = logits[0, :, :height]
    truth = resize_bilinear(sample.masks.astype(np.float32), (height, width)) > 0.5
    expected = [[masks_iou(mask[None], one[None])[0] for one in truth] for mask in logits > 0]
    assert picture.ious.shape == (3 * 1024, 2)
    np.testing.assert_allclose(picture.iou_scores[21:24], scores[0], rtol=1e-5)
    np.testing.assert_allclose(picture.ious[21:24], expected, atol=1e-6)
    np.testing.assert_array_equal(picture.boxes[21:24], masks_to_boxes(logits > 0))
    np.testing.assert_allclose(picture.stability[21:24], stability_scores(logits, 0.0, 1.0))


# ---- quality


def test_what_the_weights_in_the_package_were_to_reach():
    """The goals that are met; docs/training.md tells which are not."""
    results = json.loads((make_training_curve.RESULTS / make_training_curve.SHIPPED).read_text())
    scenes, photographs = (
        results[kind]["all"] for kind in (quality.HELD_OUT, quality.PHOTOGRAPHED)
    )
    assert scenes["box, best"] >= 0.75
    assert scenes["click, best"] >= 0.58
    assert photographs["click, best"] >= 0.60
    assert photographs["everything"] >= 0.70
    assert photographs["box, single"] > photographs["filled box"]
    assert photographs["box, best"] > max(photographs["filled box"], photographs["GrabCut"])
    assert results[quality.WEIGHTS] == quality.checksum("sam_vit_t")
    assert all(value >= 0.7 for value in results[quality.CORRELATION].values())


def test_the_teacher_is_measured_where_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "teacher", lambda folder, threads: (folder, threads > 0))
    with pytest.raises(OSError, match="sam_vit_t"):
        quality.loaded(str(tmp_path))
    (tmp_path / quality.DECODER_FILE).touch()
    assert quality.loaded(str(tmp_path)) == (tmp_path, True)


def test_results_of_the_same_weights_stay(tmp_path):
    file = tmp_path / "quality.json"
    assert quality.kept(None, "a") == quality.kept(file, "a") == {}
    results = {quality.WEIGHTS: "a", quality.HELD_OUT: {}}
    file.write_text(json.dumps(results))
    assert quality.kept(file, "a") == results
    assert quality.kept(file, "b") == quality.kept(file, None) == {}


def test_plain_scenes_are_made_of_a_folder_of_pools(tmp_path):
    photograph = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    write_pool(tmp_path / "photographs", iter([(0, photograph)]), 3)
    samples = quality.plain_scenes(tmp_path, 3)
    assert [sample.image.shape for sample in samples] == [(512, 512, 3)] * 3
    assert all(sample.masks.any(axis=(1, 2)).all() for sample in samples)
    with pytest.raises(ValueError, match="has no photographs"):
        quality.plain_scenes(tmp_path / "empty", 3)


def test_photographs_have_small_objects_and_new_ones():
    samples = quality.photographs()
    assert sum(len(sample.masks) for sample in samples) >= 15
    sides = [
        max(np.ptp(np.nonzero(mask), axis=1) + 1) / max(mask.shape)
        for sample in samples
        for mask in sample.masks
    ]
    assert sum(side < quality.SIZES["under 5%"][1] for side in sides) >= 3
    assert {sample.name for sample in samples if quality.is_new(sample.name)} == {
        "coffee.png",
        "chelsea.png",
        "hubble_deep_field.jpg",
    }


def test_figures_are_means_over_the_objects_of_a_group():
    def quality_of(image, number, iou):
        box = (0, 0, 9, 9)
        return ObjectQuality(image, number, 100, box, {"box": iou}, [], box_mask={})

    whole = np.ones((1, 10, 100), bool)
    samples = [Sample(name, np.zeros((10, 100, 3), np.uint8), whole) for name in ("a", "b")]
    evaluation = Evaluation([quality_of("a", 0, 0.25), quality_of("b", 0, 0.75)])
    others = {"filled box": quality.filled_box}
    summary = quality.summarise(samples, evaluation, others, lambda name: name == "b")
    assert quality.ANSWERED not in summary
    assert summary["all"] == {"objects": 2, "filled box": 0.1, "box, single": 0.5}
    assert summary["5% to 20%"]["objects"] == 2
    assert summary["under 5%"] == {"objects": 0}
    assert summary[quality.NEW]["box, single"] == 0.75
    answers = iter((quality.filled_box(samples[0].image, (0, 0, 9, 9)), ~whole[0]))
    others = {quality.GRAB_CUT: lambda image, box: next(answers)}
    answered = quality.summarise(samples, evaluation, others)[quality.ANSWERED]
    assert answered == {"objects": 1, quality.GRAB_CUT: 0.1, "box, single": 0.25}
