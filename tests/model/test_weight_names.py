"""The tables of names, against the names that the other implementations really have."""

import h5py
import numpy as np
import pytest
import torch
from transformers import SamModel

from segment_anything_transformers.model.checkpoint_files import read_weights
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.weight_names import (
    from_huggingface,
    from_tfimm,
    naming_of,
    rename,
    to_huggingface,
    to_our_names,
    to_tfimm,
)
from tests.parity.peers import huggingface_model, meta_model
from tests.tiny import random_model, square_config

# One of each kind; the shapes are those of Keras for the tiny configuration.
TFIMM_WEIGHTS = {
    "image_encoder/pos_embed": (1, 11, 11, 24),
    "image_encoder/patch_embed/proj/kernel": (8, 8, 3, 24),
    "image_encoder/patch_embed/proj/bias": (24,),
    "image_encoder/blocks/1/norm1/gamma": (24,),
    "image_encoder/blocks/1/norm1/beta": (24,),
    "image_encoder/blocks/1/attn/rel_pos_h": (21, 8),
    "image_encoder/blocks/1/attn/qkv/kernel": (24, 72),
    "image_encoder/blocks/1/attn/qkv/bias": (72,),
    "image_encoder/blocks/1/mlp/lin1/kernel": (24, 96),
    "image_encoder/neck/2/kernel": (3, 3, 32, 32),
    "image_encoder/neck/3/beta": (32,),
    "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix": (2, 16),
    "prompt_encoder/point_embeddings/3/weight": (1, 32),
    "prompt_encoder/not_a_point_embed/weight": (1, 32),
    "prompt_encoder/no_mask_embed/weight": (1, 32),
    "prompt_encoder/mask_downscaling/0/kernel": (2, 2, 1, 5),
    "prompt_encoder/mask_downscaling/1/gamma": (5,),
    "prompt_encoder/mask_downscaling/3/kernel": (2, 2, 5, 20),
    "mask_decoder/iou_token/weight": (1, 32),
    "mask_decoder/mask_tokens/weight": (4, 32),
    "mask_decoder/transformer/layers/1/self_attn/q_proj/kernel": (32, 32),
    "mask_decoder/transformer/layers/1/cross_attn_token_to_image/q_proj/kernel": (32, 16),
    "mask_decoder/transformer/layers/1/cross_attn_image_to_token/out_proj/bias": (32,),
    "mask_decoder/transformer/layers/1/mlp/lin2/kernel": (28, 32),
    "mask_decoder/transformer/layers/1/norm4/gamma": (32,),
    "mask_decoder/transformer/final_attn_token_to_image/v_proj/kernel": (32, 16),
    "mask_decoder/transformer/norm_final_attn/beta": (32,),
    "mask_decoder/output_upscaling/0/kernel": (2, 2, 8, 32),
    "mask_decoder/output_upscaling/3/bias": (4,),
    "mask_decoder/output_hypernetworks_mlps/2/layers/2/kernel": (32, 4),
    "mask_decoder/iou_prediction_head/layers/0/kernel": (32, 36),
}


@pytest.fixture(scope="module")
def model():
    return random_model(square_config())


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.array_equal(np.asarray(array), np.asarray(other[name])), name


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_names_go_to_transformers_and_back(depth):
    weights = random_model(square_config(decoder_iou_head_depth=depth)).state_dict()
    theirs = to_huggingface(weights)
    assert len(theirs) == len(weights)
    assert naming_of(theirs) == "huggingface"
    assert_equal_weights(from_huggingface(theirs), weights)


def test_names_are_exactly_those_of_transformers(model):
    peer = SamModel(huggingface_model(model).config)
    names = set(peer.state_dict()) - {"prompt_encoder.shared_embedding.positional_embedding"}
    assert set(to_huggingface(model.state_dict())) == names


def test_names_are_exactly_those_of_meta(model):
    weights = model.state_dict()
    assert set(weights) == set(meta_model(model).state_dict())
    assert naming_of(weights) == "meta"
    assert_equal_weights(to_our_names(weights), weights)


def test_names_and_axes_go_to_tfimm_and_back(model):
    weights = model.state_dict()
    theirs = to_tfimm({name: tensor.numpy() for name, tensor in weights.items()}, "sam_vit_b")
    assert len(theirs) == len(weights)
    assert naming_of(theirs) == "tfimm"
    shapes = {
        name.removeprefix("sam_vit_b/").removesuffix(":0"): array.shape
        for name, array in theirs.items()
    }
    assert {name: shapes[name] for name in TFIMM_WEIGHTS} == TFIMM_WEIGHTS
    last_parts = {name.rpartition("/")[2] for name in shapes}
    assert last_parts == {name.rpartition("/")[2] for name in TFIMM_WEIGHTS} | {"rel_pos_w"}
    assert_equal_weights(from_tfimm(theirs), weights)
    assert_equal_weights(from_tfimm(to_tfimm(weights)), weights)  # tensors too


@pytest.mark.parametrize("nested", [True, False])
def test_a_file_of_tfimm_loads(model, tmp_path, nested):
    """As Keras 2 writes one: each weight below the name of its part, or of the whole model."""
    theirs = to_tfimm({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    path = tmp_path / "sam.h5"
    with h5py.File(path, "w") as file:
        for name, array in theirs.items():
            file[f"{name.split('/')[1]}/{name}" if nested else name] = array
    loaded = SegmentAnythingModel.from_pretrained(path, config=model.config)
    assert_equal_weights(loaded.state_dict(), model.state_dict())
    assert_equal_weights(from_tfimm(read_weights([path], "np")), model.state_dict())


def test_the_shapes_in_a_file_of_tfimm_tell_the_configuration(tmp_path):
    model = random_model(square_config(decoder_nb_heads=8, embed_dim=48))
    with h5py.File(tmp_path / "sam.h5", "w") as file:
        for name, array in to_tfimm(model.state_dict()).items():
            file[name] = array.numpy()
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "sam.h5")
    assert_equal_weights(loaded.state_dict(), model.state_dict())
    assert loaded.config.encoder_window_size == model.config.encoder_window_size


def test_other_h5_files_are_refused(tmp_path):
    (tmp_path / "notes.h5").write_text("These are not weights.")
    with pytest.raises(OSError, match=r"notes\.h5 is not an HDF5 file"):
        SegmentAnythingModel.from_pretrained(tmp_path / "notes.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["title"], file["count"], file["dense/kernel:0"] = "text", 3, np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"not the weights of a Segment Anything.*1 names"):
        SegmentAnythingModel.from_pretrained(tmp_path / "other.h5")


def test_without_h5py_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("segment_anything_transformers.model.checkpoint_files.h5py", None)
    with pytest.raises(ImportError, match=r"sam\.h5 is an HDF5 file.*pip install h5py"):
        read_weights([tmp_path / "sam.h5"])


def test_rename_replaces_whole_parts_only():
    pairs = [("a.{}.b", "x.{}.y")]
    assert rename("a.12.b.weight", pairs) == "x.12.y.weight"
    assert rename("a.12.bb.weight", pairs) == "a.12.bb.weight"
    assert rename("za.12.b", pairs) == "za.12.b"


def test_tensors_keep_their_framework(model):
    weights = from_tfimm(to_tfimm(model.state_dict()))
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
