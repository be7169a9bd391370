"""TinyViT, which works in strips that fit the cache, against the plain form."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from segment_anything_transformers.model import tiny_vit_encoder
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.tiny_vit_encoder import InvertedBottleneck
from tests import plain
from tests.tiny import random_images, random_model, random_prompts, tiny_vit_config

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    return random_model(tiny_vit_config())


@pytest.fixture(scope="module")
def pixels(model):
    return random_images(model.config)


@pytest.mark.slow
@pytest.mark.parametrize("values_at_once", [1, 1000, 3000, 1 << 21])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_encoder_equals_its_plain_form(monkeypatch, values_at_once, implementation):
    monkeypatch.setattr(tiny_vit_encoder, "_VALUES_AT_ONCE", values_at_once)
    model = random_model(tiny_vit_config())
    model.set_attn_implementation(implementation)
    pixels = random_images(model.config)
    embeddings = model.get_image_embeddings(pixels)
    assert embeddings.shape == (2, 32, 6, 4)
    assert_close(embeddings, plain.encode_tiny_vit(model, pixels), **TOLERANCE)


@pytest.mark.parametrize("size", [(16, 16), (32, 160), (112, 48)])
@torch.no_grad()
def test_any_size_that_the_stride_divides(size):
    model = random_model(tiny_vit_config(fixed_input_size=False))
    pixels = torch.randn(1, 3, *size)
    embeddings = model.get_image_embeddings(pixels)
    assert embeddings.shape[2:] == (size[0] // 16, size[1] // 16)
    assert_close(embeddings, plain.encode_tiny_vit(model, pixels), **TOLERANCE)
    with pytest.raises(ValueError, match="multiples of the patch size 16"):
        model.get_image_embeddings(torch.randn(1, 3, size[0] + 8, size[1]))


def test_gradients_equal_those_of_the_plain_form(model, pixels):
    gradients = []
    for mode, encode in (
        (False, model.get_image_embeddings),
        (True, model.get_image_embeddings),
        (False, lambda images: plain.encode_tiny_vit(model, images)),
    ):
        model.train(mode).zero_grad()
        encode(pixels).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    model.eval()
    *ours, expected = gradients
    assert len(expected) == len(list(model.image_encoder.parameters()))
    for found in ours:
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_gradient_checkpointing_computes_the_blocks_twice_with_the_same_result(pixels):
    model = random_model(tiny_vit_config()).train()
    calls = []
    for stage in model.image_encoder.layers:
        for block in stage.blocks:
            inner = block.conv2 if isinstance(block, InvertedBottleneck) else block.local_conv
            inner.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    gradients = []
    for is_on in (False, True):
        if is_on:
            model.activation_checkpointing_enable()
        calls.clear()
        model.zero_grad()
        model.get_image_embeddings(pixels).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.image_encoder.parameters()])
        assert len(calls) == 6 * (1 + is_on)
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@torch.no_grad()
def test_half_precision_is_close(model, pixels):
    half = copy.deepcopy(model).to(torch.bfloat16)
    embeddings = half.get_image_embeddings(pixels)
    assert embeddings.dtype == torch.bfloat16
    expected = model.get_image_embeddings(pixels)
    assert (embeddings.float() - expected).abs().max() < 0.03 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.get_image_embeddings(pixels)
    assert (mixed.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_encoder_gives_the_same(model, pixels):
    compiled = torch.compile(model.image_encoder, backend="eager", fullgraph=True)
    assert_close(compiled(pixels), model.image_encoder(pixels), **TOLERANCE)


@pytest.mark.parametrize("field", ["encoder_drop_rate", "encoder_attn_drop_rate"])
def test_drop_rates_act_in_training_alone(field, pixels):
    model = random_model(tiny_vit_config(**{field: 0.5}))
    expected = plain.encode_tiny_vit(model, pixels)
    assert_close(model.get_image_embeddings(pixels), expected, **TOLERANCE)
    model.train()
    assert (model.get_image_embeddings(pixels) - expected).abs().max() > 0.01


def test_stochastic_depth_grows_from_none_and_leaves_branches_out():
    model = random_model(tiny_vit_config(encoder_drop_path_rate=0.5)).train()
    blocks = [block for stage in model.image_encoder.layers for block in stage.blocks]
    assert [block.drop_path_rate for block in blocks] == [i / 10 for i in range(6)]
    tokens, block = torch.randn(64, 35, 4, 4), blocks[-1]
    only_convolved = block.local_conv(tokens)
    is_left_out = [
        torch.equal(one, other) for one, other in zip(block(tokens), only_convolved, strict=True)
    ]
    assert 4 < sum(is_left_out) < 28  # a quarter of 64: neither attention nor perceptron


@torch.no_grad()
def test_every_layer_is_called(model, pixels):
    """Hooks, and with them adapters and others that stand in for a layer, see every layer."""
    seen = set()
    handles = [
        module.register_forward_hook(lambda layer, *_: seen.add(layer))
        for module in model.image_encoder.modules()
        if not isinstance(module, nn.ModuleList)
    ]
    model.get_image_embeddings(pixels)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(handles)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@torch.no_grad()
def test_adapters_on_layers_of_every_kind_act_and_merge(pixels):
    torch.manual_seed(0)
    base = random_model(tiny_vit_config())
    before = base.get_image_embeddings(pixels)
    targets = r"image_encoder\..*\.(qkv|proj|fc1|fc2|conv1|conv3|seq\.0|neck\.2)"
    options = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(base, options)
    adapted = base.get_image_embeddings(pixels)
    assert (adapted - before).abs().max() > 0.1
    merged = model.merge_and_unload()
    assert_close(merged.get_image_embeddings(pixels), adapted, rtol=1e-4, atol=1e-4)
    assert_close(plain.encode_tiny_vit(merged, pixels), adapted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_saved_model_is_the_same_and_channels_adapt(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SegmentAnythingModel.from_pretrained(tmp_path)
    fields = type(model.config).__annotations__
    assert all(getattr(loaded.config, f) == getattr(model.config, f) for f in fields)
    prompts = random_prompts(model.config)
    expected = model.state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in loaded.state_dict().items())
    logits = model(pixels, **prompts).pred_masks
    assert_close(loaded(pixels, **prompts).pred_masks, logits, **TOLERANCE)
    grey = SegmentAnythingModel.from_pretrained(tmp_path, in_channels=1)
    kernel = model.image_encoder.patch_embed.seq[0].weight
    assert_close(grey.image_encoder.patch_embed.seq[0].weight, kernel.sum(1, keepdim=True))
    picture = torch.randn(1, 1, 96, 64)
    expected = model.get_image_embeddings(picture.expand(-1, 3, -1, -1))
    assert_close(grey.get_image_embeddings(picture), expected, **TOLERANCE)
