from copy import deepcopy

import cv2
import numpy as np
import pytest

from examples.scenes import (
    appearance,
    clutter,
    compose,
    effects,
    lathe,
    render,
    shapes,
    sources,
    textures,
)
from examples.scenes.pools import (
    PackedImages,
    Pools,
    crop_to_alpha,
    fill_outside,
    is_useful_piece,
    limit_side,
    write_pool,
)


def disc_rgba(side, colour):
    rgba = np.zeros((side, side + 6, 4), np.uint8)
    cv2.circle(rgba, (side // 2, side // 2), side // 2 - 2, (*colour, 255), -1)
    return rgba


@pytest.fixture
def pools():
    rng = np.random.default_rng(5)
    discs = [(group, disc_rgba(40 + group, (200, 30 * group, 10))) for group in range(3)]
    photos = [(0, rng.integers(0, 255, (90, 120, 3), np.uint8)), (0, np.full((45, 60, 3), 9, "u1"))]
    room = np.full((70, 70, 4), 120, np.uint8)
    room[..., 3] = 0
    room[10:40, 20:50, 3] = 3
    pools = Pools.empty()
    pools.clips = PackedImages.pack(discs, 4)
    pools.bodies = PackedImages.pack(discs[:1], 4)
    pools.rooms = PackedImages.pack([(0, room)], 4)
    pools.photographs = PackedImages.pack(photos, 3)
    pools.designs = PackedImages.pack(photos[1:], 3)
    return pools


def check_scene(image, instances, size):
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert instances.shape == (size, size)
    assert instances.dtype == np.uint8
    counts = np.bincount(instances.ravel())[1:]
    assert len(counts) <= compose.MAX_OBJECTS
    assert (counts >= compose.MIN_VISIBLE_PIXELS).all()


@pytest.mark.parametrize("index", range(12))
def test_scene_has_dense_instances_of_enough_pixels(pools, index):
    image, instances = compose.render_scene(np.random.default_rng(index), pools, 120)
    check_scene(image, instances, 120)
    assert instances.max() >= 1


@pytest.mark.parametrize("index", range(6))
def test_scene_of_shapes_needs_no_pictures(index):
    image, instances = compose.render_scene(np.random.default_rng(index), Pools.empty(), 96)
    check_scene(image, instances, 96)


@pytest.mark.parametrize("index", range(6))
def test_plain_scene_shows_things_whole(pools, index, monkeypatch):
    areas, drop_hidden = [], compose._drop_hidden

    def keep_areas(canvas):
        areas.extend(canvas.full_areas)
        return drop_hidden(canvas)

    monkeypatch.setattr(compose, "_drop_hidden", keep_areas)
    image, instances = compose.render_plain_scene(np.random.default_rng(index), pools, 120)
    check_scene(image, instances, 120)
    assert 1 <= len(areas) <= compose.MAX_PLAIN_OBJECTS
    whole = [area for area in areas if area >= compose.MIN_VISIBLE_PIXELS]
    assert np.bincount(instances.ravel())[1:].tolist() == whole


@pytest.mark.parametrize("render", [compose.render_scene, compose.render_plain_scene])
def test_scene_is_a_function_of_its_randomness(pools, render):
    first, again, other = (render(np.random.default_rng(seed), pools, 100) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_instances_are_where_the_pasted_opacity_is_above_one_half():
    canvas = compose.Canvas(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8))
    alpha = np.array([[0, 100, 127, 128, 255]] * 4, np.uint8)
    piece = appearance.Piece(np.full((4, 5, 3), 200, np.uint8), alpha, is_drawn=True)
    compose._paste(canvas, piece, top=-2, left=27)  # two rows above, two columns beside the frame
    expected = np.zeros((20, 30), np.uint8)
    np.testing.assert_array_equal(canvas.instances, expected)
    compose._paste(canvas, piece, top=5, left=3)
    expected[5:9, 6:8] = 2
    np.testing.assert_array_equal(canvas.instances, expected)
    assert canvas.full_areas == [8, 8]
    np.testing.assert_array_equal(canvas.image[5, 3:8, 0], [0, 78, 100, 100, 200])


def blank_canvas(size):
    return compose.Canvas(np.full((size, size, 3), 200, "u1"), np.zeros((size, size), "u1"))


def test_a_shadow_darkens_what_is_beside_an_object_and_not_the_object(pools, monkeypatch):
    cut_out = appearance.CutOut(disc_rgba(60, (200, 90, 10)), is_drawn=True)
    middle = compose.Placement(np.array([60.0, 60.0]), side=50)

    def canvases():
        for seed in range(20):
            canvas = blank_canvas(120)
            compose._add_object(np.random.default_rng(seed), pools, canvas, cut_out, middle)
            yield canvas

    shaded, cast = list(canvases()), compose._cast_shadow
    monkeypatch.setattr(
        compose, "_cast_shadow", lambda rng, canvas, *piece: cast(rng, deepcopy(canvas), *piece)
    )
    n_shadows = 0
    for canvas, bare in zip(shaded, canvases(), strict=True):
        np.testing.assert_array_equal(canvas.instances, bare.instances)
        opaque = cv2.erode(bare.instances, np.ones((9, 9))) > 0
        np.testing.assert_array_equal(canvas.image[opaque], bare.image[opaque])
        assert (canvas.image <= bare.image).all()
        beside = canvas.image[bare.instances == 0].astype(int) - bare.image[bare.instances == 0]
        n_shadows += beside.min() < -20
    assert 5 <= n_shadows <= 15


@pytest.mark.parametrize("seed", range(4))
def test_the_frame_cuts_a_shadow_and_does_not_move_it(seed):
    alpha = disc_rgba(40, (0, 0, 0))[..., 3]
    large, small = blank_canvas(200), blank_canvas(30)
    compose._cast_shadow(np.random.default_rng(seed), large, alpha, 50, 60)
    compose._cast_shadow(np.random.default_rng(seed), small, alpha, 50 - 70, 60 - 70)
    np.testing.assert_array_equal(small.image, large.image[70:100, 70:100])
    assert (small.image < 200).any()


def test_hidden_and_tiny_objects_are_dropped_and_the_rest_renumbered():
    instances = np.zeros((40, 40), np.uint8)
    instances[0, :11] = 1  # 11 pixels: too small
    instances[5:10, :10] = 2  # 50 of 400: too hidden
    instances[20:30, :10] = 3
    canvas = compose.Canvas(np.zeros((40, 40, 3), np.uint8), instances, [11, 400, 120])
    expected = np.zeros((40, 40), np.uint8)
    expected[20:30, :10] = 1
    np.testing.assert_array_equal(compose._drop_hidden(canvas), expected)


@pytest.mark.parametrize("side", [8, 33, 140])
def test_warped_piece_has_the_side_asked_for_and_a_clear_border(side):
    cut_out = appearance.CutOut(np.full((60, 90, 4), 255, np.uint8), is_drawn=True)
    for seed in range(5):
        piece = appearance.warp(np.random.default_rng(seed), cut_out, side)
        assert side <= max(piece.alpha.shape) <= side + 4 + 3 * max(1, side / 90)
        assert piece.alpha.max() > 200
        border = [piece.alpha[0], piece.alpha[-1], piece.alpha[:, 0], piece.alpha[:, -1]]
        assert max(edge.max() for edge in border) == 0


@pytest.mark.parametrize("maker", shapes.MAKERS)
def test_shape_is_visible_and_opaque_inside(maker):
    for seed in range(5):
        mask = maker(np.random.default_rng(seed), 64)
        assert mask.shape == (64, 64)
        assert mask.dtype == np.uint8
        assert (mask > 200).sum() > 20


def test_shape_chances_sum_to_one():
    assert sum(shapes.MAKERS.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "maker", [textures.plain, textures.gradient, textures.noise, textures.stripes]
)
def test_texture_has_the_size_asked_for(maker):
    for seed in range(8):
        for height, width in [(7, 31), (64, 40), (50, 50)]:
            texture = maker(np.random.default_rng(seed), height, width)
            assert texture.shape == (height, width, 3)
            assert texture.dtype == np.uint8


def drawn_but_unseen(maker):
    """Takes as much randomness as the maker, and returns the picture that it was given."""

    def unseen(*given):
        maker(*given)
        return next(value for value in given if isinstance(value, np.ndarray))

    return unseen


def test_clutter_is_in_the_picture_and_not_among_the_instances(pools, monkeypatch):
    def scenes():
        return [compose.render_scene(np.random.default_rng(seed), pools, 96) for seed in range(20)]

    cluttered = scenes()
    monkeypatch.setattr(clutter, "add_clutter", drawn_but_unseen(clutter.add_clutter))
    pairs = list(zip(cluttered, scenes(), strict=True))
    for (_, instances), (_, without) in pairs:
        np.testing.assert_array_equal(instances, without)
    assert 0 < sum((image != without).any() for (image, _), (without, _) in pairs) < 20


@pytest.mark.parametrize("maker", [clutter._lines, clutter._lettering, clutter._streak])
def test_clutter_marks_a_part_of_the_picture(maker):
    marked = []
    for seed in range(20):
        image = np.full((96, 96, 3), 128, np.uint8)
        maker(np.random.default_rng(seed), image)
        marked.append((image != 128).any(axis=-1).mean())
    assert 0 < np.median(marked) < max(marked) < 0.7


NOISE = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)


@pytest.mark.parametrize(
    "effect", ["_uneven_light", "adjust_tone", "_lose_sharpness", "add_noise", "_grey", "compress"]
)
def test_degraded_pictures_keep_their_size_and_some_show_the_effect(effect, monkeypatch):
    def degraded():
        return [effects.degrade(np.random.default_rng(seed), NOISE) for seed in range(60)]

    shown = degraded()
    assert {(picture.shape, picture.dtype) for picture in shown} == {(NOISE.shape, NOISE.dtype)}
    monkeypatch.setattr(effects, effect, drawn_but_unseen(getattr(effects, effect)))
    pairs = zip(shown, degraded(), strict=True)
    assert 0 < sum((picture != without).any() for picture, without in pairs) < 60


def test_pictures_lose_sharpness_or_stay_as_they_are():
    pictures = [effects._lose_sharpness(np.random.default_rng(seed), NOISE) for seed in range(40)]
    blurred = [picture for picture in pictures if (picture != NOISE).any()]
    assert 0 < len(blurred) < 40
    for picture in blurred:
        assert picture.mean() == pytest.approx(NOISE.mean(), abs=2)
        assert picture.std() < 0.95 * NOISE.std()


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_as_strong_as_asked_for(seed):
    grey = np.full((48, 48, 3), 128, np.uint8)
    faint, strong = (effects.add_noise(np.random.default_rng(seed), grey, k) for k in (1, 2))
    assert 1 < faint.std() < 13
    assert strong.std() == pytest.approx(2 * faint.std(), rel=0.05)
    np.testing.assert_allclose([faint.mean(), strong.mean()], 128, atol=1)


def test_compression_costs_detail_and_not_colour():
    errors = [np.abs(effects.compress(NOISE, q).astype(int) - NOISE).mean() for q in (90, 50, 25)]
    assert 0 < errors[0] < errors[1] < errors[2]
    plain = np.full((48, 48, 3), (200, 90, 10), np.uint8)
    np.testing.assert_allclose(effects.compress(plain, 25), plain, atol=5)


def test_pool_comes_back_from_its_folder(tmp_path):
    images = [(7, disc_rgba(side, (1, 2, 3))) for side in (12, 30)] + [(9, disc_rgba(5, (4, 5, 6)))]
    write_pool(tmp_path / "clips", iter(images), 4)
    pool = Pools.open(tmp_path).clips
    assert len(pool) == 3
    assert [group.tolist() for group in pool.groups] == [[0, 1], [2]]
    for position, (_, image) in enumerate(images):
        np.testing.assert_array_equal(pool[position], image)
    assert len(Pools.open(tmp_path).rooms) == 0


def test_empty_pool_can_be_written_and_opened(tmp_path):
    write_pool(tmp_path / "clips", iter([]), 4)
    assert len(Pools.open(tmp_path).clips) == 0


def test_colours_outside_come_from_the_nearest_opaque_pixel():
    rgb = np.zeros((1, 6, 3), np.uint8)
    rgb[0, 2], rgb[0, 5] = (10, 20, 30), (200, 100, 0)
    alpha = np.array([[0, 0, 255, 0, 0, 255]], np.uint8)
    filled = fill_outside(rgb, alpha)
    assert filled[0, :, 0].tolist() == [10, 10, 10, 10, 200, 200]


def test_useful_pieces_are_solid():
    assert is_useful_piece(disc_rgba(64, (0, 0, 0))[..., 3])
    line_art = np.zeros((200, 200), np.uint8)
    cv2.circle(line_art, (100, 100), 98, 255, 2)
    assert not is_useful_piece(line_art)
    two_parts = np.zeros((100, 200), np.uint8)
    two_parts[:, :80] = two_parts[:, 120:] = 255
    assert not is_useful_piece(two_parts)
    assert not is_useful_piece(np.full((30, 30), 255, np.uint8))


def test_crop_and_limit():
    rgba = np.zeros((50, 70, 4), np.uint8)
    rgba[10:30, 20:60, 3] = 255
    assert crop_to_alpha(rgba).shape == (20, 40, 4)
    assert crop_to_alpha(rgba[:5]).size == 0
    assert limit_side(rgba, 35).shape == (25, 35, 4)


def test_variants_of_a_name_share_a_split():
    names = ["wood-d", "wood-l", "wood_02", "Wood"]
    assert len({sources.family(name) for name in names}) == 1
    assert len({sources.split_of(name, 0.5) for name in names}) == 1


def test_split_holds_out_the_share_asked_for():
    words = ["".join(chr(97 + (n // 26**p) % 26) for p in range(3)) + "x" for n in range(2000)]
    held_out = sum(sources.split_of(word, 0.1) == "held_out" for word in words)
    assert 140 < held_out < 260


def test_missing_source_names_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "CLIP_ART_FOLDER", tmp_path / "none")
    assert sources.clip_art_files() == []
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the Debian package openclipart-png" in message


def test_wallpaper_is_taken_once_at_its_largest(tmp_path):
    for name, size in [("800x600.png", 10), ("1600x1200.png", 99)]:
        path = tmp_path / "Lake" / "contents" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "Lake" / "contents" / "screenshot.png").write_bytes(bytes(500))
    (found,) = sources._wallpapers(tmp_path)
    assert (found.name, found.path.name) == ("Lake", "1600x1200.png")


def test_render_writes_resumable_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "SHARD_SCENES", 3)
    monkeypatch.setattr(render, "build_pools", lambda folder, split: None)
    folder = tmp_path / "train"
    command = f"--output {folder} --count 7 --size 64 --seed 2 --workers 1".split()
    render.main(command)
    shards = {path.name: np.load(path) for path in folder.glob("*.npy")}
    assert sorted(shards) == sorted(f"{kind}-0000{n}.npy" for kind in KINDS for n in range(3))
    assert shards["images-00000.npy"].shape == (3, 64, 64, 3)
    assert shards["instances-00002.npy"].shape == (1, 64, 64)

    kept = (folder / "images-00000.npy").stat().st_mtime_ns
    (folder / "images-00001.npy").unlink()
    render.main(command)
    np.testing.assert_array_equal(np.load(folder / "images-00001.npy"), shards["images-00001.npy"])
    assert (folder / "images-00000.npy").stat().st_mtime_ns == kept

    with pytest.raises(ValueError, match=r"'seed': 2.*'seed': 3.*choose another --output"):
        render.main([*command[:-4], "--seed", "3", "--workers", "1"])


KINDS = ("images", "instances")


def test_preview_is_a_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "build_pools", lambda folder, split: None)
    sheet = tmp_path / "sheet.png"
    render.main(f"--output {tmp_path / 'out'} --size 64 --preview {sheet}".split())
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape == (256, 384, 3)


def test_turned_mesh_is_consistent():
    for seed in range(10):
        mesh = lathe.turned_mesh(np.random.default_rng(seed), 0.5)
        assert mesh.vertices.shape == mesh.normals.shape == (len(mesh.uvs), 3)
        assert mesh.indices.max() == len(mesh.vertices) - 1
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
        extent = np.linalg.norm(np.ptp(mesh.vertices, axis=0)) / 2
        assert 0.5 <= extent <= 0.75


def test_bodies_and_rooms_are_rendered(pools):
    from examples.scenes import bodies, rooms

    rng = np.random.default_rng(0)
    with bodies.Studio(rng, PackedImages.empty(3)) as studio:
        piece = bodies.cut_out(rng, studio, studio.turned_body(rng))
    assert piece is not None
    assert is_useful_piece(piece[..., 3])
    ((group, room),) = rooms.room_pictures([], PackedImages.empty(3), seed=0, count=1)
    assert group == 0
    assert room.shape == (rooms.ROOM_SIDE, rooms.ROOM_SIDE, 4)
    assert room[..., 3].max() >= 1
