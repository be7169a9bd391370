"""Masks as GeoJSON, for QGIS, QuPath, geopandas and databases.

A feature an object: a Polygon or a MultiPolygon, holes included. Coordinates are pixels of the
image, x to the right and y downwards from its upper left corner, or, with a transform, those of a
map. The geometries are valid; with a tolerance of 0 their areas are the masks'.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..model.mask_ops import rle_area
from .checks import check_near, objects_in, room_for
from .outlines import fill
from .polygons import TOLERANCE, mask_polygons
from .records import SCORES, Record, cropped, label_of, run_lengths

Transform = Sequence[float]
"""a, b, c, d, e, f, as rasterio has them: x and y of a map are ax + by + c and dx + ey + f."""


def geojson_content(
    image_path: str,
    size_hw: tuple[int, int],
    records: Sequence[Record],
    tolerance: float = TOLERANCE,
    transform: Transform | None = None,
) -> dict[str, Any]:
    """A FeatureCollection of an image's masks. Empty masks are left out.

    Outer rings run counterclockwise in their coordinates, holes clockwise, as RFC 7946 asks.
    Besides what it asks for, "image" tells the path, "width", "height" and "transform".

    Args:
        image_path: The image's path from the folder of the file.
        size_hw: Height and width of the image.
        records: See `records`.
        tolerance: Pixels, see `mask_polygons`.
        transform: Takes pixels to the coordinates that are written; by default those of pixels.

    Raises:
        ValueError: A mask has not the image's size or is none, or the transform is not invertible.
    """
    matrix = _matrix(transform)
    features = []
    for record in records:
        runs = run_lengths(record, size_hw)
        part = cropped(runs)
        polygons = mask_polygons(part.mask, tolerance)
        if not polygons:
            continue
        parts = [
            [_ring(ring + part.origin, matrix) for ring in polygon.rings] for polygon in polygons
        ]
        kind, coordinates = ("MultiPolygon", parts) if len(parts) > 1 else ("Polygon", parts[0])
        scores = {name: float(record[name]) for name in SCORES if name in record}
        features.append(
            {
                "type": "Feature",
                "properties": {"label": label_of(record), "area": rle_area(runs), **scores},
                "geometry": {"type": kind, "coordinates": coordinates},
            }
        )
    image: dict[str, Any] = {"path": image_path, "width": size_hw[1], "height": size_hw[0]}
    if transform is not None:
        image["transform"] = [float(number) for number in transform]
    return {"type": "FeatureCollection", "image": image, "features": features}


def _matrix(transform: Transform | None) -> np.ndarray:
    """The transform as (2, 3)."""
    if transform is None:
        return np.eye(2, 3)
    matrix = np.asarray(transform, np.float64)[:6]
    if matrix.shape != (6,) or not np.isfinite(matrix).all():
        raise ValueError(f"transform must be six numbers a, b, c, d, e, f, got {transform}.")
    matrix = matrix.reshape(2, 3)
    if np.linalg.det(matrix[:, :2]) == 0:
        raise ValueError(f"transform must have an inverse, got {list(transform)}.")
    return matrix


def _ring(ring: np.ndarray, matrix: np.ndarray) -> list[list[float]]:
    """A closed ring of positions."""
    if np.linalg.det(matrix[:, :2]) < 0:
        ring = ring[::-1]  # the map is a mirror image
    closed = np.concatenate([ring, ring[:1]])
    return (closed @ matrix[:, :2].T + matrix[:, 2]).tolist()


def geojson_masks(content: Mapping[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """The masks (P, H, W) of a FeatureCollection whose coordinates `geojson_content` explains.

    Raises:
        ValueError: A feature is no polygon.
    """
    matrix = _matrix(content["image"].get("transform"))
    inverse, origin = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
    features = objects_in(content, "features")
    masks = room_for(len(features), size_hw)
    for index, (mask, feature) in enumerate(zip(masks, features, strict=True)):
        where = f"feature {index} (counted from 0)"
        geometry: Any = feature.get("geometry") or {}
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if kind not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"{where} is a {reprlib.repr(kind)}, expected a Polygon")
        coordinates = geometry.get("coordinates") or []
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            mask |= fill(_pixel_rings(rings, inverse, origin, where, size_hw), size_hw)
    return masks


def _pixel_rings(
    rings: Any, inverse: np.ndarray, origin: np.ndarray, where: str, size_hw: tuple[int, int]
) -> list[np.ndarray]:
    """A polygon's rings in pixels, (n, 2) each."""
    try:
        positions = [np.asarray(ring, np.float64)[:, :2] - origin for ring in rings]
        with np.errstate(over="ignore", invalid="ignore"):
            turned = [ring @ inverse.T for ring in positions]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{where}: coordinates must be rings of positions [x, y], got {reprlib.repr(rings)}"
        ) from error
    for ring in turned:
        check_near(ring, where, size_hw)
    return turned
