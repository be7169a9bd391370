import numpy as np
import pytest
import torch

from segment_anything_transformers.model import mask_ops, mask_upscaling
from segment_anything_transformers.model.mask_upscaling import MaskUpscaler

SIZES = [((96, 64), (96, 64)), ((41, 64), (70, 110)), ((9, 64), (2, 13)), ((96, 2), (300, 5))]


@pytest.fixture(params=[True, False], ids=["scipy", "numpy"])
def has_scipy(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(mask_upscaling, "sparse", None)
    mask_upscaling._Axis.of.cache_clear()
    yield request.param
    mask_upscaling._Axis.of.cache_clear()


def spots(seed=0, count=30):
    """Logits (n, 24, 16) with a few spots above zero, some at the edge, and some masks empty."""
    random = np.random.default_rng(seed)
    logits = random.normal(-8, 1, (count, 24, 16)).astype(np.float32)
    for index in range(count):
        for _ in range(index % 4):
            row, column = random.integers(0, (24, 16))
            logits[index, row : row + 5, column : column + 4] += random.uniform(5, 20)
    return logits


@pytest.mark.parametrize(("image_hw", "original_hw"), SIZES)
def test_upscaled_masks_equal_two_interpolations_of_torch(has_scipy, image_hw, original_hw):
    mask_logits = np.random.default_rng(0).normal(size=(3, 24, 16)).astype(np.float32)
    upscaled = mask_upscaling.upscale_masks(mask_logits, (96, 64), image_hw, original_hw)
    to_input = torch.nn.functional.interpolate(
        torch.from_numpy(mask_logits)[None], (96, 64), mode="bilinear"
    )[..., : image_hw[0], : image_hw[1]]
    expected = torch.nn.functional.interpolate(to_input, original_hw, mode="bilinear")[0]
    assert upscaled.dtype == np.float32
    np.testing.assert_allclose(upscaled, expected.numpy(), rtol=0, atol=2e-6)
    none = mask_upscaling.upscale_masks(mask_logits[:0], (96, 64), image_hw, original_hw)
    assert none.shape == (0, *original_hw)


@pytest.mark.parametrize(("image_hw", "original_hw"), SIZES)
@pytest.mark.parametrize("cut_off", [-100.0, -1.0, 0.0])
def test_outside_its_box_no_logit_exceeds_the_cut_off(has_scipy, image_hw, original_hw, cut_off):
    upscaler = MaskUpscaler((24, 16), (96, 64), image_hw, original_hw)
    sizes = set()
    for logits, whole in zip(spots(), upscaler.whole(spots()), strict=True):
        columns, left, top = upscaler.in_box(logits, cut_off)
        width, height = columns.shape
        inside = np.zeros(original_hw, bool)
        inside[top : top + height, left : left + width] = True
        np.testing.assert_allclose(columns.T.ravel(), whole[inside], rtol=0, atol=1e-5)
        assert not (whole[~inside] > cut_off).any()
        sizes.add(columns.size)
    assert len(sizes) > 1 or cut_off == -100


@pytest.mark.parametrize(("image_hw", "original_hw"), SIZES)
@pytest.mark.parametrize("left_top", [(0, 0), (3, 2)])
def test_masks_and_stability_are_those_of_the_whole(image_hw, original_hw, left_top):
    upscaler = MaskUpscaler((24, 16), (96, 64), image_hw, original_hw)
    (left, top), (height, width) = left_top, original_hw
    for logits, whole in zip(spots(), upscaler.whole(spots()), strict=True):
        in_box = upscaler.in_box(logits, -2.0)
        assert in_box.stability(0.0, 2.0) == mask_ops.stability_scores(whole, 0.0, 2.0)
        size_hw = (height + top, width + left)
        mask = in_box.mask(0.0, size_hw, left_top)
        expected = np.pad(whole > 0, ((top, 0), (left, 0)))
        np.testing.assert_array_equal(mask_ops.rle_to_mask(mask.rle), expected)
        assert [mask_ops.rle_with_list(mask.rle)] == mask_ops.masks_to_rles(expected[None])
        assert mask.box == tuple(mask_ops.masks_to_boxes(whole > 0).tolist())
