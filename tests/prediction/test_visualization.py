import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers import draw_masks, draw_prompts
from segment_anything_transformers.prediction.visualization import (
    _oklab_to_srgb,
    mask_colours,
    to_rgb,
)

SIZE_HW = (40, 60)
BLUE, GOLD = (0, 0, 255), (255, 215, 0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE_HW, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_mask_covers_its_pixels_and_no_others(image):
    mask = rectangle(5, 10, 20, 40)
    before = image.copy()
    drawn = np.asarray(draw_masks(image, [mask], [BLUE], opacity=0.25, outline_width=0))
    expected = image.astype(np.float64)
    expected[mask] = 0.75 * expected[mask] + 0.25 * np.array(BLUE)
    np.testing.assert_allclose(drawn, expected, atol=0.5001)
    np.testing.assert_array_equal(image, before)


def test_an_outline_is_opaque_and_inside_the_mask(image):
    mask = rectangle(5, 10, 20, 40)
    drawn = np.asarray(draw_masks(image, [mask], ["gold"], opacity=0, outline_width=2))
    expected = image.copy()
    expected[mask & ~rectangle(7, 12, 18, 38)] = GOLD
    np.testing.assert_array_equal(drawn, expected)


def test_the_edge_of_the_picture_is_no_outline(image):
    mask = rectangle(0, 0, 20, 60)
    drawn = np.asarray(draw_masks(image, [mask], [GOLD], opacity=0, outline_width=1))
    expected = image.copy()
    expected[19] = GOLD
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(("side", "width", "of_box"), [(6, 1, 1), (24, 2, 2), (480, 5, 10)])
def test_lines_around_small_objects_are_thin(side, width, of_box):
    """A photograph's usual lines would hide them."""
    grey = np.full((1000, 2000, 3), 128, np.uint8)
    mask = np.zeros((1000, 2000), bool)
    mask[100 : 100 + side, 200 : 200 + side] = True
    drawn = np.asarray(draw_masks(grey, [mask], [GOLD], opacity=0))
    row = (drawn[100 + side // 2] == GOLD).all(-1)
    assert np.flatnonzero(row)[:width].tolist() == [*range(200, 200 + width)]
    assert np.count_nonzero(row) == 2 * width
    box = (200, 100, 200 + side, 100 + side)
    framed = np.asarray(draw_prompts(grey, boxes=[box]))[100 + side // 2]
    seen = (framed[200 : 201 + side] == 128).all(-1)
    assert np.count_nonzero(seen) == side + 1 - 2 * (of_box + 1)  # and a rim


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_mask_is_on_top(image, order):
    masks, colours = [rectangle(0, 0, 40, 60), rectangle(10, 10, 20, 20)], [BLUE, GOLD]
    masks, colours = [masks[i] for i in order], [colours[i] for i in order]
    drawn = np.asarray(draw_masks(image, np.stack(masks), colours, opacity=1, outline_width=0))
    expected = np.full_like(image, BLUE)
    expected[10:20, 10:20] = GOLD
    np.testing.assert_array_equal(drawn, expected)


def test_no_masks_and_empty_masks_draw_nothing(image):
    for masks in ([], np.zeros((2, *SIZE_HW), bool)):
        np.testing.assert_array_equal(np.asarray(draw_masks(image, masks)), image)


def test_colours_are_distinct_and_do_not_depend_on_the_count():
    colours = mask_colours(40)
    assert (colours.shape, colours.dtype) == ((40, 3), np.uint8)
    np.testing.assert_array_equal(mask_colours(7), colours[:7])
    colours = colours.astype(int)
    distances = np.abs(colours[:12, None] - colours[:12]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert distances.min() > 30
    assert np.abs(np.diff(colours, axis=0)).sum(-1).min() > 150  # neighbours, however many


def test_the_colour_space_is_oklab():
    # white, red, green and blue, as the space's author lists them
    lightness = np.array([1, 0.62796, 0.86644, 0.45201])
    a = np.array([0, 0.22486, -0.23389, -0.03246])
    b = np.array([0, 0.12585, 0.17950, -0.31153])
    np.testing.assert_array_equal(
        _oklab_to_srgb(lightness, a, b),
        [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]],
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"masks": [np.ones(SIZE_HW)]}, TypeError, "Expected boolean masks, got float64"),
        (
            {"masks": [np.ones((40, 61), bool)]},
            ValueError,
            r"size \(40, 60\), got \(40, 61\)",
        ),
        ({"colours": ["red", "blue"]}, ValueError, "Expected 1 colours, one for each mask, got 2"),
        ({"colours": ["reddish"]}, ValueError, "unknown color specifier: 'reddish'"),
        ({"opacity": 1.5}, ValueError, "opacity must lie from 0 to 1, got 1.5"),
        ({"outline_width": -1}, ValueError, "outline_width must be 0 or more pixels, got -1"),
        ({"image": np.zeros(SIZE_HW)}, TypeError, "Expected an image of uint8, got float64"),
        ({"image": np.zeros((3, 40, 60), np.uint8)}, ValueError, r"got \(3, 40, 60\)"),
    ],
)
def test_wrong_masks_and_images_are_refused(image, options, error, message):
    given = {"image": image, "masks": [rectangle(0, 0, 5, 5)], **options}
    with pytest.raises(error, match=message):
        draw_masks(**given)


def test_points_lie_where_they_were_set(image):
    grey = np.full((400, 600, 3), 128, np.uint8)
    drawn = np.asarray(draw_prompts(grey, [[100, 50], [300, 200], [500, 350]], [1, 0, -1]))
    changed = (drawn != 128).any(-1)
    rows, columns = np.nonzero(changed[:100])
    assert (columns.min() + columns.max(), rows.min() + rows.max()) == (200, 100)
    np.testing.assert_array_equal(drawn[50, 100], [255, 255, 255])  # the sign
    red, green, blue = (drawn[50 - 6, 100 - 3], drawn[200 - 6, 300 - 3], drawn[350, 500])
    assert red[1] > red[0]  # foreground is green
    assert green[0] > green[1]  # background is red
    np.testing.assert_array_equal(blue, 128)  # -1 is not a point
    np.testing.assert_array_equal(drawn[200 - 4, 300], drawn[200 - 4, 301])  # minus has no stem
    assert drawn[50 - 3, 100].min() > 240  # plus has one


def test_points_at_the_corner_and_outside_are_no_error(image):
    drawn = draw_prompts(image, [[0, 0], [59, 39], [200, -50]])
    assert drawn.size == SIZE_HW[::-1]


def test_a_box_is_a_frame(image):
    drawn = np.asarray(draw_prompts(image, boxes=[[10, 5, 50, 30]]))
    changed = (drawn != image).any(-1)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (9, 4, 51, 31)
    np.testing.assert_array_equal(drawn[5, 10:51], np.broadcast_to([250, 204, 21], (41, 3)))
    assert not changed[10:26, 15:46].any()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [1, 2]}, r"Expected points of shape \(M, 2\), got \(2,\)"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"Expected 1 labels, one a point, got \(2,\)"),
        ({"boxes": [[1, 2, 3]]}, r"Expected boxes of shape \(M, 4\), got \(1, 3\)"),
    ],
)
def test_wrong_prompts_are_refused(image, prompts, message):
    with pytest.raises(ValueError, match=message):
        draw_prompts(image, **prompts)


def test_every_kind_of_image_becomes_rgb(image):
    picture = Image.fromarray(image)
    grey = np.asarray(picture.convert("L"))
    for kind in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(to_rgb(kind)), np.repeat(grey[..., None], 3, -1))
    transparent = np.dstack([image, np.zeros(SIZE_HW, np.uint8)])
    np.testing.assert_array_equal(np.asarray(to_rgb(transparent)), image)
    wide = Image.fromarray(np.linspace(1000, 51000, 6, dtype=np.uint16).reshape(2, 3))
    np.testing.assert_array_equal(np.asarray(to_rgb(wide))[..., 0], [[0, 51, 102], [153, 204, 255]])
    flat = Image.fromarray(np.full((2, 3), 7.0, np.float32))
    assert np.asarray(to_rgb(flat)).max() == 0
