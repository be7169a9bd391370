"""Pictures of single 3D objects on nothing, from pybullet's software renderer."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import pybullet
from numpy.typing import NDArray

from examples.scenes import lathe, sources
from examples.scenes.pools import PackedImages, Picture, crop_to_alpha, fill_outside
from examples.scenes.textures import Rng, photo_texture, photo_window, random_colour

VIEW_SIDE = 384
TEXTURES, TEXTURE_SIDE = 64, 256
# Floors and walls are seen from nearby, and the renderer does not smooth their texture.
SHEETS, SHEET_SIDE = 16, 1536
# The named models are few and have many parts to paint: they are shown more often.
VIEWS_OF_RANDOM, VIEWS_OF_NAMED = 2, 24
TURNED_BODIES, TURNED_STOCK = 300, 60
FIELD_OF_VIEW = 40.0
# A client keeps what its removed bodies had: a new one is opened after so many rooms or models.
STUDIO_LIFE = 100

Vector = np.ndarray


@dataclass
class Light:
    """How a picture is lit; the arguments that pybullet's camera takes."""

    direction: Vector
    colour: Vector
    ambient: float
    diffuse: float
    specular: float
    has_shadow: bool

    @classmethod
    def random(cls, rng: Rng, has_shadow: bool) -> "Light":
        """A light from above, warm or cold, hard or soft."""
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 2.0)
        ambient = rng.uniform(0.25, 0.65)
        return cls(
            direction=np.array([np.cos(angle), np.sin(angle), height]),
            colour=1 + rng.normal(0, 0.08, 3),
            ambient=ambient,
            diffuse=rng.uniform(0.9, 1.15) - ambient,
            specular=rng.uniform(0, 0.6),
            has_shadow=has_shadow,
        )


class Studio:
    """A physics client without a window, with photographs loaded as textures."""

    def __init__(self, rng: Rng, photos: PackedImages) -> None:
        """Connect, and load random crops of photographs as textures."""
        self.client = pybullet.connect(pybullet.DIRECT)
        self.turned: list[tuple[int, int]] = []
        self.textures = _load_textures(rng, photos, self.client, TEXTURES, TEXTURE_SIDE)
        self.sheets = _load_textures(rng, photos, self.client, SHEETS, SHEET_SIDE)

    def __enter__(self) -> "Studio":
        """Return the studio itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        pybullet.disconnect(self.client)

    def load(self, path: Path, scale: float = 1.0) -> int | None:
        """Load a model at the origin; None if pybullet cannot read it."""
        try:
            return int(
                pybullet.loadURDF(str(path), globalScaling=scale, physicsClientId=self.client)
            )
        except pybullet.error:
            return None

    def links(self, body: int) -> range:
        """The numbers of a body's links, its base (-1) included."""
        return range(-1, pybullet.getNumJoints(body, physicsClientId=self.client))

    def paint(self, rng: Rng, body: int) -> None:
        """Give a body another colour or texture, part by part, or leave it as it is."""
        draw = rng.random()
        if draw < 0.2:
            return
        one_colour = _paint_colour(rng)
        for link in self.links(body):
            if draw < 0.6 and self.textures:
                self.paper(body, link, self.textures[rng.integers(len(self.textures))])
            else:
                colour = one_colour if draw < 0.8 else _paint_colour(rng)
                self._change(body, link, rgbaColor=[*colour, 1])

    def paper(self, body: int, link: int, texture: int) -> None:
        """Give one link a texture."""
        self._change(body, link, textureUniqueId=texture, rgbaColor=[1, 1, 1, 1])

    def _change(self, body: int, link: int, **look: object) -> None:
        pybullet.changeVisualShape(body, link, physicsClientId=self.client, **look)

    def bounds(self, body: int) -> tuple[Vector, float]:
        """Centre (3,) and radius of a body, in metres."""
        boxes = np.array(
            [pybullet.getAABB(body, link, physicsClientId=self.client) for link in self.links(body)]
        )
        low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
        return (low + high) / 2, float(np.linalg.norm(high - low)) / 2

    def turned_body(self, rng: Rng, mass: float = 0.0) -> int:
        """A body from the lathe, 0.04 to 0.22 m in radius: a vase, a bottle, a bowl."""
        # pybullet never frees the megabyte that each mesh takes: after a while they are reused.
        if len(self.turned) < TURNED_STOCK:
            self.turned.append(self._turn(rng))
            visual, hull = self.turned[-1]
        else:
            visual, hull = self.turned[rng.integers(TURNED_STOCK)]
        body = pybullet.createMultiBody(mass, hull, visual, physicsClientId=self.client)
        self.paint(rng, body)
        return int(body)

    def _turn(self, rng: Rng) -> tuple[int, int]:
        """A visual and a collision shape."""
        mesh = lathe.turned_mesh(rng, float(np.exp(rng.uniform(np.log(0.04), np.log(0.22)))))
        visual = pybullet.createVisualShape(
            pybullet.GEOM_MESH,
            vertices=mesh.vertices.tolist(),
            indices=mesh.indices.ravel().tolist(),
            uvs=mesh.uvs.tolist(),
            normals=mesh.normals.tolist(),
            physicsClientId=self.client,
        )
        hull = pybullet.createCollisionShape(
            pybullet.GEOM_MESH, vertices=mesh.hull.tolist(), physicsClientId=self.client
        )
        return int(visual), int(hull)

    def photograph(
        self, eye: Vector, target: Vector, field_of_view: float, side: int, light: Light
    ) -> tuple[Picture, NDArray[np.int64]]:
        """Colours, (side, side, 3) uint8, and body numbers, (side, side), -1 for nothing."""
        distance = float(np.linalg.norm(eye - target))
        view = pybullet.computeViewMatrix(eye.tolist(), target.tolist(), [0, 0, 1])
        projection = pybullet.computeProjectionMatrixFOV(
            field_of_view, 1.0, 0.05 * distance, 8 * distance
        )
        _, _, colours, _, numbers = pybullet.getCameraImage(
            side,
            side,
            view,
            projection,
            shadow=int(light.has_shadow),
            lightDirection=light.direction.tolist(),
            lightColor=light.colour.tolist(),
            lightAmbientCoeff=light.ambient,
            lightDiffuseCoeff=light.diffuse,
            lightSpecularCoeff=light.specular,
            renderer=pybullet.ER_TINY_RENDERER,
            physicsClientId=self.client,
        )
        rgba = np.asarray(colours, np.uint8).reshape(side, side, 4)
        return np.ascontiguousarray(rgba[..., :3]), np.asarray(numbers).reshape(side, side)

    def remove(self, body: int) -> None:
        """Take a body away."""
        pybullet.removeBody(body, physicsClientId=self.client)


def _paint_colour(rng: Rng) -> list[float]:
    # Lifted: shading darkens a colour further.
    return (0.2 + 0.8 * random_colour(rng) / 255).tolist()


def _load_textures(rng: Rng, photos: PackedImages, client: int, count: int, side: int) -> list[int]:
    """Crops of photographs as textures; pybullet reads them from files only."""
    if not len(photos):
        return []
    textures = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / f"{number}.png"
            crop = (photo_texture if side < 512 else photo_window)(rng, photos, side, side)
            cv2.imwrite(str(path), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
            textures.append(int(pybullet.loadTexture(str(path), physicsClientId=client)))
    return textures


def body_pieces(
    files: list[sources.SourceFile], photos: PackedImages, seed: int
) -> Iterator[tuple[int, Picture]]:
    """Cut-out views of every model and of turned bodies, RGBA; a group is a model.

    Args:
        files: The models of a split.
        photos: Photographs of the same split, for textures.
        seed: Decides views, light, paint and the turned bodies.
    """
    rng = np.random.default_rng(seed)
    models: list[sources.SourceFile | None] = [*files, *[None] * TURNED_BODIES]
    for start in range(0, len(models), STUDIO_LIFE):
        with Studio(rng, photos) as studio:
            for group, model in enumerate(models[start : start + STUDIO_LIFE], start):
                yield from ((group, piece) for piece in _views(rng, studio, model))


def _views(rng: Rng, studio: Studio, model: sources.SourceFile | None) -> Iterator[Picture]:
    """Views of a model, each with another paint, or one of a turned body if there is no model."""
    body = studio.turned_body(rng) if model is None else studio.load(model.path)
    if body is None:
        return
    count = 1
    if model is not None:
        is_random = model.path.parent.parent.name == "random_urdfs"
        count = VIEWS_OF_RANDOM if is_random else VIEWS_OF_NAMED
    for _ in range(count):
        studio.paint(rng, body)
        if (piece := cut_out(rng, studio, body)) is not None:
            yield piece
    studio.remove(body)


def cut_out(rng: Rng, studio: Studio, body: int) -> Picture | None:
    """A view of one body, cropped, RGBA; None if hardly anything of it is seen."""
    centre, radius = studio.bounds(body)
    yaw, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 1.3)
    direction = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    distance = 0.8 * radius / np.sin(np.radians(FIELD_OF_VIEW / 2))
    light = Light.random(rng, has_shadow=rng.random() < 0.5)
    rgb, numbers = studio.photograph(
        centre + distance * direction, centre, FIELD_OF_VIEW, VIEW_SIDE, light
    )
    mask = (numbers >= 0).astype(np.uint8) * 255
    if (mask > 0).sum() < 0.01 * mask.size:
        return None
    # The renderer's outline is jagged; colours beside it are white, hence taken from inside.
    inside = cv2.erode(mask, np.ones((3, 3), np.uint8))
    rgb = fill_outside(rgb, np.asarray(inside, np.uint8))
    alpha = cv2.GaussianBlur(mask, (0, 0), 0.8)
    return crop_to_alpha(np.dstack([rgb, alpha]))
