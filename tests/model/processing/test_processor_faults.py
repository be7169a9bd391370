"""What the processor refuses, and what transformers' own SamProcessor gets wrong."""

import numpy as np
import pytest
import torch

from tests.model.processing.inputs import MASK_SIZE, PROMPT_NAMES, SIZES


def random_logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ----------------------------------------------------------------------------------- errors


NAN = float("nan")


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (
            {"input_labels": [[[1]], None]},
            ValueError,
            r"image 0: expected input_points .*, got none",
        ),
        (
            {"input_points": [[[1, 2]], [[3, 4]]], "input_labels": [[1, 0], [1]]},
            ValueError,
            r"input_labels of image 0: expected one label for each point, \[1\] .* got \[2\]",
        ),
        (
            {"input_points": [[[1, 2]], [[3, 4]]], "input_labels": [[1], [2]]},
            ValueError,
            r"input_labels of image 1: expected 1 \(foreground\).* got 2",
        ),
        (
            {"input_points": [[[1, 2]], [[3, 4]]], "input_labels": [[0.5], [1]]},
            ValueError,
            r"input_labels of image 0: .* got 0\.5",
        ),
        (
            {"input_points": [[[1, 2]]] * 3},
            ValueError,
            r"input_points: expected 2 entries, one for each image, got 3 entries",
        ),
        ({"input_points": 5}, ValueError, r"input_points: expected 2 entries.* got 5"),
        (
            {"input_points": [[[1, NAN]], [[3, 4]]]},
            ValueError,
            r"input_points of image 0, prompt set 0: expected finite numbers, got NaN",
        ),
        (
            {"input_boxes": [None, [[1, 2, float("inf"), 4]]]},
            ValueError,
            r"input_boxes of image 1, prompt set 0: expected finite numbers",
        ),
        (
            {"input_points": [[[1, 2, 3]], [[3, 4, 5]]]},
            ValueError,
            r"input_points of image 0, prompt set 0: expected the shape \(M, 2\), got \(1, 3\)",
        ),
        (
            {"input_boxes": [[[1, 2, 3]], None]},
            ValueError,
            r"input_boxes of image 0, prompt set 0: expected the shape \(M, 4\), got \(1, 3\)",
        ),
        (
            {"input_points": [[[1, 2], [3]], [[3, 4]]]},
            ValueError,
            r"input_points of image 0, prompt set 0: expected items of equal length",
        ),
        (
            {"input_points": np.zeros((2, 1, 1, 1, 2))},
            ValueError,
            r"input_points of image 0: expected at most 3 levels.* got 4",
        ),
        (
            {"input_points": [[["a", "b"]], [[1, 2]]]},
            TypeError,
            r"input_points of image 0, prompt set 0: expected numbers, got dtype <U1",
        ),
        (
            {"input_boxes": [[[5, 2, 3, 4]], None]},
            ValueError,
            r"input_boxes of image 0: expected .* right >= left .* got \[5\.0, 2\.0.*width",
        ),
        ({"input_boxes": [None, [[1, 9, 3, 4]]]}, ValueError, r"image 1: .* bottom >= top"),
        (
            {"input_points": [[[[1, 2]], [[3, 4]]], None], "input_boxes": [[[1, 2, 3, 4]], None]},
            ValueError,
            r"Image 0: expected as many prompt sets.*'input_points': 2, 'input_boxes': 1",
        ),
        (
            {"input_masks": [np.zeros((3, 7, 7)), None]},
            ValueError,
            r"input_masks: expected logits of size \(24, 16\).*\(50, 40\).* got \(7, 7\)",
        ),
        (
            {"input_masks": [np.ones((1, *MASK_SIZE), bool), None]},
            TypeError,
            r"input_masks of image 0, prompt set 0: expected logits, not booleans",
        ),
        ({"segmentation_maps": [np.zeros((5, 5))] * 2}, ValueError, r"like its image, got shape"),
        ({"original_sizes": SIZES[:2]}, ValueError, r"either images or original_sizes"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(processor, images, prompts, error, message):
    with pytest.raises(error, match=message):
        processor(images[:2], **prompts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"Expected images, or original_sizes"),
        ({"input_points": [1, 2]}, r"Expected images, or original_sizes"),
        (
            {"original_sizes": [(4, 5)], "segmentation_maps": [np.zeros((4, 5))]},
            r"segmentation_maps need their images",
        ),
        ({"original_sizes": [(4, -5)]}, r"src_size must be two positive integers.*\(4, -5\)"),
        ({"images": []}, r"at least one image"),
        ({"images": np.zeros((0, 4, 3), np.uint8)}, r"no pixels"),
        (
            {"images": np.zeros((4, 5, 3), np.uint8), "input_boxes": np.zeros((2, 3, 4))},
            r"input_boxes: expected 1 entries, one for each image, got 2",
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


# --------------------------------------------- what fails with transformers' own processor


def model_inputs(inputs):
    return {name: inputs[name] for name in ("pixel_values", *PROMPT_NAMES) if name in inputs}


def test_unequal_points_and_boxes_give_what_each_gives_alone(processor, model, images):
    """Transformers issue 32488, and its padding, which changes the result."""
    points = [[[[1, 2], [30, 40]], [[7, 8]]], [[[5, 6], [7, 8], [20, 9]]], []]
    labels = [[[1, 0], [1]], [[1, 1, 0]], []]
    boxes = [[[0, 0, 30, 30], []], [], [[2, 2, 60, 60], [9, 9, 20, 20], [30, 1, 50, 80]]]
    batch = processor(
        images,
        input_points=points,
        input_labels=labels,
        input_boxes=boxes,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**model_inputs(batch))
    for index, image in enumerate(images):
        for prompt_set in range(max(len(points[index]), len(boxes[index]))):
            prompts = {}
            for name, all_prompts in (
                ("input_points", points),
                ("input_labels", labels),
                ("input_boxes", boxes),
            ):
                if all_prompts[index] and all_prompts[index][prompt_set]:
                    prompts[name] = [[all_prompts[index][prompt_set]]]
            alone = processor(image, return_tensors="pt", **prompts)
            with torch.no_grad():
                expected = model(**model_inputs(alone))
            for name in ("pred_masks", "iou_scores"):
                torch.testing.assert_close(
                    output[name][index, prompt_set], expected[name][0, 0], rtol=0, atol=1e-5
                )


def test_several_prompts_with_a_mask_each_give_what_each_gives_alone(processor, model, images):
    masks = random_logits(3, *MASK_SIZE) * 5
    points = [[[1, 2]], [[20, 30]], [[9, 5]]]
    batch = processor(
        images[:2],
        input_points=[points, points[:1]],
        input_masks=[masks, None],
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**model_inputs(batch))
    for index, prompt_set in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        mask = None if index else masks[prompt_set]
        alone = processor(
            images[index],
            input_points=[[points[prompt_set]]],
            input_masks=mask,
            return_tensors="pt",
        )
        with torch.no_grad():
            expected = model(**model_inputs(alone))
        torch.testing.assert_close(
            output.pred_masks[index, prompt_set], expected.pred_masks[0, 0], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_nothing_is_float64(processor, images, return_tensors):
    """Transformers issue 28334: Apple's GPUs have no float64."""
    inputs = processor(
        images[0],
        input_points=np.ones((1, 1, 1, 2)),
        input_boxes=np.ones((1, 1, 4)),
        input_masks=np.ones((1, 1, *MASK_SIZE)),
        segmentation_maps=np.ones((1, *SIZES[0])),
        return_tensors=return_tensors,
    )
    dtypes = {name: str(np.asarray(value).dtype) for name, value in inputs.items()}
    assert set(dtypes.values()) == {"float32", "int64"}
    assert [name for name, dtype in dtypes.items() if dtype == "int64"] == [
        "original_sizes",
        "reshaped_input_sizes",
        "labels",
        "input_labels",
    ]
