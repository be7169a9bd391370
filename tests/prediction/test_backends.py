import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from segment_anything_transformers.model import mask_decoder
from segment_anything_transformers.prediction.backends import (
    Backend,
    GoodMasks,
    TorchBackend,
    backend_for,
)
from tests.fake_backend import FakeBackend, small_config
from tests.parity.peers import huggingface_model
from tests.tiny import random_model, random_prompts, square_config

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import numpy as np
from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from segment_anything_transformers.prediction.predictor import SAMPredictor
from tests.fake_backend import FakeBackend, small_config
image = np.zeros((40, 60, 3), np.uint8)
predictor = SAMPredictor(FakeBackend(small_config()))
predictor.set_image(image)
print(predictor([[20, 30]])[0].shape)
lenient = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "min_mask_region_area": 5}
generator = SAMAutomaticMaskGenerator(FakeBackend(small_config()), points_per_side=3, **lenient)
print(len(generator.generate(image)) > 0)
"""


def test_a_backend_stays_what_it_is():
    fake = FakeBackend(small_config())
    assert isinstance(fake, Backend)
    assert backend_for(fake) is fake


def test_a_torch_model_gets_its_adapter():
    model = random_model(small_config())
    backend = backend_for(model)
    assert isinstance(backend, TorchBackend)
    assert isinstance(backend, Backend)
    assert backend.name == "torch"
    assert backend.config is model.config
    assert not backend.encodes_aside  # on the processor that decodes, too


def test_another_familys_model_is_refused():
    peer = huggingface_model(random_model(square_config()))
    with pytest.raises(TypeError, match="Expected a SegmentAnythingModel, got SamModel"):
        backend_for(peer)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_decoding_equals_the_models_own_call(multimask_output):
    config = small_config()
    model = random_model(config)
    backend = backend_for(model)
    pixels = torch.rand(2, 3, *config.input_size)
    prompts = random_prompts(config)
    embeddings = backend.encode_images(pixels.numpy())
    assert len(embeddings) == 2
    with torch.no_grad():
        expected = model(pixels, **prompts, multimask_output=multimask_output)
    for image in range(2):
        arrays = [
            prompts[f"input_{name}"][image].numpy()
            for name in ("points", "labels", "boxes", "masks")
        ]
        mask_logits, iou_scores = backend.decode(
            embeddings[image : image + 1], *arrays, multimask_output
        )
        assert mask_logits.dtype == iou_scores.dtype == np.float32
        np.testing.assert_allclose(mask_logits, expected.pred_masks[image], rtol=0, atol=1e-5)
        np.testing.assert_allclose(iou_scores, expected.iou_scores[image], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_another_precision_runs_on_a_copy(dtype):
    model = random_model(small_config())
    backend = backend_for(model, dtype)
    assert model.dtype == torch.float32
    assert backend.model.dtype in (torch.bfloat16, torch.float16)
    assert {weight.dtype for weight in backend.model.mask_decoder.parameters()} == {torch.float32}
    assert backend_for(model, "float32").model is model
    assert backend_for(model).model is model


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match='"float16" or "int8", got \'int4\''):
        backend_for(random_model(small_config()), "int4")


@pytest.mark.parametrize("upscaled", [1, 7, 100])
def test_masks_above_a_quality_are_those_of_decoding_that_exceed_it(monkeypatch, upscaled):
    at_once = dict.fromkeys((True, False), upscaled)
    monkeypatch.setattr(mask_decoder, "_SETS_UPSCALED_AT_ONCE", at_once)
    config = small_config()
    backend = backend_for(random_model(config))
    embeddings = backend.encode_images(np.random.rand(1, 3, *config.input_size).astype(np.float32))
    points = np.random.rand(20, 2, 2).astype(np.float32) * 60
    labels = np.ones((20, 2), np.int64)
    mask_logits, iou_scores = backend.decode(embeddings, points, labels, None, None, True)
    for threshold in (-np.inf, float(np.median(iou_scores)), np.inf):
        expected = GoodMasks.above(threshold, mask_logits, iou_scores)
        good = backend.decode_above(embeddings, points, labels, threshold)
        np.testing.assert_array_equal(good.prompts, expected.prompts)
        np.testing.assert_allclose(good.mask_logits, expected.mask_logits, rtol=0, atol=1e-6)
        np.testing.assert_allclose(good.iou_scores, expected.iou_scores, rtol=0, atol=1e-6)
        assert good.mask_logits.dtype == good.iou_scores.dtype == np.float32


def test_a_model_in_training_mode_is_so_again_after_the_last_of_several_threads():
    model = random_model(small_config()).train()
    model.mask_decoder.eval()
    modes = [module.training for module in model.modules()]
    inside, may_leave = threading.Event(), threading.Event()
    encode = model.image_encoder.forward

    def slow_encode(pixels):
        inside.set()
        assert may_leave.wait(60)
        return encode(pixels)

    model.image_encoder.forward = slow_encode
    backend = backend_for(model)
    pixels = np.zeros((1, 3, *model.config.input_size), np.float32)
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(backend.encode_images, pixels)
        assert inside.wait(60)
        # another backend of the same model, in another thread
        backend_for(model).decode_above(torch.zeros(1, 32, 12, 8), np.zeros((1, 1, 2)), None, 0.0)
        assert not any(module.training for module in model.modules())
        may_leave.set()
        assert not slow.result().requires_grad
    assert [module.training for module in model.modules()] == modes


def test_predictor_and_generator_need_no_torch():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["(3, 40, 60)", "True"]
