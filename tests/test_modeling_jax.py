"""The Keras class on JAX against the PyTorch class: an interpreter of its own, whole tensors."""

import itertools

import numpy as np
import pytest
import torch

from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor
from tests.environments import run_python
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model, random_prompts

pytestmark = [pytest.mark.tf, pytest.mark.slow]
KINDS = ("input_points", "input_boxes", "input_masks")
LENIENT = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
USE = """
import keras, numpy as np, os
import segment_anything_transformers as ours
assert keras.backend.backend() == "jax"
folder = {folder!r}
model = ours.TFSegmentAnythingModel.from_pretrained(folder)
inputs = dict(np.load(folder + "/inputs.npz"))
made = {{}}
for given in np.load(folder + "/given.npy"):
    names = [str(name) for name in given if name]
    _, scores, logits = model({{name: inputs[name] for name in names}}, multimask_output=True)
    made[" ".join(names)] = logits
    made[" ".join(names) + " scores"] = scores
made["embeddings"] = model.get_image_embeddings(inputs["pixel_values"].transpose(0, 2, 3, 1))
predictor = ours.SAMPredictor(model)
predictor.set_image(inputs["image"])
made["predictor"] = predictor(points=inputs["clicks"], return_logits=True)[0]
records = ours.SAMAutomaticMaskGenerator(model, **{options}).generate(inputs["image"])
made["boxes"] = np.array([record["bbox"] for record in records])
model.save_pretrained(folder + "/saved")
np.savez(folder + "/made.npz", **{{name: np.asarray(array) for name, array in made.items()}})

# training: JAX compiles a step of its own
truth = np.zeros((2, 3, *model.config.input_size), bool)
truth[..., 20:60, 10:40] = True
chosen = {{name: inputs[name] for name in ("pixel_values", "input_points", "input_labels")}}
model.compile(keras.optimizers.AdamW(1e-3))
losses = model.fit(chosen, truth, epochs=10, verbose=0).history["loss"]
trained = ours.SAMPredictor(model)
trained.set_image(inputs["image"])
assert trained(points=inputs["clicks"])[0].shape[-2:] == inputs["image"].shape[:2]
result = {{"first": losses[0], "last": losses[-1]}}
"""


@torch.no_grad()
def test_jax_computes_what_pytorch_computes(tmp_path):
    model = random_model(small_config(fixed_input_size=False))
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": random_images(model.config), **random_prompts(model.config)}
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    clicks = np.array([[[10, 20]], [[40, 5]]], np.float32)
    np.savez(tmp_path / "inputs.npz", image=image, clicks=clicks, **inputs)

    cases = []
    for chosen in itertools.product((True, False), repeat=3):
        names = ["pixel_values", *itertools.compress(KINDS, chosen)]
        names += ["input_labels"] if "input_points" in names else []
        cases.append(names + [""] * (5 - len(names)))
    np.save(tmp_path / "given.npy", np.array(cases))
    code = USE.format(folder=str(tmp_path), options=LENIENT)
    losses = run_python(code, KERAS_BACKEND="jax")
    assert losses["last"] < 0.9 * losses["first"]

    made = np.load(tmp_path / "made.npz")
    for case in cases:
        names = [name for name in case if name]
        expected = model(**{name: inputs[name] for name in names})
        key = " ".join(names)
        np.testing.assert_allclose(made[key], expected.pred_masks, rtol=0, atol=1e-4)
        np.testing.assert_allclose(made[f"{key} scores"], expected.iou_scores, rtol=0, atol=1e-4)
    embeddings = model.get_image_embeddings(inputs["pixel_values"]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(made["embeddings"], embeddings, rtol=0, atol=1e-4)
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    masks = predictor(points=clicks, return_logits=True)[0]
    np.testing.assert_allclose(made["predictor"], masks, rtol=0, atol=1e-4)
    records = SAMAutomaticMaskGenerator(model, **LENIENT).generate(image)
    np.testing.assert_array_equal(made["boxes"], [record["bbox"] for record in records])
    written = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "model.safetensors").read_bytes()
