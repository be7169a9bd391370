"""Whole 3D scenes: objects dropped on a floor, with shadows, before a wall or a photograph."""

from collections.abc import Iterator

import cv2
import numpy as np
import pybullet
from numpy.typing import NDArray

from examples.scenes import sources
from examples.scenes.appearance import scale_colours
from examples.scenes.bodies import STUDIO_LIFE, Light, Studio, Vector
from examples.scenes.pools import PackedImages, Picture
from examples.scenes.textures import Rng, gradient, photo_texture, photo_window

# Rendered larger than kept, for smooth edges.
RENDER_SIDE = 640
ROOM_SIDE = 512
FLOOR_HALF_SIDE = 1.6
SETTLING_STEPS = 90
# Robots and furniture fall over themselves; these lie and stack.
DROPPABLE = ("random_urdfs", "objects", "lego", "jenga", "domino")


def room_pictures(
    files: list[sources.SourceFile], photos: PackedImages, seed: int, count: int
) -> Iterator[tuple[int, Picture]]:
    """Scenes as RGB with the instance number as a fourth channel; every scene its own group.

    Args:
        files: The models of a split.
        photos: Photographs of the same split, for floors, walls and textures.
        seed: Decides everything.
        count: Number of scenes.
    """
    rng = np.random.default_rng(seed)
    single = [file for file in files if _is_droppable(file)]
    for start in range(0, count, STUDIO_LIFE):
        with Studio(rng, photos) as studio:
            for group in range(start, min(start + STUDIO_LIFE, count)):
                yield group, render_room(rng, studio, single, photos)


def _is_droppable(file: sources.SourceFile) -> bool:
    folders = {file.path.parent.name, file.path.parent.parent.name}
    return bool(folders & set(DROPPABLE)) or file.name.startswith(("duck", "teddy", "soccer"))


def render_room(
    rng: Rng, studio: Studio, files: list[sources.SourceFile], photos: PackedImages
) -> Picture:
    """One scene, (512, 512, 4) uint8: RGB, and 0 for surroundings or an object's number."""
    pybullet.setGravity(0, 0, -10, physicsClientId=studio.client)
    floor = _add_floor(rng, studio)
    others = [floor, *([_add_wall(rng, studio)] if rng.random() < 0.5 else [])]
    spread = float(np.exp(rng.uniform(np.log(0.15), np.log(0.6))))
    objects = [_drop(rng, studio, files, spread) for _ in range(int(rng.integers(2, 14)))]
    for _ in range(SETTLING_STEPS):
        pybullet.stepSimulation(physicsClientId=studio.client)
    rgb, numbers = _photograph(rng, studio, spread)
    for body in [*objects, *others]:
        studio.remove(body)
    rgb = _put_behind(rng, photos, rgb, numbers)
    if len(photos):
        rgb = _add_surfaces(rng, photos, rgb, numbers, objects)
    return _with_instances(rgb, numbers, objects)


def _add_floor(rng: Rng, studio: Studio) -> int:
    ground = pybullet.createCollisionShape(pybullet.GEOM_PLANE, physicsClientId=studio.client)
    return _add_sheet(rng, studio, ground, [0, 0, 0], [0, 0, 0, 1])


def _add_wall(rng: Rng, studio: Studio) -> int:
    """A sheet that stands on the floor at -x; the camera looks from +x."""
    upright = pybullet.getQuaternionFromEuler([0, np.pi / 2, rng.normal(0, 0.2)])
    return _add_sheet(rng, studio, -1, [-rng.uniform(0.8, 2.0), 0, 0], upright)


def _add_sheet(
    rng: Rng, studio: Studio, collision: int, position: list[float], turn: list[float]
) -> int:
    """A textured square, seen from both sides."""
    half = FLOOR_HALF_SIDE
    corners = [[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]]
    visual = pybullet.createVisualShape(
        pybullet.GEOM_MESH,
        vertices=corners,
        indices=[0, 1, 2, 0, 2, 3, 2, 1, 0, 3, 2, 0],
        uvs=[[0, 0], [1, 0], [1, 1], [0, 1]],
        normals=[[0, 0, 1]] * 4,
        physicsClientId=studio.client,
    )
    body = pybullet.createMultiBody(
        0, collision, visual, position, turn, physicsClientId=studio.client
    )
    if studio.sheets and rng.random() < 0.85:
        studio.paper(body, -1, studio.sheets[rng.integers(len(studio.sheets))])
    else:
        studio.paint(rng, body)
    return int(body)


def _drop(rng: Rng, studio: Studio, files: list[sources.SourceFile], spread: float) -> int:
    """A model or a turned body, at a random place a little above the floor."""
    body: int | None = None
    if files and rng.random() < 0.65:
        radius = float(np.exp(rng.uniform(np.log(0.04), np.log(0.22))))
        body = _load_sized(studio, files[rng.integers(len(files))], radius)
        if body is not None:
            studio.paint(rng, body)
    if body is None:
        body = studio.turned_body(rng, mass=0.2)
    _, radius = studio.bounds(body)
    place = [*rng.normal(0, spread, 2), radius * rng.uniform(0.9, 2.0)]
    angles = [0, 0, rng.uniform(0, 6.28)] if rng.random() < 0.6 else rng.uniform(0, 6.28, 3)
    turn = pybullet.getQuaternionFromEuler(list(angles))
    pybullet.resetBasePositionAndOrientation(body, place, turn, physicsClientId=studio.client)
    return body


def _load_sized(studio: Studio, file: sources.SourceFile, radius: float) -> int | None:
    """A model of a given radius; its own is known only once it is loaded."""
    probe = studio.load(file.path)
    if probe is None:
        return None
    _, own_radius = studio.bounds(probe)
    studio.remove(probe)
    return studio.load(file.path, radius / own_radius)


def _photograph(rng: Rng, studio: Studio, spread: float) -> tuple[Picture, NDArray[np.int64]]:
    yaw, pitch = rng.normal(0, 0.5), np.radians(rng.uniform(12, 75))
    distance = rng.uniform(1.6, 3.6) * (spread + 0.2)
    direction = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    target: Vector = np.array([*rng.normal(0, 0.3 * spread, 2), 0.05])
    light = Light.random(rng, has_shadow=rng.random() < 0.85)
    return studio.photograph(
        target + distance * direction, target, rng.uniform(35, 60), RENDER_SIDE, light
    )


def _put_behind(
    rng: Rng, photos: PackedImages, rgb: Picture, numbers: NDArray[np.int64]
) -> Picture:
    """The picture with a photograph or a gradient where the renderer drew nothing."""
    nothing = numbers < 0
    if not nothing.any():
        return rgb
    side = len(rgb)
    behind = photo_window(rng, photos, side, side) if len(photos) else gradient(rng, side, side)
    return np.where(nothing[..., None], behind, rgb)


def _add_surfaces(
    rng: Rng, photos: PackedImages, rgb: Picture, numbers: NDArray[np.int64], objects: list[int]
) -> Picture:
    """The picture with photographs multiplied into some objects.

    Most models carry no texture coordinates, so that the renderer can give them one colour only.
    """
    rgb = rgb.copy()
    for body in objects:
        mask = numbers == body
        if rng.random() < 0.5 or not mask.any():
            continue
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        window = (slice(top, top + height), slice(left, left + width))
        texture = photo_texture(rng, photos, height, width).astype(np.float32)
        strength = rng.uniform(0.3, 1.0)
        factors = 1 - strength + strength / max(20.0, float(texture.mean())) * texture
        textured = scale_colours(np.ascontiguousarray(rgb[window]), factors)
        rgb[window][mask[window]] = textured[mask[window]]
    return rgb


def _with_instances(rgb: Picture, numbers: NDArray[np.int64], objects: list[int]) -> Picture:
    instances = np.zeros(numbers.shape, np.uint8)
    for position, body in enumerate(objects, start=1):
        instances[numbers == body] = position
    size = (ROOM_SIDE, ROOM_SIDE)
    small_rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    small_instances = cv2.resize(instances, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.dstack([small_rgb, small_instances])
