"""Views of scenes: prompts that fit their masks, and parts painted onto objects."""

from itertools import pairwise

import numpy as np
import pytest

from examples import scene_dataset
from examples.nested_parts import LARGEST_SHARE, SMALLEST_SHARE, nested_masks
from examples.scene_dataset import (
    SCENE_SIDES,
    RenderedScenes,
    SceneDataset,
    StoredScenes,
    ViewOptions,
)
from examples.scenes.pools import CHANNELS, write_pool
from tests.few_scenes import SIDE, write_scenes


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path)


def views_of(folder, count, seed=0, **options):
    """The first samples of a folder's scenes."""
    data = SceneDataset(StoredScenes([folder]), ViewOptions(size=SIDE, **options), seed)
    return [data[index] for index in range(count)]


def test_parts_are_within_what_they_are_on():
    whole = np.zeros((SIDE, SIDE), bool)
    whole[40:200, 30:220] = True
    image = np.full((SIDE, SIDE, 3), 120, np.uint8)
    counts = []
    for seed in range(20):
        painted, masks = nested_masks(np.random.default_rng(seed), image, whole)
        counts.append(len(masks))
        assert masks[-1] is whole
        for inner, outer in pairwise(masks):
            assert not (inner & ~outer).any()
            assert SMALLEST_SHARE < inner.sum() / outer.sum() < LARGEST_SHARE
        changed = (painted != image).any(-1)
        assert not (changed & ~whole).any()
        if len(masks) > 1:
            assert changed[masks[-2]].mean() > 0.9  # a part is seen
    assert set(counts) == {1, 2, 3}
    assert (image == 120).all()


def test_a_small_object_gets_no_part():
    whole = np.zeros((SIDE, SIDE), bool)
    whole[10:30, 10:30] = True
    image = np.full((SIDE, SIDE, 3), 120, np.uint8)
    painted, masks = nested_masks(np.random.default_rng(0), image, whole)
    assert painted is image
    assert len(masks) == 1


def test_one_click_means_the_part_and_the_whole(scenes):
    levels = 0
    for view in views_of(scenes, 12, seed=3, objects=4, nested=1.0, min_side=1.0):
        truth, points = view["truth"], view["points"]
        assert truth.shape == (4, SIDE // 4, SIDE // 4)
        x, y = (points[0] / 4).astype(int)
        same = [n for n in range(4) if (points[n] == points[0]).all() and truth[n].any()]
        areas = [truth[n].sum() for n in same if truth[n, y, x] > 0]
        levels = max(levels, len(set(areas)))
        assert truth[0].sum() == min(areas)
    assert levels == 3


def test_exact_boxes_touch_their_objects(scenes):
    for view in views_of(scenes, 4, objects=2, min_side=1.0, exact_boxes=1.0):
        for truth, box in zip(view["truth"], view["boxes"], strict=True):
            rows, columns = np.nonzero(truth)
            edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
            assert (np.abs(box // 4 - edges) < 1).all()


def test_noisy_boxes_do_not(scenes):
    views = [
        views_of(scenes, 8, objects=2, min_side=1.0, exact_boxes=share) for share in (0.0, 1.0)
    ]
    moved = np.array([one["boxes"] - other["boxes"] for one, other in zip(*views, strict=True)])
    assert 0.5 < np.abs(moved).mean() < 20.0


def test_a_sample_is_the_same_again(scenes):
    first, again = (views_of(scenes, 6, seed=1, objects=3, nested=0.5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for name, values in one.items():
            assert np.array_equal(values, other[name]), name


@pytest.fixture
def pools(tmp_path):
    """Pools of one photograph."""
    photo = np.random.default_rng(0).integers(256, size=(400, 500, 3), dtype=np.uint8)
    write_pool(tmp_path / "photographs", iter([(0, photo)]), CHANNELS["photographs"])
    return tmp_path


def test_rendered_scenes_are_decided_by_seed_and_index(pools):
    first, second = RenderedScenes(pools, 4), RenderedScenes(pools, 4)
    for index in (7, 1 << 39):
        for one, same in zip(first[index], second[index], strict=True):
            assert np.array_equal(one, same)
    others = first[8][0], RenderedScenes(pools, 5)[7][0]
    assert not any(np.array_equal(first[7][0], other) for other in others)
    assert {len(first[index][0]) for index in range(16)} == set(SCENE_SIDES)


def test_some_of_the_rendered_scenes_are_plain(pools, monkeypatch):
    monkeypatch.setattr(scene_dataset, "render_scene", lambda *given: "hard")
    monkeypatch.setattr(scene_dataset, "render_plain_scene", lambda *given: "plain")
    found = [RenderedScenes(pools, 4, 0.25)[index] for index in range(400)]
    assert 70 < found.count("plain") < 130
    assert {RenderedScenes(pools, 4)[index] for index in range(40)} == {"hard"}


def test_views_of_rendered_scenes_show_other_scenes(pools):
    data = SceneDataset(RenderedScenes(pools, 4), ViewOptions(size=128, objects=2), seed=3)
    views = [data[index] for index in range(6)]
    assert all(view["pixels"].shape == (128, 128, 3) for view in views)
    assert all(view["truth"].any((1, 2)).all() for view in views)
    assert len({view["pixels"].tobytes() for view in views}) == 6
    assert np.array_equal(data[4]["pixels"], views[4]["pixels"])


def test_no_scenes_and_no_pools_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No images-\*\.npy"):
        StoredScenes([tmp_path])
    with pytest.raises(FileNotFoundError, match="No pools in"):
        RenderedScenes(tmp_path, 0)
