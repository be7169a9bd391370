"""The decoder in both of its forms, against the paper's with every tensor written out."""

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.model import fast_decoder, mask_decoder
from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from tests import forms, plain
from tests.fake_backend import small_config
from tests.tiny import IMAGES, SETS, random_images, random_model, random_prompts

TOLERANCE = {"rtol": 0.0, "atol": 1e-6}


def embeddings_of(model):
    with torch.no_grad():
        return model.get_image_embeddings(random_images(model.config))


def compare(model, embeddings, prompts, others=None, **tolerance):
    """Both forms with plain ones of the same prompts, or of `others` that mean the same."""
    expected = plain.decode(model, embeddings, **(others or prompts))
    for is_fast in (True, False):
        with forms.only(is_fast):
            outputs = model.decode(embeddings, **prompts)
        for output, written_out in zip(outputs, expected, strict=True):
            assert_close(output, written_out, **(tolerance or TOLERANCE))


@pytest.mark.parametrize("count", [1, 3, 30], ids="{} points".format)
@pytest.mark.parametrize("others", [(), ("input_boxes",), ("input_masks",)])
@torch.no_grad()
def test_decoder_equals_its_plain_form(count, others):
    """With 30 points there are fewer channels than tokens, so other rows are summed."""
    model = random_model(small_config())
    prompts = random_prompts(model.config)
    given = {"input_points": torch.rand(IMAGES, SETS, count, 2) * 60}
    compare(model, embeddings_of(model), given | {name: prompts[name] for name in others})


@pytest.mark.parametrize("blocks", [1, 2, 3])
@torch.no_grad()
def test_any_number_of_blocks(blocks):
    model = random_model(small_config(decoder_nb_blocks=blocks))
    compare(
        model, embeddings_of(model), {"input_boxes": random_prompts(model.config)["input_boxes"]}
    )


@torch.no_grad()
def test_a_mask_of_the_image_is_shared():
    model = random_model(small_config())
    prompts = random_prompts(model.config)
    shared = {
        "input_masks": prompts["input_masks"][:, :1, 0],
        "input_points": prompts["input_points"],
    }
    each = shared | {"input_masks": prompts["input_masks"][:, :1, :1].expand(-1, SETS, -1, -1, -1)}
    embeddings = embeddings_of(model)
    compare(model, embeddings, shared, each)


def test_gradients_equal_those_of_the_plain_form():
    model = random_model(small_config()).train()
    embeddings = embeddings_of(model)
    prompts = random_prompts(model.config)
    given = {name: prompts[name] for name in ("input_points", "input_boxes")}
    gradients = []
    for decode in (model.decode, lambda *args, **kwargs: plain.decode(model, *args, **kwargs)):
        logits, scores = decode(embeddings, **given)
        model.zero_grad()
        (logits.square().mean() + scores.square().mean()).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    ours, expected = gradients
    assert ours.keys() == expected.keys()
    for name in expected:
        assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("upscaled", [1, 2, 100])
@pytest.mark.parametrize("prompts_per_group", [1, 2, 100])
@pytest.mark.parametrize("names", [("input_points",), ("input_points", "input_masks")])
@torch.no_grad()
def test_groups_make_no_difference(monkeypatch, prompts_per_group, upscaled, names):
    model = random_model(small_config())
    prompts = random_prompts(model.config)
    given = {name: prompts[name] for name in names}
    embeddings = embeddings_of(model)
    expected = model.decode(embeddings, **given)
    model.mask_decoder.prompts_per_group = prompts_per_group
    at_once = dict.fromkeys((True, False), upscaled)
    monkeypatch.setattr(mask_decoder, "_SETS_UPSCALED_AT_ONCE", at_once)
    for output, whole in zip(model.decode(embeddings, **given), expected, strict=True):
        assert_close(output, whole, **TOLERANCE)


def test_gradients_are_of_one_group_but_on_a_processor():
    """Memory is the same, and a GPU waits less for launches."""
    decoder = random_model(small_config()).mask_decoder
    embeddings = torch.zeros(4, 32, 64, 64)
    assert len(decoder._groups(1000, embeddings)) > 1
    assert decoder._groups(1000, embeddings.to("meta")) == [slice(None)]
    with torch.no_grad():
        assert len(decoder._groups(1000, embeddings.to("meta"))) > 1
    decoder.prompts_per_group = 500
    assert len(decoder._groups(1000, embeddings.to("meta"))) == 2


@pytest.mark.slow
@torch.no_grad()
def test_full_size_decoder_equals_its_plain_form():
    config = SegmentAnythingModelConfig(encoder_nb_blocks=1, encoder_global_attn_indices=())
    model = random_model(config)
    embeddings = torch.randn(1, 256, 64, 64)
    given = {"input_points": torch.rand(1, 4, 1, 2) * 1024}
    compare(model, embeddings, given, rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_what_is_remembered_of_an_image_follows_image_and_weights(monkeypatch):
    model = random_model(small_config())
    embeddings = embeddings_of(model)[:1].clone()
    given = {"input_points": torch.rand(1, SETS, 2, 2) * 60}

    def is_as_plain():
        compare(model, embeddings, given)
        return True

    assert is_as_plain()
    calls, share = [], fast_decoder.FastDecoder._share
    monkeypatch.setattr(
        fast_decoder.FastDecoder, "_share", lambda *args: calls.append(1) or share(*args)
    )
    assert is_as_plain()
    assert is_as_plain()
    assert calls == []
    embeddings += 0.5
    assert is_as_plain()
    model.mask_decoder.transformer.layers[0].norm4.weight.mul_(1.5)
    assert is_as_plain()
    model.prompt_encoder.no_mask_embed.weight.add_(1.0)
    assert is_as_plain()
    model.load_state_dict(random_model(small_config(), seed=5).state_dict())
    assert is_as_plain()
    assert len(calls) == 4
