"""Command that renders synthetic training scenes into shards.

python -m examples.scenes.render --output DIR --count 12000 --size 512 --split train --workers 2
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from examples.scenes.compose import render_scene
from examples.scenes.pool_makers import build_pools
from examples.scenes.pools import Picture, Pools
from examples.scenes.sources import SPLITS

__all__ = ["main", "render_scene", "render_shard"]

SHARD_SCENES = 256


@dataclass(frozen=True)
class Recipe:
    """What decides a scene, its index apart."""

    seed: int
    split: str
    size: int


def scene_rng(recipe: Recipe, index: int) -> np.random.Generator:
    """The randomness of one scene: a function of seed, split and index alone."""
    return np.random.default_rng([recipe.seed, SPLITS.index(recipe.split), index])


def shard_counts(count: int) -> list[int]:
    """The number of scenes in each shard, the last one perhaps smaller."""
    return [min(SHARD_SCENES, count - start) for start in range(0, count, SHARD_SCENES)]


def is_complete(folder: Path, shard: int, count: int) -> bool:
    """Whether a shard of that many scenes is there; `images-` is written last."""
    path = folder / f"images-{shard:05d}.npy"
    return path.is_file() and len(np.load(path, mmap_mode="r")) == count


def render_shard(shard: int, count: int, recipe: Recipe, folder: Path, pools: Path) -> int:
    """Render one shard into a folder.

    Args:
        shard: Number of the shard; its first scene has index 256 times that.
        count: Number of scenes in it.
        recipe: Seed, split and size.
        folder: Where `instances-00000.npy` (n, S, S) and `images-00000.npy` (n, S, S, 3) go.
        pools: Folder of the split's pools.

    Returns:
        The number of scenes.
    """
    opened = Pools.open(pools)
    size = recipe.size
    images = np.empty((count, size, size, 3), np.uint8)
    instances = np.empty((count, size, size), np.uint8)
    for position in range(count):
        rng = scene_rng(recipe, shard * SHARD_SCENES + position)
        images[position], instances[position] = render_scene(rng, opened, size)
    _save(folder / f"instances-{shard:05d}.npy", instances)
    _save(folder / f"images-{shard:05d}.npy", images)
    return count


def _save(path: Path, values: Picture) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, values)
    temporary.replace(path)


def _one_shard(job: tuple[int, int], recipe: Recipe, folder: Path, pools: Path) -> int:
    return render_shard(*job, recipe=recipe, folder=folder, pools=pools)


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Note the recipe in `scenes.json`, or compare with the one that is there.

    Raises:
        ValueError: If the folder holds scenes of another seed, split or size.
    """
    path = folder / "scenes.json"
    wanted = asdict(recipe)
    if not path.is_file():
        path.write_text(json.dumps(wanted) + "\n")
        return
    found = json.loads(path.read_text())
    if found != wanted:
        raise ValueError(
            f"{folder} holds scenes of {found}, asked for {wanted}; choose another --output"
        )


def outline_sheet(scenes: list[tuple[Picture, Picture]], columns: int = 6) -> Picture:
    """A contact sheet: scenes with the outlines of their objects in colour."""
    tiles = [_outlined(image, instances) for image, instances in scenes]
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return np.vstack(rows)


def _outlined(image: Picture, instances: Picture) -> Picture:
    outlined = image.copy()
    for number in range(1, int(instances.max()) + 1):
        mask = (instances == number).astype(np.uint8)
        outline = cv2.dilate(mask, np.ones((3, 3), np.uint8)) != mask
        hue = np.array([[[(number * 47) % 180, 255, 255]]], np.uint8)
        outlined[outline] = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]
    return outlined


def write_preview(path: Path, recipe: Recipe, pools: Path, count: int = 24) -> None:
    """Write a contact sheet of the first scenes to a PNG file."""
    opened = Pools.open(pools)
    scenes = [render_scene(scene_rng(recipe, index), opened, recipe.size) for index in range(count)]
    cv2.imwrite(str(path), cv2.cvtColor(outline_sheet(scenes), cv2.COLOR_RGB2BGR))


def render_all(count: int, recipe: Recipe, folder: Path, pools: Path, workers: int) -> None:
    """Render the shards that are not there yet, under a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    check_recipe(folder, recipe)
    jobs = list(enumerate(shard_counts(count)))
    open_jobs = [job for job in jobs if not is_complete(folder, *job)]
    done = sum(scenes for _, scenes in jobs) - sum(scenes for _, scenes in open_jobs)
    work = partial(_one_shard, recipe=recipe, folder=folder, pools=pools)
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=count, initial=done, unit="scene"))
        results: Iterator[int] = map(work, open_jobs)
        if workers > 1:
            # OpenCV's own threads would only get in each other's way; a fork of them can hang.
            pool = multiprocessing.get_context("spawn").Pool(workers, cv2.setNumThreads, (1,))
            results = stack.enter_context(pool).imap_unordered(work, open_jobs)
        for scenes in results:
            bar.update(scenes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Render synthetic training scenes.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--count", type=int, default=SHARD_SCENES, help="number of scenes")
    parser.add_argument("--size", type=int, default=512, help="side of a scene in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--pools", type=Path, help="folder of the pools (OUTPUT/../pools)")
    parser.add_argument("--preview", type=Path, help="write a contact sheet here and stop")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    recipe = Recipe(options.seed, options.split, options.size)
    pools = (options.pools or options.output.parent / "pools") / options.split
    build_pools(pools, options.split)
    if options.preview:
        write_preview(options.preview, recipe, pools)
    else:
        render_all(options.count, recipe, options.output, pools, options.workers)


if __name__ == "__main__":
    main()
