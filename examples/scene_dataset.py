"""Training samples from rendered scenes and labelled photographs: random views with prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from torch.utils.data import Dataset

from examples.nested_parts import nested_masks
from examples.photographs.storage import full_size, read_square, square_files
from examples.scenes.compose import render_plain_scene, render_scene
from examples.scenes.pools import Pools
from segment_anything_transformers.model.configuration_segment_anything import MASK_UPSCALING

MIN_VISIBLE_PIXELS = 16
"""Objects with fewer pixels in the view are background to the loss, but no prompts."""
LAST_INSTANCE = 255
"""The largest number of an object in an instance map."""
SCENE_SIDES = (512, 512, 512, 1024)
"""Sides of scenes that are rendered while training, each as likely: most pictures are no sharper
than half of the model's input."""


@dataclass
class ViewOptions:
    """How a view is cut out of a scene.

    Attributes:
        size: Side of the square model input, in pixels.
        patch_size: Side of the model's patches.
        objects: Number of objects that get prompts.
        focus: Share of the views that are cut around one object, to show it large.
        min_side: Smallest longer side of any other view over the side of the scene.
        size_preference: An object's chance of a prompt grows with this power of its area. Most
            objects of a scene are small.
        box_noise: Standard deviation of a box's corners over the box's sides.
        nested: Share of the views in which the largest of these objects gets a part, and maybe that
            one a part too. All of them are prompted, with the same click.
        exact_boxes: Share of the boxes without that noise: a box of another model or of a data set
            touches its object.
        photographs: Share of the views that are of photographs, where there are any.
    """

    size: int = 256
    patch_size: int = 16
    objects: int = 6
    focus: float = 0.0
    min_side: float = 0.375
    size_preference: float = 0.5
    box_noise: float = 0.1
    exact_boxes: float = 0.5
    nested: float = 0.0
    photographs: float = 0.5

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        return MASK_UPSCALING * self.size // self.patch_size


def shards(*folders: Path) -> list[tuple[Path, Path]]:
    """The finished shards in some folders: each a file of images and one of their instance maps."""
    images = sorted(path for folder in folders for path in folder.glob("images-*.npy"))
    return [(path, path.with_name(path.name.replace("images", "instances"))) for path in images]


class Scenes(Protocol):
    """Square pictures (S, S, 3) and their instance maps (S, S), by index."""

    def __len__(self) -> int:
        """Number of scenes."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A scene."""


class StoredScenes:
    """The scenes in folders of shards (see `examples/scenes/render.py`)."""

    def __init__(self, folders: list[Path]) -> None:
        """Opens the finished shards of the folders without reading them.

        Args:
            folders: Folders with `images-*.npy` and `instances-*.npy`.

        Raises:
            FileNotFoundError: The folders have no finished shard.
        """
        pairs = shards(*folders)
        if not pairs:
            raise FileNotFoundError(
                f"No images-*.npy in {[str(folder) for folder in folders]}. "
                "Render scenes first: python -m examples.scenes.render --help"
            )
        self.images = [np.load(path, mmap_mode="r") for path, _ in pairs]
        self.instances = [np.load(path, mmap_mode="r") for _, path in pairs]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.images)])

    def __len__(self) -> int:
        """Number of scenes."""
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A scene."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        offset = index - self.starts[shard]
        return np.asarray(self.images[shard][offset]), np.asarray(self.instances[shard][offset])


class RenderedScenes:
    """Scenes that are rendered when they are asked for: a training sees none of them twice."""

    def __init__(self, pools: Path, seed: int, plain: float = 0.0) -> None:
        """Opens the pools of a split, which `examples/scenes/render.py` makes.

        Args:
            pools: Their folder.
            seed: Makes other scenes.
            plain: Share of plain scenes (see `render_plain_scene`).

        Raises:
            FileNotFoundError: There are no pools.
        """
        self.pools, self.seed, self.plain = Pools.open(pools), seed, plain
        if not any(len(pool) for pool in vars(self.pools).values()):
            raise FileNotFoundError(
                f"No pools in {pools}. Make them first: python -m examples.scenes.render --help"
            )

    def __len__(self) -> int:
        """Number of scenes, more than any training needs."""
        return 1 << 40

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A scene; seed and index decide it."""
        rng = np.random.default_rng((self.seed, index))
        side = int(rng.choice(SCENE_SIDES))
        render = render_plain_scene if self.plain and rng.random() < self.plain else render_scene
        return render(rng, self.pools, side)


class LabelledPhotographs:
    """Squares of photographs with masks that overlap (see `examples/photographs/label.py`).

    An index is a square with some of its masks, drawn so that none lies on another: a part one
    time, its whole another.
    """

    DRAWS = 1024
    """Indices of each square."""
    MOST_OVERLAP = 0.05
    """Share of a mask that may be a larger one's: neighbours share their edge."""

    def __init__(self, folder: Path) -> None:
        """Lists the squares.

        Raises:
            FileNotFoundError: The folder has none.
        """
        self.files = square_files(folder)

    def __len__(self) -> int:
        """Number of squares and draws of masks."""
        return len(self.files) * self.DRAWS

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A square and a draw of its masks; the index decides both."""
        image, masks = read_square(self.files[index // self.DRAWS])
        instances = np.zeros(image.shape[:2], np.uint8)
        taken: list[np.ndarray] = []
        for number in np.random.default_rng(index).permutation(len(masks)):
            mask = masks[number]
            if len(taken) == LAST_INSTANCE or any(self._overlap(mask, other) for other in taken):
                continue
            taken.append(mask)
            instances[full_size(mask, len(image)) & (instances == 0)] = len(taken)
        return image, instances

    def _overlap(self, one: np.ndarray, other: np.ndarray) -> bool:
        smaller = min(np.count_nonzero(one), np.count_nonzero(other))
        return bool(np.count_nonzero(one & other) > self.MOST_OVERLAP * smaller)


class SceneDataset(Dataset[dict[str, np.ndarray]]):
    """Views of scenes, without an end: any index has one.

    A sample depends on its index and the seed alone, so a resumed training sees what it would
    have seen.
    """

    def __init__(
        self,
        scenes: Scenes,
        options: ViewOptions,
        seed: int = 0,
        photographs: Scenes | None = None,
    ) -> None:
        """Draws from scenes, and from photographs.

        Args:
            scenes: Rendered ones.
            options: How views are cut, and how many are of photographs.
            seed: Makes another sequence of samples.
            photographs: Those that have masks.
        """
        self.scenes, self.options, self.seed = scenes, options, seed
        self.photographs = photographs

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One view.

        Returns:
            `pixels` (size, size, 3) uint8 and `inside` (2,) the size of what is not padding;
            `truth` (objects, H', W') uint8 coverage of each low-resolution pixel, 255 for all;
            `points` (objects, 2) and `boxes` (objects, 4) in pixels of the view, float32.
        """
        rng = np.random.default_rng((self.seed, index))
        while True:
            view = self._view(rng)
            if view is not None:
                return view

    def _view(self, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        scenes = self.scenes
        if self.photographs is not None and rng.random() < self.options.photographs:
            scenes = self.photographs
        image, instances = scenes[int(rng.integers(len(scenes)))]
        image, instances = _cut(rng, image, instances, self.options)
        counts = np.bincount(instances.ravel(), minlength=2)
        ids = 1 + np.flatnonzero(counts[1:] >= MIN_VISIBLE_PIXELS)
        if len(ids) == 0:
            return None
        count = self.options.objects
        weights = counts[ids] ** self.options.size_preference
        chances = weights / weights.sum()
        chosen = rng.choice(ids, count, replace=len(ids) < count, p=chances)
        masks = [instances == instance for instance in chosen]
        nested: list[np.ndarray] = []
        if rng.random() < self.options.nested:  # the largest gets the parts
            whole = masks.pop(int(counts[chosen].argmax()))
            image, nested = nested_masks(rng, image, whole, min(3, count))
            masks = [*nested, *masks][:count]
        height, width = image.shape[:2]
        pad = ((0, self.options.size - height), (0, self.options.size - width))
        sample: dict[str, list[Any]] = {"truth": [], "points": [], "boxes": []}
        for number, mask in enumerate(np.pad(mask, pad) for mask in masks):
            sample["truth"].append(coverage(mask, self.options.mask_size))
            is_around = 0 < number < len(nested)  # of the same click as the part
            sample["points"].append(sample["points"][0] if is_around else _random_point(rng, mask))
            noise = 0.0 if rng.random() < self.options.exact_boxes else self.options.box_noise
            sample["boxes"].append(_noisy_box(rng, mask, noise))
        arrays = {name: np.stack(values) for name, values in sample.items()}
        inside = np.array([height, width])
        return {"pixels": np.pad(image, (*pad, (0, 0))), "inside": inside, **arrays}


def _cut(
    rng: np.random.Generator, image: np.ndarray, instances: np.ndarray, options: ViewOptions
) -> tuple[np.ndarray, np.ndarray]:
    """A random part of the scene, resized so that its longer side is the model's, jittered."""
    focused = rng.random() < options.focus
    window = _window_around_object(rng, instances) if focused else None
    top, left, height, width = window or _window(rng, image.shape[0], options.min_side)
    part = np.s_[top : top + height, left : left + width]
    scale = options.size / max(height, width)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image[part], size_wh, interpolation=shrinks)
    instances = cv2.resize(instances[part], size_wh, interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        image, instances = image[:, ::-1], instances[:, ::-1]
    return _jitter(rng, image), instances


def _window(rng: np.random.Generator, side: int, min_side: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of any part of a scene."""
    longer = int(side * rng.uniform(min_side, 1.0))
    shorter = int(longer * (rng.uniform(0.56, 1.0) if rng.random() < 0.5 else 1.0))
    height, width = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    return int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1)), height, width


def _window_around_object(
    rng: np.random.Generator, instances: np.ndarray
) -> tuple[int, int, int, int] | None:
    """A square in which some object takes 20% to 90% of the side, None if there is no object."""
    counts = np.bincount(instances.ravel(), minlength=2)
    ids = 1 + np.flatnonzero(counts[1:] >= MIN_VISIBLE_PIXELS)
    if len(ids) == 0:
        return None
    left, top, width, height = cv2.boundingRect((instances == rng.choice(ids)).astype(np.uint8))
    scene = instances.shape[0]
    side = int(np.clip(max(width, height) / rng.uniform(0.2, 0.9), 64, scene))
    starts = []
    for start, length in ((top, height), (left, width)):
        low, high = sorted((start + length - side, start))  # those that show the whole object
        starts.append(int(np.clip(rng.integers(low, high + 1), 0, scene - side)))
    return starts[0], starts[1], side, side


def _jitter(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Another contrast, brightness and balance of colours, by a table for each channel."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    levels = (np.arange(256)[:, None] - 128.0) * gain + 128.0 + rng.uniform(-30, 30)
    return cv2.LUT(np.ascontiguousarray(image), levels.clip(0, 255).astype(np.uint8)[None])


def coverage(mask: np.ndarray, size: int) -> np.ndarray:
    """Share of each of (size, size) larger pixels that a mask covers, uint8, 255 for all."""
    levels = mask.astype(np.uint8) * 255
    return cv2.resize(levels, (size, size), interpolation=cv2.INTER_AREA)


def _random_point(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A pixel (x, y) of the mask: any of them, or the one deepest inside in a third of cases."""
    if rng.random() < 1 / 3:
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        position = int(depth.argmax())
    else:
        position = int(rng.choice(np.flatnonzero(mask)))
    return np.array([position % mask.shape[1], position // mask.shape[1]], np.float32)


def _noisy_box(rng: np.random.Generator, mask: np.ndarray, noise: float) -> np.ndarray:
    """The mask's box with its corners moved, by at most 20 pixels (appendix A of the paper)."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = np.array([left, top, left + width - 1, top + height - 1], np.float32)
    sides = np.array([width, height, width, height], np.float32)
    shift = rng.normal(0.0, noise, 4) * rng.random() * sides
    box += shift.clip(-20.0, 20.0)
    limit = np.array([mask.shape[1], mask.shape[0]] * 2, np.float32) - 1.0
    ordered = np.sort(box.reshape(2, 2), axis=0).ravel()
    return np.minimum(ordered.clip(0.0), limit).astype(np.float32)
