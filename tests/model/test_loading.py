"""How `from_pretrained` places weights: types by name, and modules that stay on the disk."""

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers import SegmentAnythingModel
from tests.tiny import random_images, random_model, random_prompts, square_config


@pytest.fixture(scope="module")
def model():
    return random_model(square_config())


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    """The same weights in folders, in fp32 and in bf16, and in a file of Meta's kind."""
    folder = tmp_path_factory.mktemp("sources")
    model.save_pretrained(folder / "float32")
    loaded = SegmentAnythingModel.from_pretrained(folder / "float32", dtype=torch.bfloat16)
    loaded.save_pretrained(folder / "bfloat16")
    torch.save(model.state_dict(), folder / "meta.pth")
    return folder


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("source", "dtype", "expected"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("meta.pth", "auto", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
        ("meta.pth", torch.float16, torch.float16),
    ],
)
def test_types_go_by_name(sources, source, dtype, expected, argument):
    loaded = SegmentAnythingModel.from_pretrained(sources / source, **{argument: dtype})
    assert loaded.dtype == expected
    assert loaded.mask_decoder.iou_token.weight.dtype == expected
    positions = loaded.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert positions.dtype == torch.float32


@pytest.mark.parametrize("on_disk", [["image_encoder"], ["mask_decoder", "prompt_encoder"], [""]])
@torch.no_grad()
def test_modules_may_stay_on_the_disk(model, sources, on_disk, tmp_path):
    parts = {"image_encoder": "cpu", "prompt_encoder": "cpu", "mask_decoder": "cpu"}
    places = {"": "disk"} if on_disk == [""] else {**parts, **dict.fromkeys(on_disk, "disk")}
    loaded = SegmentAnythingModel.from_pretrained(
        sources / "float32", device_map=places, offload_folder=tmp_path
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    inputs = {"pixel_values": random_images(model.config), **random_prompts(model.config)}
    assert_close(loaded(**inputs).pred_masks, model(**inputs).pred_masks, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("option", [{"low_cpu_mem_usage": True}, {"attn_implementation": "eager"}])
@torch.no_grad()
def test_options_of_transformers_are_understood(model, sources, option):
    loaded = SegmentAnythingModel.from_pretrained(sources / "float32", **option)
    inputs = {"pixel_values": random_images(model.config), **random_prompts(model.config)}
    assert_close(loaded(**inputs).pred_masks, model(**inputs).pred_masks, rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_a_model_without_memory_gets_it_later(model):
    """`to_empty` leaves garbage: every parameter and buffer comes from a state or is made anew."""
    with torch.device("meta"):
        empty = SegmentAnythingModel(model.config)
    made = empty.to_empty(device="cpu").eval()
    for tensor in made.state_dict().values():
        tensor.fill_(torch.nan)
    for module in made.modules():
        module._is_hf_initialized = False
    made.init_weights()
    assert all(tensor.isfinite().all() for tensor in (*made.parameters(), *made.buffers()))
    made.load_state_dict(model.state_dict())
    inputs = {"pixel_values": random_images(model.config), **random_prompts(model.config)}
    assert torch.equal(made(**inputs).pred_masks, model(**inputs).pred_masks)


def test_a_report_of_what_is_missing_is_no_refusal(model, sources):
    _, report = SegmentAnythingModel.from_pretrained(sources / "float32", output_loading_info=True)
    assert not report["missing_keys"]
