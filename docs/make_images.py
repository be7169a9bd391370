"""Makes the pictures that README and documentation show: `python docs/make_images.py`.

They show the photograph in the package, and two of scikit-image with small objects: a star of a
flag (NASA, public domain) and a white heap (Lav Varshney, CC0).
"""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

import segment_anything_transformers
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
    draw_masks,
    draw_prompts,
)
from segment_anything_transformers.cli.main import DEMO_IMAGE, DEMO_POINT
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.prediction.zoom import Region

FOLDER = Path(__file__).parent / "images"
TUTORIAL_POINTS, TUTORIAL_LABELS = [(285, 90), (300, 170)], [1, 0]
BOX = (205, 90, 375, 195)
SMALL = {"astronaut.png": (27, 52, 49, 80), "camera.png": (318, 230, 342, 240)}
"""Boxes of small objects, by the file of scikit-image."""
CLOSE_UP_SIDE = 256
GAP = 8


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, on white."""
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * (width + GAP), 0))
    return row


def pictures_of(model: SegmentAnythingModel, image: Image.Image) -> dict[str, Image.Image]:
    """What each step of the tutorial shows; and a click, a box and everything in the picture."""
    predictor = SAMPredictor(model)
    predictor.set_image(image)

    def click_on(point: tuple[float, float]) -> tuple[Image.Image, np.ndarray]:
        masks, scores, logits = predictor(points=np.array([point]))
        best = scores.argmax()
        return draw_prompts(draw_masks(image, [masks[best]]), [point]), logits[best]

    click, logits = click_on(TUTORIAL_POINTS[0])
    masks, _, _ = predictor(
        points=np.array(TUTORIAL_POINTS),
        labels=np.array(TUTORIAL_LABELS),
        masks=logits[None],
        multimask_output=False,
    )
    more = draw_prompts(draw_masks(image, masks), TUTORIAL_POINTS, TUTORIAL_LABELS)
    masks, _, _ = predictor(boxes=np.array([BOX]), multimask_output=False)
    box = draw_prompts(draw_masks(image, masks, ["#f97316"]), boxes=[BOX])
    records = SAMAutomaticMaskGenerator(model, **GENERATOR_THRESHOLDS["sam_vit_t"]).generate(image)
    everything = draw_masks(image, [record["segmentation"] for record in records])
    overview = side_by_side([click_on(DEMO_POINT)[0], box, everything])
    return {"click": click, "more": more, "box": box, "coffee": overview}


def small_objects(model: SegmentAnythingModel) -> Image.Image:
    """Each small object's mask for its box, from the whole picture and zoomed to it, enlarged."""
    predictor = SAMPredictor(model)
    size = (CLOSE_UP_SIDE, CLOSE_UP_SIDE)
    pictures = []
    for file, box in SMALL.items():
        image = Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
        predictor.set_image(image)
        part = Region.around(np.array(box), image.size[::-1], margin=0.6)
        close_up = image.crop(part).resize(size, Image.Resampling.BICUBIC)
        for target in (None, box):
            predictor.zoom(target)
            masks, scores, _ = predictor(boxes=np.array([box]))
            mask = Image.fromarray(masks[scores.argmax()]).crop(part).resize(size)
            pictures.append(draw_masks(close_up, [np.asarray(mask)]))
    return side_by_side(pictures)


def main() -> None:
    """Writes the pictures, made by the model in the package."""
    package = Path(segment_anything_transformers.__file__).parent
    image = Image.open(package / "demo" / DEMO_IMAGE)
    model = SegmentAnythingModel.from_pretrained("sam_vit_t").eval()
    FOLDER.mkdir(exist_ok=True)
    pictures = {**pictures_of(model, image), "zoom": small_objects(model)}
    for name, picture in pictures.items():
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
