"""The encoder, which works in pieces that fit the cache, against the plain form."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from segment_anything_transformers.model import image_encoder, layers
from tests import plain
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.mark.parametrize("scores_at_once", [1, 50, 400, 700, 10_000, 1 << 21])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_encoder_equals_its_plain_form(monkeypatch, scores_at_once, implementation):
    monkeypatch.setattr(image_encoder, "_SCORES_AT_ONCE", {True: scores_at_once})
    monkeypatch.setattr(image_encoder, "_ROWS_AT_ONCE", 5)
    model = random_model(small_config())
    model.set_attn_implementation(implementation)
    pixels = random_images(model.config)
    assert_close(model.get_image_embeddings(pixels), plain.encode(model, pixels), **TOLERANCE)


@pytest.mark.parametrize("most", [256, 0], ids=["as channels", "as a bias"])
@pytest.mark.parametrize(("implementation", "is_called"), [("sdpa", True), ("eager", False)])
@torch.no_grad()
def test_what_runs_off_a_processor_equals_the_plain_form(
    monkeypatch, implementation, is_called, most
):
    """There PyTorch's fused attention gets the relative positions, as channels where they fit."""
    monkeypatch.setattr(image_encoder, "is_in_pieces", lambda *_: False)
    for module in (image_encoder, layers):
        monkeypatch.setattr(module, "biases_are_fused", lambda _: True)
    monkeypatch.setattr(image_encoder, "_FUSED_CHANNELS", most)
    theirs, calls = F.scaled_dot_product_attention, []

    def attention(query, key, value, bias=None, *given, **options):
        calls.append((query.shape[-1], bias is not None))
        return theirs(query, key, value, bias, *given, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = random_model(small_config())
    model.set_attn_implementation(implementation)
    pixels = random_images(model.config)
    assert_close(model.get_image_embeddings(pixels), plain.encode(model, pixels), **TOLERANCE)
    config, window = model.config, model.config.encoder_window_size
    head = config.encoder_embed_dim // config.encoder_nb_heads
    is_global = [n in config.encoder_global_attn_indices for n in range(config.encoder_nb_blocks)]
    added = [sum(config.grid_size()) if is_wide else 2 * window for is_wide in is_global]
    if not is_called:
        assert calls == []
    elif most:
        assert calls == [(head + count, False) for count in added]
    else:
        assert set(calls) == {(head, True)}


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (80, 80)])
@torch.no_grad()
def test_a_build_of_pytorch_without_the_fused_product_gives_the_same(monkeypatch, size):
    model = random_model(small_config(input_size=size))
    pixels = random_images(model.config)
    boxes = torch.tensor([[[10.0, 12.0, 50.0, 60.0], [3.0, 4.0, 20.0, 30.0]]])
    assert layers._has_fused_product()
    fused = model(pixels[:1], input_boxes=boxes)
    monkeypatch.setattr(layers, "_has_fused_product", lambda: False)
    plain_products = model(pixels[:1], input_boxes=boxes)
    for name in ("pred_masks", "iou_scores", "image_embeddings"):
        assert_close(fused[name], plain_products[name], **TOLERANCE)


def test_gradients_equal_those_of_the_plain_form():
    model = random_model(small_config())
    pixels = random_images(model.config)
    gradients = []
    for encode in (model.get_image_embeddings, lambda images: plain.encode(model, images)):
        model.zero_grad()
        encode(pixels).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    ours, expected = gradients
    assert ours.keys() == expected.keys()
    for name in expected:
        assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_training_mode_works_on_whole_tensors_with_the_same_result():
    model = random_model(small_config())
    pixels = random_images(model.config)
    expected = model.get_image_embeddings(pixels)
    assert_close(model.train().get_image_embeddings(pixels), expected, **TOLERANCE)
