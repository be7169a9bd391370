"""The wheel that users get, rather than the folder that we work in."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "segment_anything_transformers"

pytestmark = pytest.mark.slow


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing which an earlier build left behind gets in."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    [path] = (folder / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(PACKAGE + "/")}
    sources = (ROOT / "src" / PACKAGE).rglob("*")
    expected = {
        str(path.relative_to(ROOT / "src"))
        for path in sources
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected
    assert f"{PACKAGE}/py.typed" in packed
    assert [name for name in packed if "/weights/" in name and name.endswith(".safetensors")]


def test_the_installed_wheel_segments(wheel, tmp_path):
    """In another folder, with the package from the wheel alone."""
    pip("install", "--target", str(tmp_path / "site"), str(wheel))
    code = (
        f"import {PACKAGE} as ours\n"
        f"from {PACKAGE}.cli.main import main\n"
        "assert ours.__file__.startswith(sys.argv[1]), ours.__file__\n"
        "sys.exit(main(['demo', '--output', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "coffee.json",
        "coffee_mask_00.png",
        "coffee_overlay.png",
    }
