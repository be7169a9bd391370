"""What tests of the mask generator share."""

from pathlib import Path

import numpy as np

from segment_anything_transformers.model import mask_ops

PHOTOGRAPH = Path(mask_ops.__file__).parents[1] / "demo" / "coffee.jpg"
LENIENT = {"points_per_side": 6, "pred_iou_thresh": 0.82, "stability_score_thresh": 0.7}


def picture(height=70, width=110, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def compare(records, expected):
    assert len(records) == len(expected) > 0
    for record, expected_record in zip(records, expected, strict=True):
        np.testing.assert_array_equal(record["segmentation"], expected_record["segmentation"])
        assert {**record, "segmentation": 0} == {**expected_record, "segmentation": 0}
