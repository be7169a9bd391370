"""Checkpoints of Meta and Hugging Face, adapted while they load, against who saved them."""

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from tests.parity.peers import huggingface_model, meta_model
from tests.tiny import random_images, random_model, square_config

EXACT = {"rtol": 0.0, "atol": 0.0}
FIRST_KERNEL = "image_encoder.patch_embed.proj.weight"
# What the peer's three channels have to be for it to see what a model of other channels sees.
MIXED = {
    1: [[1.0], [1.0], [1.0]],
    4: [[0.75, 0.0, 0.0, 0.75], [0.0, 0.75, 0.0, 0.0], [0.0, 0.0, 0.75, 0.0]],
}


@pytest.fixture(scope="module", params=["meta", "huggingface"])
def saved(request, tmp_path_factory):
    """A model of ours, a peer's encoder with its weights, and where the peer saved them."""
    # A file of Meta's does not tell the decoder's heads: 8, as all of theirs have.
    model = random_model(square_config(decoder_nb_heads=8, embed_dim=48))
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "huggingface":
        peer = huggingface_model(model)
        peer.save_pretrained(path)
        return model, peer.get_image_embeddings, path
    sam = meta_model(model)
    torch.save(sam.state_dict(), path / "sam.pth")
    return model, sam.image_encoder, path / "sam.pth"


@pytest.mark.parametrize("channels", MIXED)
@torch.no_grad()
def test_other_channels_are_seen_as_a_mixture(saved, channels):
    model, encode, path = saved
    loaded = SegmentAnythingModel.from_pretrained(path, in_channels=channels)
    weights, expected = loaded.state_dict(), model.state_dict()
    assert expected.pop(FIRST_KERNEL).shape == (24, 3, 8, 8)
    assert weights.pop(FIRST_KERNEL).shape == (24, channels, 8, 8)
    assert_close(weights, expected, **EXACT)
    pixels = random_images(loaded.config)
    mixed = torch.einsum("kc,nchw->nkhw", torch.tensor(MIXED[channels]), pixels)
    assert_close(loaded.get_image_embeddings(pixels), encode(mixed), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("channels", MIXED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_adapt_before_the_weights_are_rounded(saved, channels, dtype):
    _, _, path = saved
    exact = SegmentAnythingModel.from_pretrained(path, in_channels=channels).state_dict()
    loaded = SegmentAnythingModel.from_pretrained(path, in_channels=channels, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    weights = loaded.state_dict()
    rounded = {name: weight.to(weights[name].dtype) for name, weight in exact.items()}
    assert_close(weights, rounded, **EXACT)
