"""The Keras decoder in both of its forms, against the PyTorch one and against each other."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from segment_anything_transformers import TFSegmentAnythingModel
from segment_anything_transformers.model.fast_decoder_tf import FastDecoder
from segment_anything_transformers.prediction.backends import KerasBackend
from tests import plain
from tests.fake_backend import small_config
from tests.tiny import IMAGES, MIXTURES, SETS, random_images, random_model, random_prompts

pytestmark = pytest.mark.tf
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = random_model(small_config())
    model.save_pretrained(folder)
    return model, TFSegmentAnythingModel.from_pretrained(folder)


def keras_decode(model, is_fast, embeddings, prompts):
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    given = [prompts.get(name) for name in names]
    given = [None if prompt is None else ops.convert_to_tensor(prompt.numpy()) for prompt in given]
    decode = model.decode_fast if is_fast else model.decode
    image = ops.convert_to_tensor(embeddings.permute(0, 2, 3, 1).numpy())
    return [np.asarray(output) for output in decode(image, *given, selection=slice(None))]


@pytest.mark.slow
@pytest.mark.parametrize("names", [names for names in MIXTURES if names])
@torch.no_grad()
def test_both_forms_equal_the_one_that_writes_everything_out(models, names):
    theirs, ours = models
    embeddings = theirs.get_image_embeddings(random_images(theirs.config))
    prompts = {name: random_prompts(theirs.config)[name] for name in names}
    expected = plain.decode(theirs, embeddings, **prompts)
    for is_fast in (True, False):
        outputs = keras_decode(ours, is_fast, embeddings, prompts)
        for output, written_out in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output, written_out.numpy(), **TOLERANCE)


@torch.no_grad()
def test_widths_that_the_layers_divide_are_rounded_down():
    theirs = random_model(small_config(embed_dim=12, decoder_nb_heads=3, prompt_mask_hidden_dim=6))
    ours = TFSegmentAnythingModel(theirs.config)
    ours.load_state_dict({name: w.numpy() for name, w in theirs.state_dict().items()})
    embeddings = theirs.get_image_embeddings(random_images(theirs.config))
    prompts = random_prompts(theirs.config)
    expected = theirs.decode(embeddings, *prompts.values())
    for is_fast in (True, False):
        outputs = keras_decode(ours, is_fast, embeddings, prompts)
        for output, of_torch in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output, of_torch.numpy(), **TOLERANCE)


@torch.no_grad()
def test_many_points_and_a_mask_for_all_prompt_sets(models):
    theirs, ours = models
    embeddings = theirs.get_image_embeddings(random_images(theirs.config))
    prompts = {
        "input_points": torch.rand(IMAGES, SETS, 30, 2) * 60,
        "input_labels": torch.ones(IMAGES, SETS, 30, dtype=torch.long),
        "input_masks": random_prompts(theirs.config)["input_masks"][:, :1],
    }
    fast = keras_decode(ours, True, embeddings, prompts)
    for output, other in zip(fast, keras_decode(ours, False, embeddings, prompts), strict=True):
        np.testing.assert_allclose(output, other, **TOLERANCE)


def count_fast(monkeypatch):
    calls, decode = [], FastDecoder.decode
    monkeypatch.setattr(FastDecoder, "decode", lambda *args: calls.append(1) or decode(*args))
    return calls


def changed(model):
    """Where outputs show that a linear layer's are doubled."""
    for block in model.mask_decoder.transformer.layers:
        yield block.cross_attn_token_to_image, "v_proj"
        yield block.cross_attn_image_to_token, "k_proj"
        yield block.mlp, "lin1"


def double(layer):
    """Gives a layer a call of its own, as who traces or counts does."""
    call = layer.call
    layer.call = lambda x, **options: 2 * call(x, **options)


@pytest.mark.slow
def test_what_stands_in_for_a_layer_acts(monkeypatch):
    """In the model, and in a predictor's graphs although they were traced before."""
    calls = count_fast(monkeypatch)
    random = random_model(small_config())
    weights = {name: tensor.numpy() for name, tensor in random.state_dict().items()}
    model, expected = (TFSegmentAnythingModel(small_config()) for _ in range(2))
    for one in (model, expected):
        one.load_state_dict(weights)
    backend = KerasBackend(model)
    image = backend.encode_images(random_images(model.config, 1).numpy())
    clicks = random_prompts(model.config)["input_points"][0].numpy()
    labels = np.ones(clicks.shape[:2], np.int64)

    def answer(backend):
        return backend.decode(image, clicks, labels, None, None, True)

    answer(backend)
    assert calls
    calls.clear()
    for owner, name in changed(model):
        double(getattr(owner, name))
    for owner, name in changed(expected):
        layer = getattr(owner, name)
        layer.set_weights([2 * weight for weight in layer.get_weights()])
    outputs = answer(backend)
    assert not calls
    for output, other in zip(outputs, answer(KerasBackend(expected)), strict=True):
        np.testing.assert_allclose(output, other, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_adapters_and_8_bits_act():
    model = TFSegmentAnythingModel(small_config())
    assert model.mask_decoder.may_be_fast()
    backend = KerasBackend(model)
    image = backend.encode_images(random_images(model.config, 1).numpy())
    box = np.float32([[[3, 4, 50, 60]]])
    before, _ = backend.decode(image, None, None, box, None, True)
    attention = model.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    attention.v_proj.enable_lora(2)
    assert not model.mask_decoder.may_be_fast()
    attention.v_proj.lora_kernel_b.assign(np.ones(attention.v_proj.lora_kernel_b.shape))
    adapted, _ = backend.decode(image, None, None, box, None, True)
    kernel = np.asarray(ops.convert_to_tensor(attention.v_proj.kernel))
    merged = TFSegmentAnythingModel(small_config())
    state = model.state_dict()
    assert np.abs(adapted - before).max() > 1e-3
    merged.load_state_dict(state)
    merged_attention = merged.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    np.testing.assert_allclose(
        np.asarray(ops.convert_to_tensor(merged_attention.v_proj.kernel)), kernel
    )
    again, _ = KerasBackend(merged).decode(image, None, None, box, None, True)
    np.testing.assert_allclose(adapted, again, **TOLERANCE)
    model.mask_decoder.transformer.layers[1].mlp.lin1.quantize("int8")
    assert not model.mask_decoder.may_be_fast()
    eighth, _ = backend.decode(image, None, None, box, None, True)
    assert 0 < np.abs(eighth - adapted).max() < 0.1 * np.abs(adapted).max()
    assert keras.backend.backend() == "tensorflow"
