"""The Keras class on JAX against the PyTorch class: an interpreter of its own, whole tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)
from tests.environments import run_python
from tests.fake_backend import small_config
from tests.rounding import assert_within_rounding
from tests.tiny import MIXTURES, random_images, random_model, random_prompts

pytestmark = [pytest.mark.tf, pytest.mark.slow]
LENIENT = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
USE = """
import functools, jax, keras, numpy as np
import segment_anything_transformers as ours
assert keras.backend.backend() == "jax"
folder = {folder!r}
model = ours.TFSegmentAnythingModel.from_pretrained(folder)
inputs = dict(np.load(folder + "/inputs.npz"))
call = jax.jit(functools.partial(model, multimask_output=True))  # compiles once, not each step
made = {{}}
for names in {mixtures}:
    _, scores, logits = call({{name: inputs[name] for name in ("pixel_values", *names)}})
    made[" ".join(names)] = logits
    made[" ".join(names) + " scores"] = scores
embed = jax.jit(model.get_image_embeddings)
made["embeddings"] = embed(inputs["pixel_values"].transpose(0, 2, 3, 1))
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
np.save(folder + "/after.npy", trained(points=inputs["clicks"], return_logits=True)[0])
model.save_pretrained(folder + "/trained")
result = {{"first": losses[0], "last": losses[-1]}}
"""

USE_OTHERS = """
import functools, jax, keras, numpy as np
import segment_anything_transformers as ours
assert keras.backend.backend() == "jax"
made = {{}}
for folder, dtype in {runs}:
    model = ours.TFSegmentAnythingModel.from_pretrained(folder, dtype=dtype)
    call = jax.jit(functools.partial(model, multimask_output=True))
    _, scores, logits = call(dict(np.load(folder + "/inputs.npz")))
    assert str(logits.dtype) == model.compute_dtype == dtype.removeprefix("mixed_")
    made[folder + dtype], made[folder + dtype + "scores"] = logits, scores
    model.save_pretrained(folder + "/saved", max_shard_size="100KB")
np.savez({made!r}, **{{name: np.asarray(array, "float32") for name, array in made.items()}})
"""


@torch.no_grad()
def test_jax_with_other_sizes_and_patches_in_half_precision_and_shards(tmp_path):
    runs, expected = [], {}
    for patch, dtypes in {6: ("mixed_bfloat16", "mixed_float16"), 16: ("float32",)}.items():
        size_hw = (11 * patch, 7 * patch)
        fields = {"encoder_patch_size": patch, "input_size": size_hw, "fixed_input_size": False}
        model = random_model(small_config(**fields))
        folder = str(tmp_path / str(patch))
        model.save_pretrained(folder, max_shard_size="100KB")
        prompts = random_prompts(model.config)
        prompts.pop("input_masks")  # they have the model's own size
        inputs = {"pixel_values": torch.randn(2, 3, 5 * patch, 13 * patch), **prompts}
        np.savez(f"{folder}/inputs.npz", **inputs)
        output = model(**inputs)
        for dtype in dtypes:
            runs.append((folder, dtype))
            expected[folder + dtype] = output.pred_masks
            expected[f"{folder}{dtype}scores"] = output.iou_scores
    run_python(USE_OTHERS.format(runs=runs, made=f"{tmp_path}/made.npz"), KERAS_BACKEND="jax")

    made = np.load(tmp_path / "made.npz")
    assert sorted(made) == sorted(expected)
    for name, exact in expected.items():
        if "mixed" in name:
            dtype = torch.bfloat16 if "bfloat16" in name else torch.float16
            assert_within_rounding(made[name], exact, dtype)
        else:
            np.testing.assert_allclose(made[name], exact, rtol=0, atol=1e-4)
    for folder in {folder for folder, _ in runs}:
        files = sorted(path.name for path in Path(folder).glob("model[.-]*"))
        assert len(files) > 2  # with the index
        for name in files:
            written = Path(folder, "saved", name).read_bytes()
            assert written == Path(folder, name).read_bytes(), name


@torch.no_grad()
def test_jax_computes_what_pytorch_computes(tmp_path):
    model = random_model(small_config(fixed_input_size=False))
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": random_images(model.config), **random_prompts(model.config)}
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), np.uint8)
    clicks = np.array([[[10, 20]], [[40, 5]]], np.float32)
    np.savez(tmp_path / "inputs.npz", image=image, clicks=clicks, **inputs)

    code = USE.format(folder=str(tmp_path), mixtures=MIXTURES, options=LENIENT)
    losses = run_python(code, KERAS_BACKEND="jax")
    assert losses["last"] < 0.9 * losses["first"]

    made = np.load(tmp_path / "made.npz")
    for names in MIXTURES:
        expected = model(**{name: inputs[name] for name in ("pixel_values", *names)})
        key = " ".join(names)
        np.testing.assert_allclose(made[key], expected.pred_masks, rtol=0, atol=1e-4)
        np.testing.assert_allclose(made[f"{key} scores"], expected.iou_scores, rtol=0, atol=1e-4)
    embeddings = model.get_image_embeddings(inputs["pixel_values"]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(made["embeddings"], embeddings, rtol=0, atol=1e-4)
    trained = SegmentAnythingModel.from_pretrained(tmp_path / "trained")
    for predicted, its_model in (
        (made["predictor"], model),
        (np.load(tmp_path / "after.npy"), trained),
    ):
        predictor = SAMPredictor(its_model)
        predictor.set_image(image)
        masks = predictor(points=clicks, return_logits=True)[0]
        np.testing.assert_allclose(predicted, masks, rtol=0, atol=1e-4)
    assert np.abs(np.load(tmp_path / "after.npy") - made["predictor"]).max() > 0.1  # it learnt
    records = SAMAutomaticMaskGenerator(model, **LENIENT).generate(image)
    np.testing.assert_array_equal(made["boxes"], [record["bbox"] for record in records])
    written = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "model.safetensors").read_bytes()
