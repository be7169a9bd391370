"""What takes long to make is made by one of pytest's processes, for all of them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from segment_anything_transformers import SegmentAnythingModel, export_onnx

ROOT = Path(__file__).parents[1]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this run that `make` fills when it is first asked for.

    Args:
        factory: Pytest's fixture `tmp_path_factory`.
        name: Name of the folder.
        make: Makes the folder, whose path it is given.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # a process of pytest-xdist has a folder in that of the run
        base = base.parent
    folder = base / name
    with FileLock(base / f"{name}.lock"):
        if not (base / f"{name}.made").exists():
            make(folder)
            (base / f"{name}.made").touch()
    return folder


def exported_vit_t(factory: pytest.TempPathFactory) -> Path:
    """What `export_onnx` writes of the model in the package."""

    def make(folder: Path) -> None:
        export_onnx(SegmentAnythingModel.from_pretrained("sam_vit_t"), folder)

    return made_once(factory, "onnx_vit_t", make)


def built_site(factory: pytest.TempPathFactory) -> Path:
    """The documentation as pages, which had to be built without a warning."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "WARNING -" not in done.stderr

    return made_once(factory, "site", make)
