"""`sam_vit_b` at its full width and size in Keras against PyTorch, a process a backend."""

import numpy as np
import pytest
import torch

from tests.environments import run_python
from tests.tiny import random_images, random_model, random_prompts, shallow_config

pytestmark = [pytest.mark.slow, pytest.mark.tf]
USE = """
import keras, numpy as np
import segment_anything_transformers as ours
assert keras.backend.backend() == {backend!r}
model = ours.TFSegmentAnythingModel.from_pretrained({folder!r})
inputs = dict(np.load({folder!r} + "/inputs.npz"))
embeddings = model.get_image_embeddings(inputs.pop("pixel_values").transpose(0, 2, 3, 1))
made = {{"embeddings": embeddings}}
for name, names in {mixtures}.items():
    prompts = {{prompt: inputs[prompt] for prompt in names}}
    results = model({{"image_embeddings": embeddings, **prompts}}, multimask_output=True)
    made[name + " scores"], made[name + " logits"] = results[1:]
np.savez({folder!r} + "/made.npz", **{{name: np.asarray(array) for name, array in made.items()}})
"""
MIXTURES = {
    "click": ("input_points", "input_labels"),
    "box": ("input_boxes",),
    "mask": ("input_masks",),
    "all": ("input_points", "input_labels", "input_boxes", "input_masks"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, inputs, and what PyTorch makes of them."""
    folder = tmp_path_factory.mktemp("full_size")
    model = random_model(shallow_config())
    model.save_pretrained(folder)
    prompts = random_prompts(model.config, images=1)
    pixels = random_images(model.config, count=1)
    with torch.no_grad():
        embeddings = model.get_image_embeddings(pixels)
        expected = {"embeddings": embeddings.permute(0, 2, 3, 1)}
        for name, names in MIXTURES.items():
            output = model(image_embeddings=embeddings, **{kind: prompts[kind] for kind in names})
            expected[f"{name} scores"] = output.iou_scores
            expected[f"{name} logits"] = output.pred_masks
    np.savez(folder / "inputs.npz", pixel_values=pixels, **prompts)
    np.savez(folder / "expected.npz", **expected)
    return folder


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_sam_vit_b_equals_pytorch(folder, backend):
    code = USE.format(folder=str(folder), backend=backend, mixtures=MIXTURES)
    run_python(code, KERAS_BACKEND=backend)
    made, expected = np.load(folder / "made.npz"), np.load(folder / "expected.npz")
    assert made.files == expected.files
    for name in expected:
        np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=1e-3, err_msg=name)
    for name in MIXTURES:
        agree = (made[f"{name} logits"] > 0) == (expected[f"{name} logits"] > 0)
        assert agree.mean() >= 0.9999, name
