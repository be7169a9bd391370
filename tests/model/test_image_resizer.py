import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers import ImageResizer

SIZES = [
    (1200, 1800),
    (1800, 1200),
    (683, 1024),
    (1024, 683),
    (37, 53),
    (100, 1),
    (1, 90),
    (2500, 31),
]


@pytest.fixture(scope="module")
def meta_resize():
    """Meta's class; its module wants torchvision for two functions, which PIL stands in for."""
    functional = ModuleType("torchvision.transforms.functional")
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size_hw: image.resize(size_hw[::-1], Image.BILINEAR)
    names = ("torchvision", "torchvision.transforms", functional.__name__)
    modules = (ModuleType(names[0]), ModuleType(names[1]), functional)
    package = importlib.util.find_spec("segment_anything")
    path = Path(package.origin).parent / "utils" / "transforms.py"
    spec = importlib.util.spec_from_file_location("meta_transforms", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in zip(names, modules, strict=True):
            patch.setitem(sys.modules, name, stand_in)
        spec.loader.exec_module(module)
    return module.ResizeLongestSide


def random_image(shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.random(shape) > 0.5
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("src_size", SIZES)
def test_sizes_coordinates_and_pixels_are_metas(meta_resize, src_size):
    meta, resizer = meta_resize(256), ImageResizer(src_size, (256, 256))
    expected = meta.get_preprocess_shape(*src_size, 256)
    assert resizer.rescaled_size == tuple(max(1, side) for side in expected)
    if min(expected) == 0:
        return  # Meta's size of no pixels: ours has one
    points = random_image((2, 3, 2), np.float64) * 100
    boxes = random_image((5, 4), np.float64) * 100
    meta_points = meta.apply_coords(points, src_size).astype(np.float32)
    meta_boxes = meta.apply_boxes(boxes, src_size).astype(np.float32)
    np.testing.assert_array_equal(resizer.scale_points(points), meta_points)
    np.testing.assert_array_equal(resizer.scale_boxes(boxes), meta_boxes)
    assert resizer.scale_points(points).dtype == resizer.scale_boxes(boxes).dtype == np.float32
    image = random_image((*src_size, 3))
    np.testing.assert_array_equal(resizer.scale_image(image), meta.apply_image(image))


def test_a_target_that_is_not_square_is_filled_on_the_tighter_side():
    assert ImageResizer((100, 200), (64, 96)).rescaled_size == (48, 96)
    assert ImageResizer((200, 100), (64, 96)).rescaled_size == (64, 32)
    assert ImageResizer((3, 1000), (64, 96)).rescaled_size == (1, 96)


def test_pad_only_never_scales():
    resizer = ImageResizer((3, 5), (4, 8), pad_only=True)
    image = random_image((3, 5, 2))
    assert resizer.rescaled_size == (3, 5)
    np.testing.assert_array_equal(resizer.scale_image(image), image)
    np.testing.assert_array_equal(resizer.scale_points([[1, 2]]), [[1, 2]])
    padded = resizer.pad_image(image)
    assert padded.shape == (4, 8, 2)
    np.testing.assert_array_equal(padded[:3, :5], image)
    logits = random_image((2, 4, 8), np.float32)
    np.testing.assert_array_equal(resizer.postprocess_mask(logits), logits[:, :3, :5])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_layouts_agree_and_the_dtype_stays(dtype, channels):
    resizer = ImageResizer((40, 60), (32, 32))
    batch = random_image((2, 40, 60, channels), dtype)
    scaled = resizer.scale_image(batch)
    assert scaled.shape == (2, 21, 32, channels)
    assert scaled.dtype == dtype
    for index in range(2):
        np.testing.assert_array_equal(resizer.scale_image(batch[index]), scaled[index])
    first = resizer.scale_image(batch.transpose(0, 3, 1, 2), channels_last=False)
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), scaled)
    padded = resizer.pad_image(scaled)
    assert padded.shape == (2, 32, 32, channels)
    assert padded.dtype == dtype
    np.testing.assert_array_equal(padded[:, :21], scaled)
    assert not padded[:, 21:].any()
    back = resizer.unscale_image(first, channels_last=False)
    assert back.shape == (2, channels, 40, 60)
    assert back.dtype == dtype
    for index in range(2):
        expected = ImageResizer.scale_to_size(first[index], (40, 60), channels_last=False)
        np.testing.assert_array_equal(back[index], expected)
        last = resizer.unscale_image(scaled[index])
        np.testing.assert_array_equal(last.transpose(2, 0, 1), expected)


def test_each_of_four_channels_is_resized_alone():
    """PIL takes the fourth channel for transparency and darkens the others by it."""
    image = random_image((30, 40, 4))
    scaled = ImageResizer.scale_to_size(image, (20, 15), channels_last=True)
    for channel in range(4):
        expected = Image.fromarray(image[..., channel]).resize((15, 20), Image.BILINEAR)
        np.testing.assert_array_equal(scaled[..., channel], expected)


def test_other_dtypes_go_through_pils_floats():
    image = random_image((30, 40, 1), np.uint16)
    floats = image[..., 0].astype(np.float32)
    expected = np.asarray(Image.fromarray(floats).resize((15, 20), Image.BILINEAR))
    scaled = ImageResizer.scale_to_size(image, (20, 15), channels_last=True)
    np.testing.assert_array_equal(scaled[..., 0], np.rint(expected).astype(np.uint16))
    scaled = ImageResizer.scale_to_size(floats[None], (20, 15), channels_last=False)
    np.testing.assert_array_equal(scaled[0], expected)


def test_the_largest_uint16_does_not_wrap_around():
    white = np.full((50, 50, 1), 65535, np.uint16)
    assert (ImageResizer((50, 50), (17, 17)).scale_image(white) == 65535).all()


def test_booleans_are_rounded():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2] = True
    scaled = ImageResizer.scale_to_size(mask, (2, 2), channels_last=False)
    np.testing.assert_array_equal(scaled, [[[True, True], [False, False]]])


@pytest.mark.parametrize("src_size", [(30, 50), (50, 30), (100, 400)])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_masks_come_back_without_padding_and_antialiasing(src_size, leading):
    resizer = ImageResizer(src_size, (64, 64))
    logits = random_image((*leading, 64, 64), np.float32)
    height, width = resizer.rescaled_size
    cut = torch.from_numpy(logits)[..., :height, :width].reshape(-1, 1, height, width)
    expected = torch.nn.functional.interpolate(cut, src_size, mode="bilinear")
    expected = expected.reshape(*leading, *src_size).numpy()
    result = resizer.postprocess_mask(logits)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
    binary = resizer.postprocess_mask(logits, threshold=0.25)
    assert binary.dtype == np.bool_
    np.testing.assert_array_equal(binary, result > 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageResizer((0, 5), (8, 8)), r"src_size must be two positive.*got \(0, 5\)"),
        (lambda: ImageResizer((4, -5), (8, 8)), r"src_size must be two positive integers"),
        (lambda: ImageResizer((4, 5), (8,)), r"dst_size must be two positive.*got \(8,\)"),
        (lambda: ImageResizer((4, 5), 8), r"dst_size must be two positive.*got 8"),
        (lambda: ImageResizer((4.5, 5), (8, 8)), r"src_size must be two positive integers"),
        (lambda: ImageResizer((4, 9), (8, 8), pad_only=True), r"\(4, 9\) cannot be padded to"),
        (
            lambda: ImageResizer((4, 5), (8, 8)).scale_image(np.zeros((5, 4, 3))),
            r"Expected an image of src_size \(4, 5\), got \(5, 4\)",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).scale_image(np.zeros((4, 5))),
            r"\(H, W, C\) or \(N, H, W, C\), got 2 axes",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).scale_image(np.zeros((4, 5)), False),
            r"\(C, H, W\) or \(N, C, H, W\), got 2 axes",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).pad_image(np.zeros((9, 8, 3))),
            r"\(9, 8\) cannot be padded to the smaller size \(8, 8\)",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).scale_points(np.zeros((3, 4))),
            r"Expected points of shape \(\.\.\., 2\), got shape \(3, 4\)",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).scale_boxes(np.zeros((3, 2))),
            r"Expected boxes of shape \(\.\.\., 4\), got shape \(3, 2\)",
        ),
        (
            lambda: ImageResizer((4, 5), (8, 8)).postprocess_mask(np.zeros((1, 4, 5))),
            r"Expected a mask of dst_size \(8, 8\).*\(1, 4, 5\)",
        ),
        (
            lambda: ImageResizer.scale_to_size(np.zeros((0, 5, 3)), (4, 4), True),
            r"image size must be two positive integers .* got \(0, 5\)",
        ),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_framework_and_no_transformers_are_needed():
    code = (
        "import sys, numpy as np\n"
        "from segment_anything_transformers.model.image_resizer import ImageResizer\n"
        "ImageResizer((4, 5), (8, 8)).scale_image(np.zeros((4, 5, 3), np.uint8))\n"
        "assert not {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})


def test_scale_is_the_factor_before_rounding():
    assert ImageResizer((100, 300), (64, 96)).scale == 0.32
    assert ImageResizer((10, 20), (64, 96), pad_only=True).scale == 1.0
