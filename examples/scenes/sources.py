"""The picture files that scenes are made of, and which split each belongs to."""

import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "held_out")
HELD_OUT_PIECES = 0.10
# Photographs are few: this share leaves eight of forty to the held-out scenes.
HELD_OUT_PHOTOS = 0.30

CLIP_ART_FOLDER = Path("/usr/share/openclipart/png")
WALLPAPER_FOLDERS = {
    "gnome-backgrounds": Path("/usr/share/backgrounds/gnome"),
    "mate-backgrounds": Path("/usr/share/backgrounds/mate"),
    "plasma-workspace-wallpapers": Path("/usr/share/wallpapers"),
}

# Spirographs, sheets, borders, hundreds of grey icons: little to outline there.
SKIPPED_CLIP_ART = (
    "shapes/stars",
    "special/gradients",
    "special/patterns",
    "signs_and_symbols/led",
    "computer/icons/flat-theme",
)
# Names without suffix. Everything else in the wallpaper folders is drawn, not photographed.
PHOTOGRAPHS = frozenset(
    """
    Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood
    YellowFlower wood-d wood-l BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow
    FallenLeaf Grey Kite OneStandsOut Path Shell Volna summer_1am astronaut brick camera chelsea
    coffee coins grass gravel ihc moon motorcycle_left retina rocket
    """.split()
)
# Text, charts, toy pictures, second copies.
SKIPPED_PICTURES = frozenset(
    """
    Arc-Colors-Transparent-Wallpaper Silk Spring Waves Stripes MATE-Stripes-Dark
    MATE-Stripes-Light GreenTraditional Elephants_3840x2160 Elephants_5640x3172 vnc-d vnc-l
    chessboard_GRAY chessboard_RGB clock_motion color cell horse hubble_deep_field logo
    microaneurysms motorcycle_right page phantom text
    """.split()
)


@dataclass(frozen=True)
class SourceFile:
    """One picture or model file, and the name that decides its split."""

    path: Path
    name: str


def family(name: str) -> str:
    """The name without numbers, sizes and colours, so that variants share a split."""
    words = re.split(r"[^a-z]+", name.lower())
    variants = {"d", "l", "red", "green", "blue", "yellow", "black", "white", "grey", "gray"}
    variants |= {"orange", "purple", "pink", "brown", "left", "right", "up", "down", "r", "g", "b"}
    kept = [word for word in words if word and word not in variants]
    return "_".join(kept) or name


def split_of(name: str, held_out_fraction: float) -> str:
    """The split of a file: a hash of its family's name, the same on every machine.

    Args:
        name: File name without suffix.
        held_out_fraction: Share of the families that is held out, in [0, 1].
    """
    digest = hashlib.sha256(family(name).encode()).digest()
    is_held_out = int.from_bytes(digest[:4], "big") / 2**32 < held_out_fraction
    return SPLITS[1] if is_held_out else SPLITS[0]


def of_split(files: list[SourceFile], split: str, held_out_fraction: float) -> list[SourceFile]:
    """The files of one split, in a fixed order."""
    chosen = [file for file in files if split_of(file.name, held_out_fraction) == split]
    return sorted(chosen, key=lambda file: (file.name, str(file.path)))


def report_missing(what: str, remedy: str) -> None:
    """Print one line that says which source is absent and how to install it."""
    print(f"scenes: {what} not found, rendering without; install {remedy}", file=sys.stderr)


def clip_art_files() -> list[SourceFile]:
    """Clip art with transparency, from Debian's openclipart-png."""
    if not CLIP_ART_FOLDER.is_dir():
        report_missing(f"clip art ({CLIP_ART_FOLDER})", "the Debian package openclipart-png")
        return []
    files = [path for path in sorted(CLIP_ART_FOLDER.rglob("*.png")) if not path.is_symlink()]
    return [SourceFile(path, path.stem) for path in files if not _is_skipped_clip_art(path)]


def _is_skipped_clip_art(path: Path) -> bool:
    folder = path.parent.relative_to(CLIP_ART_FOLDER).as_posix()
    return folder.startswith(SKIPPED_CLIP_ART)


def picture_files() -> tuple[list[SourceFile], list[SourceFile]]:
    """Photographs, and drawn or rendered wallpapers: two lists."""
    found = _scikit_image_files()
    for package, folder in WALLPAPER_FOLDERS.items():
        if folder.is_dir():
            found += _wallpapers(folder)
        else:
            report_missing(f"wallpapers ({folder})", f"the Debian package {package}")
    kept = [file for file in found if file.name not in SKIPPED_PICTURES]
    photographs = [file for file in kept if file.name in PHOTOGRAPHS]
    return photographs, [file for file in kept if file.name not in PHOTOGRAPHS]


def _wallpapers(folder: Path) -> list[SourceFile]:
    """Each wallpaper once: Plasma keeps several sizes in a folder that bears the name."""
    largest: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".jpg", ".png", ".webp"} or path.is_symlink():
            continue
        if path.stem == "screenshot":
            continue
        name = path.parents[2].name if path.parent.name.startswith("images") else path.stem
        if name not in largest or path.stat().st_size > largest[name].stat().st_size:
            largest[name] = path
    return [SourceFile(path, name) for name, path in largest.items()]


def _scikit_image_files() -> list[SourceFile]:
    # Found, not imported: the pictures in the wheel are wanted, not the library.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        report_missing("scikit-image's pictures", "scikit-image (pip install scikit-image)")
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    paths = sorted([*folder.glob("*.png"), *folder.glob("*.jpg")])
    return [SourceFile(path, path.stem) for path in paths]


def body_files() -> list[SourceFile]:
    """URDF models of single objects, from pybullet's wheel."""
    if importlib.util.find_spec("pybullet") is None:
        report_missing("pybullet", "pybullet (pip install pybullet)")
        return []
    spec = importlib.util.find_spec("pybullet_data")
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        report_missing("pybullet_data", "pybullet (pip install pybullet)")
        return []
    folder = Path(locations[0])
    # The thousand random models are told apart by their number alone, spelled in letters
    # because a family's name drops digits.
    randoms = [
        SourceFile(path, "random " + path.stem.translate(str.maketrans("0123456789", "abcdefghij")))
        for path in sorted(folder.glob("random_urdfs/[0-9]*/*.urdf"))
    ]
    named = [folder / name for name in NAMED_BODIES]
    return randoms + [SourceFile(path, path.stem) for path in named if path.is_file()]


NAMED_BODIES = (
    "objects/mug.urdf",
    "duck_vhacd.urdf",
    "teddy_vhacd.urdf",
    "teddy_large.urdf",
    "lego/lego.urdf",
    "soccerball.urdf",
    "jenga/jenga.urdf",
    "domino/domino.urdf",
    "tray/traybox.urdf",
    "table/table.urdf",
    "table_square/table_square.urdf",
    "racecar/racecar.urdf",
    "r2d2.urdf",
    "husky/husky.urdf",
    "bicycle/bike.urdf",
    "kuka_iiwa/model.urdf",
    "humanoid/humanoid.urdf",
)
