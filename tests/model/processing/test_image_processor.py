import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from segment_anything_transformers import (
    ImageResizer,
    SegmentAnythingImageProcessor,
    SegmentAnythingModelConfig,
)
from tests.model.processing.inputs import random_image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def expected_pixels(image, input_size, scale=1 / 255, mean=MEAN, std=STD):
    """Resized by PIL, then normalised, then padded with zeros: (C, H, W)."""
    resizer = ImageResizer(image.shape[:2], input_size)
    scaled = resizer.scale_image(image).astype(np.float64) * scale
    normalised = ((scaled - mean) / std).transpose(2, 0, 1)
    pixels = np.zeros((image.shape[2], *input_size))
    pixels[:, : normalised.shape[1], : normalised.shape[2]] = normalised
    return pixels


# ----------------------------------------------------------------------------------- images


@pytest.mark.parametrize("size_hw", [(50, 40), (40, 50), (200, 300), (7, 9), (96, 64), (3, 500)])
def test_an_image_is_resized_then_normalised_then_padded(image_processor, size_hw):
    image = random_image(*size_hw)
    inputs = image_processor(image, return_tensors="np")
    assert inputs["pixel_values"].dtype == np.float32
    np.testing.assert_allclose(
        inputs["pixel_values"][0], expected_pixels(image, (96, 64)), rtol=0, atol=1e-6
    )
    assert inputs["original_sizes"].tolist() == [list(size_hw)]
    expected = ImageResizer(size_hw, (96, 64)).rescaled_size
    assert inputs["reshaped_input_sizes"].tolist() == [list(expected)]


def test_images_of_any_sizes_form_a_batch_in_every_kind_of_container(image_processor):
    images = [random_image(50, 40), random_image(30, 70, seed=1)]
    batch = image_processor(images, return_tensors="np")["pixel_values"]
    assert batch.shape == (2, 3, 96, 64)
    alone = [image_processor(image, return_tensors="np")["pixel_values"][0] for image in images]
    np.testing.assert_array_equal(batch, alone)
    tensors = image_processor(tuple(images), return_tensors="pt")
    assert tensors["pixel_values"].dtype == torch.float32
    assert tensors["original_sizes"].dtype == torch.int64
    np.testing.assert_array_equal(tensors["pixel_values"].numpy(), batch)
    lists = image_processor(images)
    assert isinstance(lists["pixel_values"], list)
    np.testing.assert_array_equal(lists["pixel_values"], batch)
    same_size = np.stack([images[0], images[0]])
    four_axes = image_processor(same_size, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(four_axes, batch[[0, 0]])


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda image: image.transpose(2, 0, 1),
        lambda image: torch.from_numpy(image),
        lambda image: torch.from_numpy(image).permute(2, 0, 1).requires_grad_(False),
        lambda image: image.astype(np.int64),
        lambda image: image.astype(np.float64),
        lambda image: torch.from_numpy(image).permute(2, 0, 1).to(torch.bfloat16),
        lambda image: image.tolist(),
        lambda image: np.dstack([image, image[..., 0]]),
        lambda image: Image.fromarray(np.dstack([image, image[..., 0]]), "RGBA"),
    ],
    ids=(
        "pil channels-first tensor tensor-first int64 float64 bfloat16 list rgba-array rgba-pil"
    ).split(),
)
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_one_image_in_many_forms(image_processor, convert):
    image = random_image(50, 40)
    expected = image_processor(image, return_tensors="np")
    given = convert(image)
    result = image_processor([given] if isinstance(given, list) else given, return_tensors="np")
    np.testing.assert_array_equal(result["original_sizes"], expected["original_sizes"])
    # PIL rounds bytes after each of two passes, one for each axis, and floats never
    is_float = str(getattr(given, "dtype", "")) in ("float64", "torch.bfloat16")
    tolerance = 1 / 255 / STD.min() + 1e-6 if is_float else 0
    np.testing.assert_allclose(
        result["pixel_values"], expected["pixel_values"], rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("mode", "1 L LA P PA RGB RGBA RGBX CMYK YCbCr HSV LAB".split())
def test_pil_images_of_every_8_bit_mode_become_rgb(image_processor, mode):
    image = Image.fromarray(random_image(50, 40))
    image = (image.convert("L") if mode == "PA" else image).convert(
        {"LAB": "RGB", "PA": "P"}.get(mode, mode)
    )
    image = image.convert("PA") if mode == "PA" else image
    image = Image.new("LAB", (40, 50), (120, 130, 140)) if mode == "LAB" else image
    assert image.mode == mode
    result = image_processor(image, return_tensors="np")["pixel_values"]
    expected = image_processor(image.convert("RGB"), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(result, expected)


def test_a_palette_with_transparency_gives_no_warning(image_processor):
    image = Image.fromarray(random_image(50, 40)).convert("P")
    image.info["transparency"] = bytes(range(256))
    result = image_processor(image, return_tensors="np")["pixel_values"]
    expected = np.asarray(image.convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(
        result, image_processor(expected, return_tensors="np")["pixel_values"]
    )


@pytest.mark.parametrize("axes", ["HW", "HW1", "1HW"])
def test_grey_becomes_three_channels(image_processor, axes):
    grey = random_image(50, 40, 1)[..., 0]
    given = {"HW": grey, "HW1": grey[..., None], "1HW": grey[None]}[axes]
    result = image_processor(given, return_tensors="np")["pixel_values"]
    expected = image_processor(np.dstack([grey] * 3), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("highest", [4095, 65535])
def test_pictures_of_more_bits_are_stretched(image_processor, mode, highest):
    grey = np.random.default_rng(0).integers(100, highest + 1, (50, 40), dtype=np.uint16)
    kinds = {"I": np.int32, "F": np.float32}
    given = Image.fromarray(grey.astype(kinds.get(mode, np.uint16)))
    if mode == "I;16B":
        given = Image.frombytes("I;16B", (40, 50), grey.astype(">u2").tobytes())
    assert given.mode == mode
    result = image_processor(given, return_tensors="np")["pixel_values"]
    low, high = int(grey.min()), int(grey.max())
    stretched = np.round((grey.astype(float) - low) / (high - low) * 255).astype(np.uint8)
    expected = image_processor(stretched, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(result, expected)


def test_sixteen_bits_use_their_whole_range(image_processor):
    grey = np.random.default_rng(0).integers(0, 65536, (50, 40), dtype=np.uint16)
    result = image_processor(grey, return_tensors="np")["pixel_values"][0]
    expected = expected_pixels(np.dstack([grey] * 3), (96, 64), scale=1 / 65535)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert result.max() > 1.5  # an 8-bit reading would be hundreds, a clipped one constant


def test_white_is_white_in_every_dtype(image_processor):
    white = [
        np.full((9, 6, 3), 255, np.uint8),
        np.full((9, 6, 3), 65535, np.uint16),
        np.full((9, 6, 3), 255.0, np.float32),
        np.ones((9, 6, 3), bool),
        Image.new("1", (6, 9), 1),
    ]
    pixels = image_processor(white, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels[1:], pixels[[0] * 4], rtol=0, atol=1e-6)


def test_values_from_0_to_1_need_do_rescale_false(image_processor):
    image = random_image(96, 64)
    unit = image.astype(np.float32) / 255
    result = image_processor(unit, do_rescale=False, return_tensors="np")["pixel_values"]
    expected = image_processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"from 0 to 255, got fractions up to 1\. .*do_rescale"):
        image_processor(unit)
    image_processor(np.zeros((9, 6, 3), np.float32))  # a black picture is one
    image_processor(np.ones((9, 6, 3), np.float32))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_numbers_of_channels(channels):
    config = SegmentAnythingModelConfig(
        in_channels=channels,
        input_size=(96, 64),
        mean=tuple(np.linspace(0.2, 0.5, channels)),
        std=tuple(np.linspace(0.3, 0.4, channels)),
    )
    image_processor = SegmentAnythingImageProcessor.from_config(config)
    image = random_image(50, 40, channels)
    expected = expected_pixels(
        image, (96, 64), mean=np.array(config.mean), std=np.array(config.std)
    )
    for given in (image, image.transpose(2, 0, 1), torch.from_numpy(image).permute(2, 0, 1)):
        result = image_processor(given, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(result[0], expected, rtol=0, atol=1e-6)


def test_a_pil_image_becomes_grey_for_one_channel():
    config = SegmentAnythingModelConfig(in_channels=1, mean=(0.5,), std=(0.2,))
    image_processor = SegmentAnythingImageProcessor.from_config(config)
    image = Image.fromarray(random_image(50, 40))
    result = image_processor(image, return_tensors="np")["pixel_values"]
    expected = image_processor(np.asarray(image.convert("L")), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_8_bits_become_grey_for_one_channel_as_those_of_pictures_do(channels):
    image_processor = SegmentAnythingImageProcessor.from_config(
        SegmentAnythingModelConfig(in_channels=1)
    )
    colours = np.random.default_rng(0).integers(0, 256, (9, 6, channels), np.uint8)
    of_array = image_processor(colours, return_tensors="np")["pixel_values"]
    of_picture = image_processor(Image.fromarray(colours), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(of_array, of_picture)
    with pytest.raises(ValueError, match="Expected an image with 1 channels"):
        image_processor(colours.astype(np.float32), return_tensors="np")


def test_channel_statistics_repeat_as_the_configuration_says():
    config = SegmentAnythingModelConfig(in_channels=5)
    image_processor = SegmentAnythingImageProcessor.from_config(config)
    assert image_processor.image_mean == config.channel_mean
    assert len(image_processor.image_std) == 5


def test_where_the_channels_are_can_be_said(image_processor):
    image = random_image(3, 3)
    last = image_processor(image, return_tensors="np")["pixel_values"]
    first = image_processor(image, input_data_format="channels_first", return_tensors="np")
    expected = image_processor(image.transpose(1, 2, 0), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(first["pixel_values"], expected)
    assert not np.array_equal(last, expected)


def test_steps_can_be_left_out(image_processor):
    image = random_image(90, 60)
    raw = image_processor(
        image, do_resize=False, do_rescale=False, do_normalize=False, do_pad=False
    )
    np.testing.assert_array_equal(raw["pixel_values"][0], image.transpose(2, 0, 1))
    assert raw["reshaped_input_sizes"] == [(90, 60)]
    unscaled = image_processor(image, do_resize=False, do_normalize=False, return_tensors="np")
    expected = np.zeros((3, 96, 64), np.float32)
    expected[:, :90, :60] = image.transpose(2, 0, 1) / 255
    np.testing.assert_allclose(unscaled["pixel_values"][0], expected, rtol=0, atol=1e-7)


def test_padding_to_a_multiple_of_the_patch_size_only(config):
    image_processor = SegmentAnythingImageProcessor.from_config(
        config, size={"longest_edge": 64}, pad_to_multiple_of=16, mask_size={"longest_edge": 16}
    )
    image = random_image(30, 64)
    inputs = image_processor(image, segmentation_maps=image[..., 0], return_tensors="np")
    assert inputs["pixel_values"].shape == (1, 3, 32, 64)
    assert inputs["labels"].shape == (1, 1, 8, 16)
    full = image_processor(image, pad_to_multiple_of=0, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(inputs["pixel_values"], full[:, :, :32])
    both = image_processor([image, random_image(64, 20)], return_tensors="np")
    assert both["pixel_values"].shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), {}, ValueError, r"no pixels: shape \(0, 5, 3\)"),
        (np.zeros((5,), np.uint8), {}, ValueError, r"\(C, H, W\), got shape \(5,\)"),
        (np.zeros((2, 2, 5, 5, 3), np.uint8), {}, ValueError, r"got shape \(2, 2, 5, 5, 3\)"),
        (np.zeros((5, 6, 7), np.uint8), {}, ValueError, r"3 channels .* got shape \(5, 6, 7\)"),
        (np.zeros((5, 6, 2), np.uint8), {}, ValueError, r"3 channels .* got shape \(5, 6, 2\)"),
        (np.zeros((5, 6)), {"do_convert_rgb": False}, ValueError, r"3 channels.*got 1 from"),
        (np.full((5, 6, 3), 300), {}, ValueError, r"from 0 to 255, got 300 to 300 in int64"),
        (np.full((5, 6, 3), -1), {}, ValueError, r"from 0 to 255, got -1 to -1"),
        (np.full((5, 6, 3), np.nan), {}, ValueError, r"finite pixel values, got NaN"),
        (np.full((5, 6, 3), np.inf), {"do_rescale": False}, ValueError, r"finite pixel values"),
        (np.full((5, 6, 3), -2.5), {}, ValueError, r"from 0 to 255, got -2.5 to -2.5.*do_rescale"),
        (np.full((5, 6, 3), 65535.0), {}, ValueError, r"from 0 to 255, got 65535 to 65535"),
        (Image.fromarray(np.full((5, 6), np.nan, "f4")), {}, ValueError, r"NaN or infinite; give"),
        (np.full((5, 6, 3), "a"), {}, TypeError, r"an image of numbers, got dtype <U1"),
        ({"image": 1}, {}, TypeError, r"a PIL image, a numpy array or a tensor, got dict"),
        ([None], {}, TypeError, r"got NoneType"),
        ([], {}, ValueError, r"at least one image, got an empty list"),
        ("no/such/file.png", {}, ValueError, r"valid path to an image file"),
        (np.zeros((5, 6, 3)), {"size": {"height": 4, "width": 4}}, ValueError, r"size must be \{"),
        (np.zeros((5, 6, 3)), {"size": {"longest_edge": -4}}, ValueError, r"positive integers"),
        (np.zeros((5, 6, 3)), {"image_mean": 0.5}, ValueError, r"one value for each channel"),
        (np.zeros((5, 6, 3)), {"image_std": (1.0, 1.0)}, ValueError, r"one value for each channel"),
        (np.zeros((5, 6, 3)), {"resample": 0}, ValueError, r"resample must be bilinear \(2\)"),
        (np.zeros((5, 6, 3)), {"colour": 1}, TypeError, r"unexpected keyword argument 'colour'"),
        (np.zeros((97, 6, 3)), {"do_resize": False}, ValueError, r"\(97, 6\) cannot be padded"),
    ],
)
def test_bad_images_and_options_are_refused(image_processor, image, options, error, message):
    with pytest.raises(error, match=message):
        image_processor(image, **options)


# ----------------------------------------------------------------------------------- labels


def test_labels_are_binary_masks_of_the_padded_input(image_processor):
    image = random_image(48, 24)
    segmentation_map = np.zeros((48, 24), np.uint8)
    segmentation_map[:24] = 255
    labels = image_processor(image, segmentation_maps=segmentation_map)["labels"]
    expected = np.zeros((1, 1, 24, 16), np.int64)
    expected[0, 0, :12, :12] = 1
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, expected)


def test_unequal_numbers_of_maps_are_filled_with_unknown(image_processor):
    images = [random_image(48, 32), random_image(24, 16)]
    maps = [np.ones((3, 48, 32), bool), Image.fromarray(np.ones((24, 16), np.uint8))]
    labels = image_processor(images, segmentation_maps=maps, return_tensors="pt")["labels"]
    assert labels.shape == (2, 3, 24, 16)
    assert (labels[0] == 1).all()
    assert (labels[1, 0] == 1).all()
    assert (labels[1, 1:] == -1).all()


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_maps_of_one_image_in_an_array(image_processor, axes):
    given = np.ones((2, 48, 32))[(0,) * (3 - axes)] if axes < 4 else np.ones((1, 2, 48, 32))
    labels = image_processor(random_image(48, 32), segmentation_maps=given)["labels"]
    assert labels.shape == (1, 1 if axes == 2 else 2, 24, 16)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (
            np.zeros((5, 6)),
            r"shape \(48, 32\) or \(P, 48, 32\), like its image, got shape \(5, 6\)",
        ),
        ([np.zeros((48, 32))] * 2, r"segmentation_maps of 1 images, got 2"),
        ([np.zeros((48, 32, 3))], r"got shape \(48, 32, 3\)"),
    ],
)
def test_maps_that_do_not_fit_are_refused(image_processor, maps, message):
    with pytest.raises(ValueError, match=message):
        image_processor(random_image(48, 32), segmentation_maps=maps)


# -------------------------------------------------------------------------- saving and Auto


def test_saving_and_loading_keep_everything(image_processor, config, tmp_path):
    image_processor = SegmentAnythingImageProcessor.from_config(config, pad_to_multiple_of=16)
    image_processor.save_pretrained(tmp_path)
    loaded = SegmentAnythingImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    assert loaded.geometry() == image_processor.geometry()
    automatic = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(automatic) is SegmentAnythingImageProcessor
    image = random_image(50, 40)
    np.testing.assert_array_equal(automatic(image)["pixel_values"], loaded(image)["pixel_values"])


def test_presets_are_known_by_name():
    tiny = SegmentAnythingImageProcessor.from_pretrained("sam_vit_t")
    config = SegmentAnythingModelConfig.from_preset("sam_vit_t")
    assert tiny.geometry() == SegmentAnythingImageProcessor.from_config(config).geometry()
    assert tiny.size == {"longest_edge": max(config.input_size)}
    base = SegmentAnythingImageProcessor.from_pretrained("sam_vit_b", do_normalize=False)
    assert base.geometry() == SegmentAnythingImageProcessor().geometry()
    assert base.do_normalize is False


def test_neither_torch_nor_torchvision_is_needed():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from segment_anything_transformers import SegmentAnythingImageProcessor as Processor\n"
        "image_processor = Processor()\n"
        "image = np.zeros((20, 30, 3), np.uint8)\n"
        "pixels = image_processor(image, return_tensors='np')['pixel_values']\n"
        "assert pixels.shape == (1, 3, 1024, 1024)\n"
        "crops = image_processor.generate_crop_boxes(image, return_tensors='np')\n"
        "masks = image_processor.post_process_masks(np.ones((1, 1, 1, 256, 256)), [(20, 30)])\n"
        "assert masks[0].shape == (1, 1, 20, 30)\n"
        "logits, scores = masks[0] * 9.0, np.ones((1, 1))\n"
        "found = image_processor.filter_masks(logits, scores, (20, 30), (0, 0, 30, 20))\n"
        "assert len(image_processor.post_process_for_mask_generation(*found, 0.7)[0]) == 1\n"
    )
    source = Path(__file__).parents[3] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})
