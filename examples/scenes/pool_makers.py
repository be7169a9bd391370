"""Makes the pools of a split from its sources, those that are not there yet."""

from collections.abc import Callable
from pathlib import Path

from examples.scenes import sources
from examples.scenes.pools import (
    CHANNELS,
    Images,
    PackedImages,
    clip_pieces,
    photo_levels,
    write_pool,
)

ROOM_COUNTS = {"train": 700, "held_out": 80}


def build_pools(folder: Path, split: str) -> None:
    """Decode and render the sources of a split into pools, those that are not there yet.

    Args:
        folder: Where the pools of this split are kept.
        split: One of `sources.SPLITS`.
    """
    for name, maker in POOL_MAKERS.items():
        target = folder / name
        if (target / "index.npy").is_file():
            continue
        # Nothing is written for a source that is missing: it may be installed later.
        if (images := maker(folder, split)) is not None:
            write_pool(target, images, CHANNELS[name])


def _make_clips(folder: Path, split: str) -> Images | None:
    files = sources.of_split(sources.clip_art_files(), split, sources.HELD_OUT_PIECES)
    return clip_pieces(files) if files else None


def _make_photographs(folder: Path, split: str) -> Images | None:
    files = sources.of_split(sources.picture_files()[0], split, sources.HELD_OUT_PHOTOS)
    return photo_levels(files) if files else None


def _make_designs(folder: Path, split: str) -> Images | None:
    files = sources.of_split(sources.picture_files()[1], split, sources.HELD_OUT_PHOTOS)
    return photo_levels(files) if files else None


def _make_bodies(folder: Path, split: str) -> Images | None:
    files = sources.of_split(sources.body_files(), split, sources.HELD_OUT_PIECES)
    if not files:
        return None
    from examples.scenes.bodies import body_pieces  # needs pybullet

    photos = PackedImages.open(folder / "photographs", 3)
    return body_pieces(files, photos, seed=sources.SPLITS.index(split))


def _make_rooms(folder: Path, split: str) -> Images | None:
    files = sources.of_split(sources.body_files(), split, sources.HELD_OUT_PIECES)
    if not files:
        return None
    from examples.scenes.rooms import room_pictures  # needs pybullet

    photos = PackedImages.open(folder / "photographs", 3)
    index = sources.SPLITS.index(split)
    return room_pictures(files, photos, seed=2 + index, count=ROOM_COUNTS[split])


# In this order: bodies and rooms are textured with the photographs.
POOL_MAKERS: dict[str, Callable[[Path, str], Images | None]] = {
    "photographs": _make_photographs,
    "designs": _make_designs,
    "clips": _make_clips,
    "bodies": _make_bodies,
    "rooms": _make_rooms,
}
