"""Transformers' common tests, imported from its source distribution.

Nothing of them is kept here. What the distribution leaves out and its files import is stood in for:
tests of exporters and of text generation, which no class of ours has, and a list of arguments.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from tests.programs import install_transformers_tests

PACKAGE = "tests_of_transformers"


@cache
def common_tests(name: str) -> ModuleType:
    """A module of transformers' common tests, such as "test_modeling_common"."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(install_transformers_tests())]
        sys.modules[PACKAGE] = package
        for stub, content in _STUBS.items():
            _put(stub, content)
    return importlib.import_module(f"{PACKAGE}.{name}")


def local_picture(url: str) -> str:
    """Path of a picture of our own for the address of one on the Hub, which tests cannot reach."""
    if not url.endswith((".jpg", ".png")):
        return url
    path = Path(gettempdir()) / f"picture_of_{Path(url).name}"
    if not path.exists():
        generator = np.random.default_rng(len(url))
        pixels = generator.integers(0, 150, (48, 64, 3), np.uint8)  # ADE20K has 150 classes
        Image.fromarray(pixels).save(path, format="png")
    return str(path)


_STUBS: dict[str, dict[str, Any]] = {
    f"{PACKAGE}.exporters": {"__path__": []},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation": {"__path__": []},
    f"{PACKAGE}.generation.test_utils": {
        "GenerationTesterMixin": type("GenerationTesterMixin", (), {})
    },
    f"{PACKAGE}.utils": {"__path__": []},
    f"{PACKAGE}.utils.test_configuration_utils": {
        # What every configuration takes: values that none has by default.
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["OneModel"],
            "id2label": {0: "one", 1: "other"},
            "label2id": {"one": 0, "other": 1},
            "problem_type": "regression",
        }
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": local_picture},
}


def _put(name: str, content: dict[str, Any]) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
