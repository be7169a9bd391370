"""Makes the pictures that README and documentation show: `python docs/make_images.py`."""

from pathlib import Path

import numpy as np
from PIL import Image

import segment_anything_transformers
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
    draw_masks,
    draw_prompts,
)
from segment_anything_transformers.cli import DEMO_IMAGE, DEMO_POINT

FOLDER = Path(__file__).parent / "images"
BOX = (76, 14, 482, 388)
GAP = 8


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, on white."""
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * (width + GAP), 0))
    return row


def main() -> None:
    """Writes `coffee.png`: a click, a box and everything, with the model in the package."""
    package = Path(segment_anything_transformers.__file__).parent
    image = Image.open(package / "demo" / DEMO_IMAGE)
    model = SegmentAnythingModel.from_pretrained("sam_vit_t").eval()
    predictor = SAMPredictor(model)
    predictor.set_image(image)

    masks, scores, _ = predictor(points=np.array([DEMO_POINT]))
    click = draw_prompts(draw_masks(image, [masks[scores.argmax()]]), [DEMO_POINT])
    masks, _, _ = predictor(boxes=np.array([BOX]), multimask_output=False)
    box = draw_prompts(draw_masks(image, masks, ["#f97316"]), boxes=[BOX])
    # The small model is less sure of itself than those that the default thresholds are made for.
    generator = SAMAutomaticMaskGenerator(model, pred_iou_thresh=0.2, stability_score_thresh=0.6)
    records = generator.generate(image)
    everything = draw_masks(image, [record["segmentation"] for record in records])

    FOLDER.mkdir(exist_ok=True)
    side_by_side([click, box, everything]).save(FOLDER / "coffee.png", optimize=True)
    print(f"{FOLDER / 'coffee.png'}: scores {scores.round(2)}, {len(records)} masks of everything")


if __name__ == "__main__":
    main()
