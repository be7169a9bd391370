"""The ONNX export run by transformers.js in Node, as a web page runs it, against PyTorch."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers import (
    SAMPredictor,
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
)
from segment_anything_transformers.cli.main import DEMO_IMAGE
from segment_anything_transformers.prediction.encoded_image import PreparedImage
from tests.environments import SOURCE
from tests.made_once import exported_vit_t

pytestmark = [pytest.mark.onnx, pytest.mark.node, pytest.mark.slow]
README = Path(__file__).parents[2] / "conversion" / "README.md"
PHOTO = SOURCE / "segment_anything_transformers" / "demo" / DEMO_IMAGE
BOX = [[180, 20], [420, 240]]
PROMPTS = {
    "a point": {"points": [[[300, 180]]], "labels": [[1]]},
    "points": {"points": [[[300, 180], [420, 300]]], "labels": [[1, 0]]},
    "a box": {"points": [BOX], "labels": [[2, 3]]},
    "a box and a point": {"points": [[*BOX, [300, 180]]], "labels": [[2, 3, 1]]},
    "prompt sets": {"points": [[[300, 180]], [[100, 80]], [[500, 350]]], "labels": [[1], [1], [1]]},
}


@pytest.fixture(scope="module")
def model():
    return SegmentAnythingModel.from_pretrained("sam_vit_t")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_vit_t(tmp_path_factory)


def masks_of(node, picture, folder, output):
    """What transformers.js makes: names of its classes, model input, masks and scores by prompt."""
    prompts = json.dumps(list(PROMPTS.values()))
    said = node("node", "segment.mjs", str(folder), str(picture), prompts, str(output))
    assert "WARNING" not in said.stdout + said.stderr
    answer = json.loads(output.with_suffix(".json").read_text())
    pixels = np.fromfile(output.with_suffix(".bin"), np.uint8)
    sizes = [np.prod(result["dims"]) for result in answer["results"]]
    masks = np.split(pixels, np.cumsum(sizes)[:-1])
    given = np.fromfile(output.with_suffix(".pixels"), np.float32).reshape(answer["input"])
    return (
        answer["names"],
        torch.from_numpy(given),
        {
            name: (mask.reshape(result["dims"]).astype(bool), result["scores"])
            for name, mask, result in zip(PROMPTS, masks, answer["results"], strict=True)
        },
    )


def expected_masks(predictor, points, labels):
    """The same prompts as our predictor takes them: boxes are boxes there."""
    points, labels = np.array(points, np.float32), np.array(labels)
    if labels[0, 0] != 2:
        return predictor(points=points, labels=labels)
    boxes = points[:, :2].reshape(1, 1, 4)
    if labels.shape[1] == 2:
        return predictor(boxes=boxes)
    return predictor(points=points[:, 2:], labels=labels[:, 2:], boxes=boxes)


def assert_agree(predictor, results, least):
    """The share of pixels at which masks agree is at least that, and the scores are equal."""
    for name, prompt in PROMPTS.items():
        masks, scores, _ = expected_masks(predictor, **prompt)
        made, made_scores = results[name]
        assert made.shape == masks.shape
        assert 0.001 < masks.mean() < 0.5  # neither nothing nor everything
        agreeing = (made == masks).mean(axis=(-2, -1))
        assert agreeing.min() >= least, (name, agreeing)
        np.testing.assert_allclose(np.reshape(made_scores, scores.shape), scores, atol=2e-3)


def test_masks_agree_with_pytorch(node, model, exported, tmp_path):
    """The photo as large as the model input, so that nothing is resampled."""
    photo = Image.open(PHOTO)
    picture = tmp_path / "photo.png"
    photo.resize((1024, 1024 * photo.height // photo.width)).save(picture)
    predictor = SAMPredictor(model)
    predictor.set_image(Image.open(picture))
    names, _, results = masks_of(node, picture, exported, tmp_path / "made")
    assert names == ["SamModel", "SamProcessor"]
    assert_agree(predictor, results, 0.9999)


def test_masks_of_a_resampled_photo_agree_with_pytorch(node, model, exported, tmp_path):
    """transformers.js resamples a photo with a shift of a part of a pixel, and rounds its scaled
    sides down: this part's are whole. Of its own input our model makes its masks."""
    picture = tmp_path / "photo.png"
    Image.open(PHOTO).crop((0, 0, 600, 375)).save(picture)
    predictor = SAMPredictor(model)
    _, pixels, results = masks_of(node, picture, exported, tmp_path / "made")
    ours = SegmentAnythingImageProcessor.from_pretrained("sam_vit_t")(Image.open(picture))
    assert np.abs(pixels.numpy() - ours["pixel_values"][0]).mean() < 0.1
    resizer = predictor.prepare(predictor.read_image(Image.open(picture))).resizer
    [encoded] = predictor.encode([PreparedImage(pixels[0].numpy(), resizer)])
    predictor.set_encoded(encoded)
    assert_agree(predictor, results, 0.999)


def test_the_code_in_the_readme_runs(node, model, exported, tmp_path):
    """As on a page, but for where the model and the picture are."""
    [code] = re.findall(r"```js\n(.*?)```", README.read_text(), re.DOTALL)
    shutil.copytree(exported, tmp_path / "for-the-web")
    photo = Image.open(PHOTO)  # as large as the model input: not resampled
    photo = photo.resize((1024, 1024 * photo.height // photo.width))
    photo.save(tmp_path / "photo.jpg")
    start = f"""
import {{ env }} from "@huggingface/transformers";
import {{ writeFileSync }} from "node:fs";
env.allowRemoteModels = false;
env.localModelPath = {json.dumps(str(tmp_path))};
"""
    end = f"writeFileSync({json.dumps(str(tmp_path / 'mask.bin'))}, masks[0].data);"
    code = code.replace('"photo.jpg"', json.dumps(str(tmp_path / "photo.jpg")))
    node("node", "--input-type=module", "--eval", start + code + end)
    predictor = SAMPredictor(model)
    predictor.set_image(Image.open(tmp_path / "photo.jpg"))
    masks, _, _ = predictor(points=np.array([[300, 180]]), boxes=np.array([np.ravel(BOX)]))
    made = np.fromfile(tmp_path / "mask.bin", np.uint8).reshape(masks.shape)
    assert (made == masks).mean(axis=(-2, -1)).min() >= 0.999
