"""The rooms of the code: imports lead down, in no circle, and frameworks stay where they are."""

import re
import subprocess
import sys

import pytest

from tests.floors import (
    FLOOR,
    FLOORS,
    PACKAGE,
    PAGE,
    ROOT,
    arrows,
    drawing,
    faults,
    listing,
    on_page,
    read_imports,
    read_modules,
)


def test_the_floors_hold():
    assert faults() == []


def test_the_house_is_small():
    rooms = arrows(read_imports())
    assert set(rooms) <= set(FLOOR)
    assert len(FLOOR) <= 14
    assert len(FLOORS) <= 7


def test_every_file_is_read():
    paths = set(read_modules().values())
    assert {*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")} <= paths


def test_the_page_shows_the_house_as_it_is():
    """`python -m tests.floors --draw` draws it anew."""
    text = PAGE.read_text()
    assert drawing() in text
    assert on_page(text) == text


STEP = re.compile(r"^\| [^|]+ \| `([\w/]+\.py)` \| (.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("walk", ["From an image to a mask", "From a checkpoint to a model"])
def test_the_steps_of_a_walk_are_there(walk):
    section = PAGE.read_text().split(f"## {walk}\n")[1].split("\n## ")[0]
    steps = STEP.findall(section)
    assert len(steps) == section.count("\n| ") - 1  # the head of the table is no step
    for file, names in steps:
        text = (ROOT / "src" / PACKAGE / file).read_text()
        for name in re.findall(r"[\w.]+", names):
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b", text), (file, name)


def test_the_listing_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "tests.floors"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(listing())
    assert done.returncode == bool(faults())


SOUND = {
    "__init__": "if TYPE_CHECKING:\n    from .model.mask_ops import f",
    "model/__init__": "",
    "model/mask_ops": "import numpy",
    "model/layers": "import torch\nfrom .mask_ops import f",
    "model/layers_tf": "import keras",
    "cli/main": "def f():\n    import torch\n    from ..model.layers import g",
}
FAULTY = [
    ("model/a", "def f():\n    from ..data.b import g", "model.a:2 imports data.b, up to data"),
    ("training/a", "from ..evaluation import b", "training.a:1 imports evaluation.b, across to ev"),
    (
        "data/a",
        "if TYPE_CHECKING:\n    from .. import f",
        "data.a:2 imports __init__, up to",
    ),
    ("data/a", "import benchmarks.speeds", "data.a:1 imports benchmarks.speeds, up to benchmarks"),
    ("cli/a", "from tests import tiny", "cli.a:1 imports tests, which users do not have"),
    ("data/a", "from .b import f", "a circle of modules: data.a <- data.b <- data.a"),
    ("model/a", f"import {PACKAGE}.model.mask_ops", "which the Hub does not know"),
    ("model/deep/a", "", "model.deep.a is in a folder"),
    ("model/a", "import keras", "model.a:1 imports keras, but its name has no tf or keras"),
    ("model/a_tf", "def f():\n    import torch", "model.a_tf:2 imports torch beside TensorFlow"),
    ("model/a", "try:\n    from torch import nn\nexcept E: ...", "model.a:2 imports torch at once"),
    ("model/a", "torch = import_module('torch')", "model.a:1 imports torch at once"),
    ("data/a", "from ..model import layers", "importing data.a imports torch"),
    ("data/a_tf", "import keras\nfrom ..model.layers import f", "both PyTorch and TensorFlow"),
    ("__init__", "from .model import layers", "importing __init__ imports torch"),
    ("rooms/a", "", "stands in no room"),
]


@pytest.fixture
def house(tmp_path):
    """Makes a folder with small modules in it, whose imports are sound, and further ones."""

    def build(files):
        for name, text in {**SOUND, **files}.items():
            path = tmp_path / "src" / PACKAGE / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_imports_that_lead_down_are_no_fault(house):
    root = house({"data/a": "from ..model import mask_ops", "cli/b": "from ..data import a"})
    assert faults(root) == []
    assert arrows(read_imports(root))["cli"] == {"data", "model"}


@pytest.mark.parametrize(("name", "text", "expected"), FAULTY)
def test_a_fault_is_found_with_its_names(name, text, expected, house):
    beside = {"data/b": "def f():\n    from . import a", "evaluation/b": ""}
    assert any(expected in fault for fault in faults(house({**beside, name: text})))
