"""What `SAMAutomaticMaskGenerator` can be told, for whoever asks people: command, page, documents.

Stands apart from the generator so that reading it takes no time.
"""

from typing import NamedTuple


class GeneratorOption(NamedTuple):
    """A parameter of `SAMAutomaticMaskGenerator`."""

    name: str
    kind: type
    default: float
    """The class's own, which is Meta's."""
    meaning: str
    """In half a sentence."""


GENERATOR_OPTIONS = (
    GeneratorOption("points_per_side", int, 32, "clicks along each side of the image"),
    GeneratorOption("points_per_batch", int, 64, "clicks answered at once; more need more memory"),
    GeneratorOption(
        "pred_iou_thresh",
        float,
        0.88,
        "masks that the model itself rates lower are dropped; sam_vit_t has a lower default",
    ),
    GeneratorOption(
        "stability_score_thresh",
        float,
        0.95,
        "masks that change more with the cut-off are dropped; sam_vit_t has a lower default",
    ),
    GeneratorOption(
        "stability_score_offset", float, 1.0, "how far the cut-off is moved to find that out"
    ),
    GeneratorOption(
        "box_nms_thresh", float, 0.7, "of two masks whose boxes overlap more, one is dropped"
    ),
    GeneratorOption(
        "crop_n_layers", int, 0, "also search enlarged crops, 4 in layer 1, 16 more in layer 2, ..."
    ),
    GeneratorOption("crop_nms_thresh", float, 0.7, "as --box-nms-thresh, between crops"),
    GeneratorOption(
        "crop_overlap_ratio", float, 512 / 1500, "overlap of the crops, share of the image's side"
    ),
    GeneratorOption(
        "crop_n_points_downscale_factor", int, 1, "fewer clicks in crops, by this factor a layer"
    ),
    GeneratorOption(
        "min_mask_region_area", int, 0, "holes and islands of fewer pixels are removed"
    ),
    GeneratorOption(
        "skip_covered_points", bool, False, "click on nothing that a mask covers already: faster"
    ),
    GeneratorOption(
        "merge_crop_seams", bool, False, "join masks that the edges of crops cut, not drop them"
    ),
)
