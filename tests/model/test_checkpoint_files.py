"""Files of weights as people have them: wrapped, prefixed, halved, and those of other models."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segment_anything_transformers.model import checkpoints
from segment_anything_transformers.model.checkpoint_files import WRAPPERS, unwrapped_names
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.weight_arrays import unfold_batch_norms
from segment_anything_transformers.model.weight_names import to_huggingface
from tests.tiny import random_model, square_config, tiny_vit_config

# The decoder's heads leave no trace in the shapes; Meta's models have 8.
META_LIKE = {"decoder_nb_heads": 8, "embed_dim": 48}
OTHER_ENTRIES = {
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    "epoch": 7,
    "best_iou": np.float64(0.9),
    "args": argparse.Namespace(lr=1e-4, work_dir=Path("runs")),
}
PREFIXES = (
    "module.",
    "model.",
    "sam.",
    "_orig_mod.",
    "net.sam_model.",
    "module._orig_mod.",
    "_forward_module.model.",
)
PIXELS = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}


@pytest.fixture(scope="module", params=["vit", "tiny_vit"])
def model(request):
    if request.param == "vit":
        return random_model(square_config(**META_LIKE))
    fields = {"input_size": (1024, 1024), "encoder_mlp_ratio": 4.0}
    return random_model(tiny_vit_config(**META_LIKE, **fields))


@pytest.fixture(scope="module")
def theirs(model):
    """Weights as a training of Meta's or MobileSAM's code saves them."""
    weights = model.state_dict()
    is_tiny = model.config.encoder_type == "tiny_vit"
    return unfold_batch_norms(weights) if is_tiny else weights


def assert_loads(source, model, **options):
    loaded, info = SegmentAnythingModel.from_pretrained(source, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0.0, atol=1e-6, msg=name)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_weights_load_beside_other_entries(model, theirs, tmp_path, wrapper):
    torch.save({wrapper: theirs, **OTHER_ENTRIES}, tmp_path / "last.ckpt")
    assert_loads(tmp_path / "last.ckpt", model)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixed_weights_load_and_what_lacks_the_prefix_is_left_out(
    model, theirs, tmp_path, prefix
):
    state = {prefix + name: w for name, w in {**theirs, **PIXELS}.items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(2)}}, tmp_path / "a.pt")
    assert_loads(tmp_path / "a.pt", model)


@pytest.mark.parametrize("part", ["image_encoder._orig_mod.", "image_encoder.module."])
def test_a_part_that_was_wrapped_alone_loads(model, theirs, tmp_path, part):
    state = {name.replace("image_encoder.", part): w for name, w in theirs.items()}
    torch.save(state, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", model)


@pytest.mark.parametrize("name", ["best.pth", "best.pt", "best.bin", "best.safetensors"])
def test_one_file_in_a_folder_without_a_configuration_loads(model, theirs, tmp_path, name):
    if name.endswith(".safetensors"):
        save_file({n: w.contiguous() for n, w in {**theirs, **PIXELS}.items()}, tmp_path / name)
    else:
        torch.save({**theirs, **PIXELS}, tmp_path / name)
    loaded = assert_loads(tmp_path, model)
    assert loaded.config.encoder_type == model.config.encoder_type


def test_several_files_in_a_folder_are_named(theirs, tmp_path):
    for name in ("first.pth", "last.pth"):
        torch.save(theirs, tmp_path / name)
    with pytest.raises(OSError, match=r"several files of weights, first\.pth, last\.pth"):
        SegmentAnythingModel.from_pretrained(tmp_path)


def test_half_precision_loads(model, theirs, tmp_path):
    halves = {n: w.half() if w.is_floating_point() else w for n, w in theirs.items()}
    torch.save({"model": halves}, tmp_path / "half.pt")
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "half.pt", dtype=torch.float32)
    expected = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=2e-3, atol=1e-4, msg=name)


def test_a_pruned_model_of_hugging_face_loads(tmp_path):
    """Such as SlimSAM: heads and perceptrons of any width."""
    config = square_config(**META_LIKE, encoder_embed_dim=42, encoder_mlp_ratio=29 / 42)
    model = random_model(config)
    from tests.parity.peers import huggingface_model

    huggingface_model(model).save_pretrained(tmp_path)
    assert_loads(tmp_path, model)
    save_file(to_huggingface(model.state_dict()), tmp_path / "alone.safetensors")
    assert_loads(tmp_path / "alone.safetensors", model)


def test_two_models_in_a_file_are_named():
    names = [f"{who}.image_encoder.pos_embed" for who in ("student", "teacher")]
    with pytest.raises(ValueError, match=r"several models, under 'student\.', 'teacher\.'"):
        unwrapped_names(dict.fromkeys(names, torch.zeros(1)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
        ("memory_encoder.mask_downsampler.encoder.0.weight", "SAM 2"),
        ("mask_decoder.hf_token.weight", "SAM-HQ"),
        ("model.0.conv.weight", "FastSAM"),
        ("image_encoder.backbone.input_stem.op_list.0.conv.weight", "EfficientViT-SAM"),
        ("base_model.model.image_encoder.blocks.0.attn.qkv.lora_A.weight", "an adapter"),
        ("image_encoder.blocks.0.attn.qkv.weight_scale", "quantised"),
    ],
)
def test_files_of_other_models_are_named(tmp_path, name, kind):
    torch.save({"model": {name: torch.zeros(2, 2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt is no plain .*it is .*{kind}"):
        SegmentAnythingModel.from_pretrained(tmp_path / "other.pt")


def test_integer_weights_are_quantised(theirs, tmp_path):
    name = "mask_decoder.iou_prediction_head.layers.0.weight"
    torch.save({**theirs, name: theirs[name].to(torch.int8)}, tmp_path / "eight.pt")
    with pytest.raises(ValueError, match=r"it is quantised.*Give the file that it was made from"):
        SegmentAnythingModel.from_pretrained(tmp_path / "eight.pt")


def test_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "history": [1.0]}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match=r"but one of \['epoch', 'history'\].*'state_dict'"):
        SegmentAnythingModel.from_pretrained(tmp_path / "log.pt")


def test_another_file_under_a_presets_name_is_refused(theirs, tmp_path, monkeypatch):
    torch.save(theirs, tmp_path / "mobile_sam.pt")
    found = str(tmp_path / "mobile_sam.pt")
    monkeypatch.setattr(checkpoints, "cached_file", lambda *_, **__: found)
    with pytest.raises(OSError, match=r"not the file that this preset names.*6dbb90523a35"):
        SegmentAnythingModel.from_pretrained("mobile_sam")


def test_mobile_sam_by_name_and_by_its_repository(tmp_path, monkeypatch):
    model = random_model(tiny_vit_config(**META_LIKE, encoder_mlp_ratio=4.0))
    path = tmp_path / "mobile_sam.pt"
    torch.save(unfold_batch_norms(model.state_dict()), path)
    asked = []

    def cached(location, name, **_):
        asked.append((location, name))
        return str(path)

    monkeypatch.setattr(checkpoints, "cached_file", cached)
    monkeypatch.setattr(checkpoints, "_verified", lambda path, _: path)
    fields = {"input_size": (96, 64)}
    loaded = assert_loads("dhkim2810/MobileSAM", model, **fields)
    assert loaded.config.input_size == (96, 64)
    with pytest.raises(ValueError, match="do not fit the configuration"):  # it is the preset's
        SegmentAnythingModel.from_pretrained("mobile_sam")
    assert asked == [("dhkim2810/MobileSAM", "mobile_sam.pt")] * 2
