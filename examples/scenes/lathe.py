"""Bodies of revolution: vases, bottles, cups, bowls, plates, fruit."""

from dataclasses import dataclass

import numpy as np

SECTORS = 40
RINGS = 28


@dataclass
class Mesh:
    """A triangle mesh around the origin, and points whose convex hull encloses it.

    Attributes:
        vertices: Points, (n, 3), in metres.
        normals: Unit normals, (n, 3).
        uvs: Texture coordinates, (n, 2), in [0, 1].
        indices: Triangles, (m, 3).
        hull: Some of the points, (k, 3).
    """

    vertices: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    indices: np.ndarray
    hull: np.ndarray


def turned_mesh(rng: np.random.Generator, radius: float) -> Mesh:
    """A random body of revolution.

    Args:
        rng: Source of randomness.
        radius: Half the diagonal of the body's bounding box, about, in metres.
    """
    radii, heights = random_profile(rng)
    scale = radius / np.hypot(np.max(radii), np.ptp(heights) / 2)
    radii, heights = radii * scale, (heights - np.mean([heights.min(), heights.max()])) * scale
    angles = np.linspace(0, 2 * np.pi, SECTORS + 1)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)  # (sectors + 1, 2)
    vertices = np.concatenate(
        [radii[:, None, None] * circle, np.tile(heights[:, None, None], (1, SECTORS + 1, 1))], -1
    )
    tangent_radii, tangent_heights = np.gradient(radii), np.gradient(heights)
    lengths = np.maximum(np.hypot(tangent_radii, tangent_heights), 1e-9)
    outward, upward = tangent_heights / lengths, -tangent_radii / lengths
    normals = np.concatenate(
        [outward[:, None, None] * circle, np.tile(upward[:, None, None], (1, SECTORS + 1, 1))], -1
    )
    rows, columns = np.meshgrid(
        np.linspace(0, 1, len(radii)), np.linspace(0, 1, SECTORS + 1), indexing="ij"
    )
    return Mesh(
        vertices=vertices.reshape(-1, 3),
        normals=normals.reshape(-1, 3),
        uvs=np.stack([columns, rows], -1).reshape(-1, 2),
        indices=_triangles(len(radii)),
        hull=vertices[::3, ::4].reshape(-1, 3),
    )


def random_profile(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Radius and height along the outline, from the axis below to the axis above: two (n,)."""
    steps = np.linspace(0, 1, RINGS)
    knots = int(rng.integers(3, 7))
    height = float(np.exp(rng.uniform(np.log(0.3), np.log(4.0))))
    drawn = rng.uniform(0.35, 1.0, knots)
    if rng.random() < 0.3:  # a can, a cup, a jar: nearly straight
        drawn = np.linspace(1, rng.uniform(0.7, 1.2), knots)
    radii = np.interp(steps, np.linspace(0, 1, knots), drawn)
    radii = np.convolve(np.pad(radii, 3, mode="edge"), np.ones(7) / 7, mode="valid")
    if rng.random() < 0.25:  # fruit, balls: both ends close
        radii = radii * np.sqrt(np.maximum(1 - (2 * steps - 1) ** 2, 0.004))
    heights = height * steps
    if rng.random() < 0.5:  # hollow: the outline turns inwards and back to the bottom
        inner = 0.88 * radii[::-1]
        floor = 0.1 * height
        radii = np.concatenate([[0], radii, inner, [0]])
        heights = np.concatenate([[0], heights, np.maximum(heights[::-1], floor), [floor]])
        return radii, heights
    return np.concatenate([[0], radii, [0]]), np.concatenate([[0], heights, [height]])


def _triangles(rings: int) -> np.ndarray:
    """Two triangles for each cell of the grid of rings and sectors, (m, 3)."""
    row, column = np.meshgrid(np.arange(rings - 1), np.arange(SECTORS), indexing="ij")
    corner = (row * (SECTORS + 1) + column).ravel()
    right, above = corner + 1, corner + SECTORS + 1
    lower = np.stack([corner, right, above], -1)
    upper = np.stack([right, above + 1, above], -1)
    return np.concatenate([lower, upper])
