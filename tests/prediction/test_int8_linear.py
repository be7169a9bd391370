import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from segment_anything_transformers.prediction.int8_linear import Int8Linear, use_int8_linears
from segment_anything_transformers.prediction.predictor import SAMPredictor
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model


def rounded(matrix):
    """Each row on the 255 steps between its largest absolute value and its negative."""
    scales = matrix.abs().amax(dim=1, keepdim=True) / 127
    return (matrix / scales).round() * scales


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_rounded_matrices(bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 36, bias=bias), torch.randn(2, 5, 24)
    expected = rounded(x.flatten(0, 1)) @ rounded(linear.weight.detach()).T
    expected = (expected + (linear.bias if bias else 0)).detach().view(2, 5, 36)
    layer = Int8Linear(linear)
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert_close(layer(x), linear(x).detach(), rtol=0, atol=0.05)
    assert layer.weight.dtype == torch.int8
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_zeros_give_the_bias():
    linear = nn.Linear(8, 3)
    nn.init.zeros_(linear.weight[1])
    out = Int8Linear(linear)(torch.zeros(4, 8))
    assert_close(out, linear.bias.detach().expand(4, 3))


@torch.no_grad()
def test_only_the_encoders_linear_layers_are_replaced():
    model = random_model(small_config())
    pixels = random_images(model.config)
    expected = model.get_image_embeddings(pixels)
    decoder = model.mask_decoder.state_dict()
    assert use_int8_linears(model) is model
    layers = [*model.image_encoder.modules()]
    assert any(isinstance(layer, Int8Linear) for layer in layers)
    assert not any(isinstance(layer, nn.Linear) for layer in layers)
    assert model.mask_decoder.state_dict().keys() == decoder.keys()
    embeddings = model.get_image_embeddings(pixels)
    # two decimal digits are what 8 bits hold
    assert (embeddings - expected).norm() / expected.norm() < 0.02
    assert (embeddings - expected).abs().max() > 0


def test_the_predictor_runs_a_copy():
    model = random_model(small_config())
    image = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    logits = []
    for dtype in (None, "int8"):
        predictor = SAMPredictor(model, dtype=dtype)
        predictor.set_image(image)
        logits.append(predictor([[20, 30]])[2])
    assert not any(isinstance(layer, Int8Linear) for layer in model.modules())
    assert 0 < np.abs(logits[1] - logits[0]).max() < 0.1 * np.abs(logits[0]).max()


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_encoder_is_one_graph_with_the_same_embeddings():
    model = random_model(small_config())
    pixels = random_images(model.config)
    expected, graphs = model.get_image_embeddings(pixels), []
    model.image_encoder.compile(
        fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
    )
    assert_close(model.get_image_embeddings(pixels), expected, rtol=0, atol=1e-5)
    assert len(graphs) == 1
    predictor = SAMPredictor(model)
    predictor.set_image(np.zeros((70, 110, 3), np.uint8))
    assert len(graphs) == 2  # for a batch of another length
