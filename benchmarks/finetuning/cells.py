"""Drawn cells under a microscope, a domain that no model here has seen.

Membranes and nuclei of irregular outline, crowded, out of focus, stained, with noise.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE = 384


def outline(random, centre, radius):
    """The polygon of a cell: a circle with a few slow waves on it."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = sum(
        random.normal(0, 0.09 / k) * np.cos(k * angles + random.uniform(0, 6)) for k in (1, 2, 3, 4)
    )
    stretch = random.uniform(0.75, 1.25)
    reach = radius * (1 + waves)
    x, y = (
        centre[0] + reach * np.cos(angles) * stretch,
        centre[1] + reach * np.sin(angles) / stretch,
    )
    return list(zip(x.tolist(), y.tolist(), strict=True))


def filled(polygon):
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).polygon(polygon, 255)
    return np.asarray(picture) > 0


def smooth_noise(random, scale):
    noise = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), scale)
    return noise / noise.std()


def draw_cells(random):
    """A picture (H, W, 3) of stained cells and their ids (H, W)."""
    stain, nucleus = random.uniform(0.25, 0.6, 3), random.uniform(0.3, 0.75, 3)
    density = np.full((SIDE, SIDE, 3), 0.05) + 0.02 * smooth_noise(random, 25)[..., None]
    ids, count = np.zeros((SIDE, SIDE), np.uint8), 0
    for _ in range(60):
        radius = random.uniform(14, 38)
        centre = random.uniform(radius, SIDE - radius, 2)
        cell = filled(outline(random, centre, radius))
        if (cell & (ids > 0)).mean() > 0.02 * cell.mean() or count == 18:
            continue
        cell &= ids == 0
        count += 1
        ids[cell] = count
        depth = ndimage.distance_transform_edt(cell)
        body = cell * (0.35 + 0.12 * smooth_noise(random, 2)) + 0.5 * (cell & (depth < 2.5))
        at = centre + random.normal(0, radius / 8, 2)
        core = filled(outline(random, at, radius * random.uniform(0.25, 0.45))) & cell
        core = ndimage.gaussian_filter(core.astype(float), 1) * (1 + 0.2 * smooth_noise(random, 1))
        density += body[..., None] * stain + core[..., None] * nucleus
    light = np.exp(-ndimage.gaussian_filter(density, (random.uniform(0.5, 1.6),) * 2 + (0,)))
    light = light * (1 + 0.03 * smooth_noise(random, 60)[..., None])
    light = light + random.normal(0, 0.02, light.shape)
    return np.clip(235 * light, 0, 255).astype(np.uint8), ids


def write_cells(folder, count, seed):
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, ids = draw_cells(random)
        Image.fromarray(image).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:03}.png")
    return folder
