"""The full `sam_vit_b` in Keras against PyTorch, in an interpreter for each backend."""

import numpy as np
import pytest
import torch

from segment_anything_transformers.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from tests.environments import run_python
from tests.tiny import random_images, random_model, random_prompts

pytestmark = [pytest.mark.slow, pytest.mark.tf]
USE = """
import keras, numpy as np
import segment_anything_transformers as ours
assert keras.backend.backend() == {backend!r}
model = ours.TFSegmentAnythingModel.from_pretrained({folder!r})
inputs = dict(np.load({folder!r} + "/inputs.npz"))
embeddings = model.get_image_embeddings(inputs.pop("pixel_values").transpose(0, 2, 3, 1))
_, scores, logits = model({{"image_embeddings": embeddings, **inputs}}, multimask_output=True)
made = {{"embeddings": embeddings, "scores": scores, "logits": logits}}
np.savez({folder!r} + "/made.npz", **{{name: np.asarray(array) for name, array in made.items()}})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, inputs, and what PyTorch makes of them."""
    folder = tmp_path_factory.mktemp("full_size")
    model = random_model(SegmentAnythingModelConfig.from_preset("sam_vit_b"))
    model.save_pretrained(folder)
    names = ("input_points", "input_labels", "input_boxes")
    prompts = {name: random_prompts(model.config, images=1)[name] for name in names}
    pixels = random_images(model.config, count=1)
    with torch.no_grad():
        output = model(pixels, **prompts)
    np.savez(folder / "inputs.npz", pixel_values=pixels, **prompts)
    np.savez(
        folder / "expected.npz",
        embeddings=output.image_embeddings.permute(0, 2, 3, 1),
        scores=output.iou_scores,
        logits=output.pred_masks,
    )
    return folder


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_full_sam_vit_b_equals_pytorch(folder, backend):
    run_python(USE.format(folder=str(folder), backend=backend), KERAS_BACKEND=backend)
    made, expected = np.load(folder / "made.npz"), np.load(folder / "expected.npz")
    for name in expected:
        np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=1e-3, err_msg=name)
    assert ((made["logits"] > 0) == (expected["logits"] > 0)).mean() >= 0.9999
