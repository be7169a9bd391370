import json
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, SamConfig
from transformers.activations import ACT2FN

from segment_anything_transformers.model.checkpoint_files import read_weights
from segment_anything_transformers.model.checkpoints import config_fields_from_weights
from segment_anything_transformers.model.configuration_segment_anything import (
    ENCODER_NORM_EPS,
    SegmentAnythingModelConfig,
    list_presets,
)
from segment_anything_transformers.model.huggingface_sam import (
    config_fields_from_huggingface,
    config_to_huggingface,
    processor_to_huggingface,
)
from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.weight_arrays import adapt_weights
from segment_anything_transformers.model.weight_names import to_huggingface
from tests.fake_backend import small_config
from tests.parity.peers import huggingface_model, meta_model
from tests.tiny import random_images, random_model, random_prompts, square_config

# The decoder's heads leave no trace in the shapes; Meta's models have 8.
META_LIKE = {"decoder_nb_heads": 8, "embed_dim": 48}


@pytest.fixture(scope="module")
def model():
    return random_model(square_config())


def assert_same_weights(one, other):
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# -------------------------------------------------------------------------------------- folders


def test_save_and_load_are_bit_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SegmentAnythingModel.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    assert loaded.config.input_size == model.config.input_size
    assert not loaded.training
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(model.state_dict())


def test_sharded_weights_are_bit_equal(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(SegmentAnythingModel.from_pretrained(tmp_path), model)


def test_auto_model_loads_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SegmentAnythingModel
    assert_same_weights(loaded, model)


def test_dtype_and_attention_are_passed_on(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SegmentAnythingModel.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", mask_threshold=0.25
    )
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert loaded.mask_threshold == 0.25


@torch.no_grad()
def test_huggingface_repositories_load_and_are_saved_under_our_names(model, tmp_path):
    peer = huggingface_model(model)
    peer.save_pretrained(tmp_path / "theirs")
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "theirs")
    assert_same_weights(loaded, model)
    assert loaded.config.model_type == "segment_anything"
    pixels, prompts = random_images(model.config), random_prompts(model.config)
    inputs = {"pixel_values": pixels, "input_boxes": prompts["input_boxes"][:, :, 0]}
    assert_close(loaded(**inputs).pred_masks, peer(**inputs).pred_masks, rtol=0.0, atol=1e-4)
    loaded.save_pretrained(tmp_path / "ours")
    assert sorted(load_file(tmp_path / "ours/model.safetensors")) == sorted(model.state_dict())
    assert_same_weights(SegmentAnythingModel.from_pretrained(tmp_path / "ours"), model)


def test_huggingface_shards_load(model, tmp_path):
    huggingface_model(model).save_pretrained(tmp_path, max_shard_size="50KB")
    assert_same_weights(SegmentAnythingModel.from_pretrained(tmp_path), model)


def assert_same_fields(fields, config):
    made = SegmentAnythingModelConfig(**fields)
    names = [name for name in config.__annotations__ if name not in ("name", "url")]
    assert {n: getattr(made, n) for n in names} == {n: getattr(config, n) for n in names}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "hard_swish", "mish", "relu6"])
def test_the_configuration_goes_to_transformers_and_back(activation):
    config = square_config(encoder_act_layer=activation, encoder_norm_layer="layer_norm")
    theirs = config_to_huggingface(config, ENCODER_NORM_EPS)
    assert theirs["vision_config"]["hidden_act"] in ACT2FN
    again = config_fields_from_huggingface(SamConfig(**theirs).to_dict(), ENCODER_NORM_EPS)
    expected = square_config(encoder_act_layer=activation, encoder_norm_layer="layer_norm_eps_1e-5")
    assert_same_fields(again, expected)


def test_the_default_configurations_mean_the_same_model():
    base = SegmentAnythingModelConfig.from_preset("sam_vit_b")
    theirs = SamConfig().to_dict()
    assert_same_fields(config_fields_from_huggingface(theirs, ENCODER_NORM_EPS), base)
    ours = config_to_huggingface(base, ENCODER_NORM_EPS)
    assert ours.pop("model_type") == theirs["model_type"]
    assert ours.pop("architectures") == ["SamModel"]
    for part, fields in ours.items():
        assert fields == {name: theirs[part][name] for name in fields}


def test_the_configuration_of_an_oblong_input_goes_there_and_back():
    theirs = config_to_huggingface(small_config(), ENCODER_NORM_EPS)
    again = config_fields_from_huggingface(theirs, ENCODER_NORM_EPS)
    assert_same_fields(again, small_config())


def test_the_image_processor_goes_to_transformers():
    """What `preprocessor_config.json` says in the Hub's repositories of SAM."""
    config = SegmentAnythingModelConfig.from_preset("sam_vit_b")
    image_processor = SegmentAnythingImageProcessor.from_config(config)
    ours = processor_to_huggingface(image_processor.to_dict())
    assert json.loads(json.dumps(ours)) == {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "SamImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "mask_pad_size": {"height": 256, "width": 256},
        "mask_size": {"longest_edge": 256},
        "pad_size": {"height": 1024, "width": 1024},
        "processor_class": "SamProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1024},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_rel_pos": False}, "use_rel_pos must be true"), ({"layer_norm_eps": 0.1}, "got 0.1")],
)
def test_huggingface_models_of_another_form_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_fields_from_huggingface({"vision_config": change}, ENCODER_NORM_EPS)


# ----------------------------------------------------------------------------------- Meta files


def test_meta_file_loads_with_a_configuration_from_its_shapes(tmp_path):
    model = random_model(square_config(**META_LIKE))
    torch.save(meta_model(model).state_dict(), tmp_path / "sam.pth")
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "sam.pth")
    assert_same_weights(loaded, model)
    for field in SegmentAnythingModelConfig.__annotations__:
        assert getattr(loaded.config, field) == getattr(model.config, field), field


@pytest.mark.parametrize("name", list_presets())
def test_shapes_tell_the_presets(name):
    config = SegmentAnythingModelConfig.from_preset(name, url="")
    with torch.device("meta"):
        weights = SegmentAnythingModel(config).state_dict()
    assert SegmentAnythingModelConfig(**config_fields_from_weights(weights)) == config


def test_fine_tuned_files_in_a_wrapper_load(tmp_path):
    model = random_model(square_config(**META_LIKE))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "tuned.pth")
    assert_same_weights(SegmentAnythingModel.from_pretrained(tmp_path / "tuned.pth"), model)


def test_a_single_safetensors_file_loads(tmp_path):
    model = random_model(square_config(**META_LIKE))
    save_file(to_huggingface(model.state_dict()), tmp_path / "theirs.safetensors")
    loaded = SegmentAnythingModel.from_pretrained(tmp_path / "theirs.safetensors")
    assert_same_weights(loaded, model)


# --------------------------------------------------------------------------------- other sizes


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@torch.no_grad()
def test_channels_adapt(model, tmp_path, channels):
    model.save_pretrained(tmp_path)
    loaded = SegmentAnythingModel.from_pretrained(tmp_path, in_channels=channels)
    assert loaded.image_encoder.patch_embed.proj.weight.shape[1] == channels
    grey = torch.randn(1, 1, *model.config.input_size)
    ours = loaded.get_image_embeddings(grey.expand(-1, channels, -1, -1))
    if channels in (1,):  # a grey picture gives what it gave in three equal channels
        assert_close(ours, model.get_image_embeddings(grey.expand(-1, 3, -1, -1)))
    kernel = model.image_encoder.patch_embed.proj.weight
    expected = kernel.sum(1, keepdim=True) if channels == 1 else None
    if channels > 1:
        picked = [channel % 3 for channel in range(channels)]
        expected = kernel[:, picked] * (3 / channels)
    assert_close(loaded.image_encoder.patch_embed.proj.weight, expected)


@torch.no_grad()
def test_input_size_adapts_and_fits_stay_the_same_arrays(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SegmentAnythingModel.from_pretrained(tmp_path, input_size=(48, 120))
    assert loaded.image_encoder.pos_embed.shape[1:3] == (6, 15)
    assert loaded(**loaded.dummy_inputs).pred_masks.shape[3:] == (24, 60)
    weights = model.state_dict()
    same = adapt_weights(weights, model.config)
    assert all(same[name] is weights[name] for name in weights)


def test_adaptation_in_numpy_equals_that_in_torch(model):
    config = square_config(input_size=(48, 120), in_channels=4)
    weights = model.state_dict()
    in_torch = adapt_weights(weights, config)
    in_numpy = adapt_weights({name: w.numpy() for name, w in weights.items()}, config)
    for name, tensor in in_torch.items():
        assert isinstance(in_numpy[name], np.ndarray)
        assert_close(torch.from_numpy(in_numpy[name]), tensor, rtol=0.0, atol=1e-6)


# ------------------------------------------------------------------------------------ bad files


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_file_runs_nothing(tmp_path):
    trace = tmp_path / "it_ran"
    with open(tmp_path / "sam.pth", "wb") as file:
        pickle.dump({"weight": Hostile(trace)}, file)
    torch.save({"weight": Hostile(trace)}, tmp_path / "zip.pth")
    for name in ("sam.pth", "zip.pth"):
        with pytest.raises(OSError, match=r"nothing of it was run"):
            SegmentAnythingModel.from_pretrained(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(model, tmp_path, share):
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    for path in (tmp_path / "model.safetensors", tmp_path / "sam.pth"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(OSError, match=re.escape(str(path))):
            read_weights([path])


def test_a_text_file_named_safetensors_is_refused(tmp_path):
    (tmp_path / "notes.safetensors").write_text("These are not weights.")
    with pytest.raises(OSError, match=r"notes\.safetensors is not a safetensors file"):
        SegmentAnythingModel.from_pretrained(tmp_path / "notes.safetensors")


def test_a_file_of_other_weights_is_refused(tmp_path):
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not the weights of a Segment Anything.*lm_head"):
        SegmentAnythingModel.from_pretrained(tmp_path / "other.safetensors")


def test_a_folder_of_other_weights_is_refused(tmp_path):
    small_config().save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no weight of SegmentAnythingModel.*lm_head"):
        SegmentAnythingModel.from_pretrained(tmp_path)


def test_a_list_is_not_a_dictionary_of_tensors(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no dictionary of tensors, but list"):
        SegmentAnythingModel.from_pretrained(tmp_path / "list.pth")


def test_misshaped_weights_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mask_tokens\.weight is \(4, 32\), expected \(6, 32\)"):
        SegmentAnythingModel.from_pretrained(tmp_path, nb_multimask_outputs=5)
    started = SegmentAnythingModel.from_pretrained(
        tmp_path, nb_multimask_outputs=5, ignore_mismatched_sizes=True
    )
    assert started.mask_decoder.mask_tokens.weight.shape == (6, 32)
    assert torch.isfinite(started.mask_decoder.mask_tokens.weight).all()


def test_missing_and_unexpected_weights_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["stranger"] = weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = SegmentAnythingModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"mask_decoder.iou_token.weight"}
    assert set(info["unexpected_keys"]) == {"stranger"}
    assert_close(
        loaded.prompt_encoder.no_mask_embed.weight, weights["prompt_encoder.no_mask_embed.weight"]
    )


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(
        OSError, match=r"has no model\.safetensors.*sam_vit_t, mobile_sam, sam_vit_b"
    ):
        SegmentAnythingModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gone.pth", "sam_vit_x", "./folder/of/mine", "/no/such/folder"])
def test_a_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)} does not exist.*sam_vit_t"):
        SegmentAnythingModel.from_pretrained(name)


@pytest.mark.parametrize(
    ("preset", "repository"),
    [
        ("sam_vit_b", "facebook/sam-vit-base"),
        ("sam_vit_l", "facebook/sam-vit-large"),
        ("sam_vit_h", "facebook/sam-vit-huge"),
    ],
)
def test_presets_ask_the_hub_for_their_repository(preset, repository, tmp_path):
    with pytest.raises(OSError, match=repository):
        SegmentAnythingModel.from_pretrained(preset, cache_dir=tmp_path)


def test_a_folder_named_like_a_preset_is_that_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("sam_vit_t")
    SegmentAnythingImageProcessor.from_config(model.config).save_pretrained("sam_vit_t")
    loaded = SegmentAnythingModel.from_pretrained("sam_vit_t")
    assert loaded.config.input_size == model.config.input_size
    assert loaded.config.encoder_embed_dim == model.config.encoder_embed_dim
    processor = SegmentAnythingImageProcessor.from_pretrained("sam_vit_t")
    assert processor.size["longest_edge"] == max(model.config.input_size) != 1024


def test_a_preset_loads_from_the_hubs_cache(model, tmp_path):
    """What a download leaves behind, then offline: the names and configuration of transformers."""
    snapshot = tmp_path / "models--facebook--sam-vit-base/snapshots/0123456789"
    huggingface_model(model).save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123456789")
    loaded = SegmentAnythingModel.from_pretrained(
        "sam_vit_b", config=model.config, cache_dir=tmp_path
    )
    assert_same_weights(loaded, model)


# ---- weights and files that cannot be meant


def rewritten(model, folder, change):
    """The folder of a saved model whose weights were changed."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without_half(weights):
    for name in sorted(weights)[::2]:
        del weights[name]


def with_a_nan(weights):
    weights["mask_decoder.iou_token.weight"][0, 3] = float("nan")


def with_infinity(weights):
    weights["image_encoder.pos_embed"][0, 0, 0, 0] = float("inf")


def of_integers(weights):
    name = "mask_decoder.iou_token.weight"
    weights[name] = weights[name].to(torch.int8)


DAMAGED = {
    with_a_nan: r"1 weights of .* are NaN or infinite: mask_decoder\.iou_token\.weight",
    with_infinity: r"are NaN or infinite: image_encoder\.pos_embed",
    of_integers: r"no plain Segment Anything model: it is quantised",
}


@pytest.mark.parametrize("change", DAMAGED)
def test_weights_that_give_nonsense_are_refused(model, tmp_path, change):
    with pytest.raises(ValueError, match=DAMAGED[change]):
        SegmentAnythingModel.from_pretrained(rewritten(model, tmp_path, change))


def test_missing_weights_are_refused(model, tmp_path):
    folder = rewritten(model, tmp_path, without_half)
    with pytest.raises(ValueError, match=r"87 of 174 weights are missing from .* incomplete"):
        SegmentAnythingModel.from_pretrained(folder)
    SegmentAnythingModel.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_what_a_derived_class_adds_may_be_missing(model, tmp_path):
    class WithAHead(SegmentAnythingModel):
        def __init__(self, config):
            super().__init__(config)
            self.mask_decoder.head = torch.nn.Linear(2, 3)
            self.post_init()

    model.save_pretrained(tmp_path)
    loaded = WithAHead.from_pretrained(tmp_path)
    assert_close(loaded.image_encoder.pos_embed, model.image_encoder.pos_embed)


def test_large_weights_that_are_finite_are_taken(model, tmp_path):
    def enlarge(weights):
        weights["mask_decoder.iou_token.weight"][:] = 3e38

    SegmentAnythingModel.from_pretrained(rewritten(model, tmp_path, enlarge))


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "[" * 100_000], ids=["list", "number", "null", "deep"]
)
def test_a_config_file_that_is_none(model, tmp_path, text):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"The configuration of .* cannot be used"):
        SegmentAnythingModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", ["x", None, [], {}, [None, None]], ids=str)
def test_a_config_file_with_wrong_types(model, tmp_path, value):
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    ours = [name for name in SegmentAnythingModelConfig.__annotations__ if name in fields]
    assert len(ours) > 20
    for name in ours:
        is_text = name in ("name", "url", "first_conv")
        is_list = name.endswith("indices")
        if (value == "x" and is_text) or (value == [] and is_list) or value == fields[name]:
            continue  # no wrong types
        (tmp_path / "config.json").write_text(json.dumps({**fields, name: value}))
        with pytest.raises(ValueError, match=name):
            SegmentAnythingModel.from_pretrained(tmp_path)


INDICES = {
    "{": "is not JSON",
    "[]": '"weight_map"',
    "{}": '"weight_map"',
    '{"metadata": {}}': '"weight_map"',
    '{"metadata": {}, "weight_map": {}}': '"weight_map"',
    '{"metadata": {}, "weight_map": []}': '"weight_map"',
    '{"metadata": {}, "weight_map": {"a": 3}}': "files beside it, got 3",
    '{"metadata": {}, "weight_map": {"a": ""}}': "files beside it, got ''",
    '{"metadata": {}, "weight_map": {"a": "../other/model.safetensors"}}': "Nothing outside",
    '{"metadata": {}, "weight_map": {"a": "/etc/passwd"}}': "files beside it, got '/etc/passwd'",
    '{"metadata": {}, "weight_map": {"a": "C:\\\\x.safetensors"}}': "Nothing outside its folder",
    '{"metadata": {}, "weight_map": {"a": ".."}}': "Nothing outside its folder",
}


@pytest.mark.parametrize("text", INDICES)
def test_an_index_that_names_no_files_of_its_folder(model, tmp_path, text):
    model.save_pretrained(tmp_path / "mine")
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "mine/model.safetensors").unlink()
    (tmp_path / "mine/model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=INDICES[text]):
        SegmentAnythingModel.from_pretrained(tmp_path / "mine")
