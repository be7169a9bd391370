import inspect
import re

import pytest
from transformers import AutoConfig, SamConfig

from segment_anything_transformers.model.configuration_segment_anything import (
    ENCODER_ACTIVATIONS,
    SegmentAnythingModelConfig,
    list_presets,
    preset_of,
)

SPECIFICATION = {
    "name": "",
    "url": "",
    "in_channels": 3,
    "input_size": (1024, 1024),
    "fixed_input_size": True,
    "embed_dim": 256,
    "nb_multimask_outputs": 3,
    "mask_threshold": 0.0,
    "encoder_patch_size": 16,
    "encoder_embed_dim": 768,
    "encoder_nb_blocks": 12,
    "encoder_nb_heads": 12,
    "encoder_mlp_ratio": 4.0,
    "encoder_drop_rate": 0.0,
    "encoder_attn_drop_rate": 0.0,
    "encoder_drop_path_rate": 0.0,
    "encoder_norm_layer": "layer_norm_eps_1e-6",
    "encoder_act_layer": "gelu",
    "encoder_qkv_bias": True,
    "encoder_global_attn_indices": (2, 5, 8, 11),
    "encoder_window_size": 14,
    "prompt_mask_hidden_dim": 16,
    "decoder_nb_blocks": 2,
    "decoder_nb_heads": 8,
    "decoder_mlp_channels": 2048,
    "decoder_iou_head_depth": 3,
    "decoder_iou_hidden_dim": 256,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "image_encoder/patch_embed/proj",
}
ADDED = {
    "encoder_type": "vit",
    "encoder_stage_widths": (),
    "encoder_stage_depths": (),
    "encoder_stage_heads": (),
    "encoder_stage_windows": (),
}
"""Fields that follow those of the specification."""


def test_every_field_of_the_specification_has_its_default():
    config = SegmentAnythingModelConfig()
    fields = {**SPECIFICATION, **ADDED}
    assert {name: getattr(config, name) for name in fields} == fields
    assert list(SegmentAnythingModelConfig.__annotations__)[-len(fields) :] == list(fields)


def test_docstring_describes_every_field():
    described = re.findall(r"^\s+(\w+): ", inspect.getdoc(SegmentAnythingModelConfig), re.M)
    assert {*SPECIFICATION, *ADDED} <= set(described)


@pytest.mark.parametrize("name", list_presets())
def test_json_round_trip_is_equal(name, tmp_path):
    config = SegmentAnythingModelConfig.from_preset(name, encoder_drop_path_rate=0.1)
    config.save_pretrained(tmp_path)
    loaded = SegmentAnythingModelConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert isinstance(loaded.input_size, tuple)
    assert isinstance(loaded.encoder_global_attn_indices, tuple)
    assert AutoConfig.from_pretrained(tmp_path) == config


def test_round_trip_tells_configurations_apart(tmp_path):
    SegmentAnythingModelConfig(mask_threshold=0.5).save_pretrained(tmp_path)
    assert SegmentAnythingModelConfig.from_pretrained(tmp_path) != SegmentAnythingModelConfig()


def test_presets_are_the_models_of_the_paper():
    shapes = {
        "sam_vit_b": (768, 12, 12, (2, 5, 8, 11)),
        "sam_vit_l": (1024, 24, 16, (5, 11, 17, 23)),
        "sam_vit_h": (1280, 32, 16, (7, 15, 23, 31)),
    }
    for name, shape in shapes.items():
        config = SegmentAnythingModelConfig.from_preset(name)
        assert shape == (
            config.encoder_embed_dim,
            config.encoder_nb_blocks,
            config.encoder_nb_heads,
            config.encoder_global_attn_indices,
        )
    assert list_presets() == ["sam_vit_t", "mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"]


def test_a_model_of_hugging_face_has_the_name_of_its_preset(tmp_path):
    SamConfig().save_pretrained(tmp_path / "base")
    SamConfig(vision_config={"hidden_size": 24}).save_pretrained(tmp_path / "other")
    for folder, name in (("base", "sam_vit_b"), ("other", "")):
        assert SegmentAnythingModelConfig.from_pretrained(tmp_path / folder).name == name
    named = SegmentAnythingModelConfig.from_pretrained(tmp_path / "base", name="mine")
    assert named.name == "mine"


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_is_known_by_its_widths_and_depths(name):
    config = SegmentAnythingModelConfig.from_preset(name, input_size=(256, 512))
    assert preset_of(config.to_dict()) == name
    assert preset_of({**config.to_dict(), "embed_dim": 96}) == ""


def test_fields_replaced_on_loading_are_checked_and_become_tuples(tmp_path):
    SegmentAnythingModelConfig().save_pretrained(tmp_path)
    config = SegmentAnythingModelConfig.from_pretrained(tmp_path, input_size=[512, 256])
    assert config.input_size == (512, 256)
    with pytest.raises(ValueError, match="multiple of encoder_patch_size 16"):
        SegmentAnythingModelConfig.from_pretrained(tmp_path, input_size=(500, 512))


def test_sizes_follow_the_patch_size():
    config = SegmentAnythingModelConfig(input_size=(96, 64), encoder_patch_size=8)
    assert config.grid_size() == (12, 8)
    assert config.mask_size() == (48, 32)
    assert config.grid_size((32, 80)) == (4, 10)
    assert config.mask_size((32, 80)) == (16, 40)


def test_three_means_serve_any_number_of_channels():
    config = SegmentAnythingModelConfig(in_channels=5)
    assert config.channel_mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert config.channel_std == (0.229, 0.224, 0.225, 0.229, 0.224)
    own = SegmentAnythingModelConfig(in_channels=2, mean=(0.1, 0.2), std=(0.3, 0.4))
    assert own.channel_mean == (0.1, 0.2)


WRONG = {
    "unknown activation": ({"encoder_act_layer": "gulu"}, r"'gulu'.*'gelu', 'gelu_tanh'.*'swish'"),
    "unknown norm": ({"encoder_norm_layer": "batch"}, r"'batch'.*'layer_norm'"),
    "heads": ({"encoder_nb_heads": 7}, r"encoder_embed_dim 768 must be a multiple of 7.*770"),
    "decoder heads": ({"decoder_nb_heads": 48}, r"embed_dim 256 must be a multiple of 96"),
    "block": ({"encoder_global_attn_indices": (2, 12)}, r"0\.\.11 for 12 blocks, got \(2, 12\)"),
    "negative block": ({"encoder_global_attn_indices": (-1,)}, r"0\.\.11"),
    "patch": ({"input_size": (1000, 1024)}, r"\(1000, 1024\) must be a multiple"),
    "negative size": ({"input_size": (-16, 16)}, r"two positive integers"),
    "three sides": ({"input_size": (16, 16, 16)}, r"two positive integers"),
    "no channels": ({"in_channels": 0}, r"in_channels must be at least 1, got 0"),
    "rate": ({"encoder_drop_rate": 1.0}, r"encoder_drop_rate must lie in \[0, 1\), got 1.0"),
    "mean": ({"mean": (0.5,)}, r"mean and std need 3 values each.*got 1 and 3"),
    "std": ({"std": (0.2, 0.0, 0.2)}, r"std must be positive"),
    "mask width": ({"prompt_mask_hidden_dim": 3}, r"prompt_mask_hidden_dim must be at least 4"),
    "width": ({"embed_dim": 4, "decoder_nb_heads": 2}, r"embed_dim must be at least 8, got 4"),
    "ratio": ({"encoder_mlp_ratio": 0.0}, r"encoder_mlp_ratio must be positive"),
    "window": ({"encoder_window_size": -1}, r"encoder_window_size must be an integer, 0"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG.keys())
def test_contradictions_are_refused_when_the_configuration_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentAnythingModelConfig(**fields)


@pytest.mark.parametrize("fields", [{"input_size": 1024}, {"in_channels": 2.5}, {"mean": None}])
def test_wrong_types_are_refused(fields):
    with pytest.raises(TypeError, match=f"{next(iter(fields))} must be"):
        SegmentAnythingModelConfig(**fields)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'sam_vit_x'.*'sam_vit_t', 'mobile_sam', 'sam_vit_b'"):
        SegmentAnythingModelConfig.from_preset("sam_vit_x")


def test_every_activation_has_a_function():
    from segment_anything_transformers.model.layers import ACTIVATIONS

    assert tuple(ACTIVATIONS) == ENCODER_ACTIVATIONS


# --------------------------------------------------------------------------------- TinyViT


def test_tiny_vit_without_more_is_mobile_sams():
    config = SegmentAnythingModelConfig(encoder_type="tiny_vit")
    preset = SegmentAnythingModelConfig.from_preset("mobile_sam")
    for field in (*ADDED, "first_conv", "encoder_patch_size", "input_size"):
        assert getattr(config, field) == getattr(preset, field), field
    assert preset.url == "https://huggingface.co/dhkim2810/MobileSAM"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_type": "resnet"}, r"Unknown encoder_type 'resnet'.*'vit', 'tiny_vit'"),
        ({"encoder_stage_depths": (2, 2, 6, 2)}, "encoder_stage_depths is a field of encoder_type"),
        ({"encoder_type": "tiny_vit", "encoder_embed_dim": 96}, "768 stands there.*got 96"),
        ({"encoder_type": "tiny_vit", "encoder_patch_size": 8}, "16 stands there.*got 8"),
        ({"encoder_type": "tiny_vit", "encoder_window_size": 7}, "14 stands there.*got 7"),
        ({"encoder_type": "tiny_vit", "encoder_stage_depths": (2, 2)}, "must be 4 positive"),
        ({"encoder_type": "tiny_vit", "encoder_stage_heads": (2, 5, 0)}, "must be 3 positive"),
        ({"encoder_type": "tiny_vit", "encoder_stage_heads": (4, 5, 7)}, "multiple of its heads"),
        (
            {"encoder_type": "tiny_vit", "encoder_stage_widths": (63, 128, 160, 320)},
            "must be even, got 63",
        ),
    ],
)
def test_fields_of_another_encoder_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentAnythingModelConfig(**fields)


def test_a_ratio_that_was_divided_gives_the_width_it_came_from():
    """Pruned models, such as SlimSAM, have perceptrons of any width."""
    for width in (24, 168, 280):
        for hidden in range(width, 5 * width):
            config = SegmentAnythingModelConfig(encoder_mlp_ratio=hidden / width)
            assert config.encoder_hidden(width) == hidden
