"""What the README shows is what works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from segment_anything_transformers import (
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    list_presets,
)
from segment_anything_transformers.cli.arguments import build_parser
from segment_anything_transformers.data.files import image_size
from tests.markdown import code_blocks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEMO_IMAGE = ROOT / "src" / "segment_anything_transformers" / "demo" / "coffee.jpg"


@pytest.mark.slow
def test_the_python_code_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = Image.open(DEMO_IMAGE)
    photo.save("photo.jpg")
    photo.resize((200, 300)).save("other.jpg")
    names = {}
    blocks = code_blocks(README, "python")
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert image_size("everything.png") == photo.size
    shapes = [tuple(mask.shape) for mask in names["masks"]]
    assert shapes == [(2, 3, 400, 600), (2, 3, 300, 200)]
    assert names["loss"].item() > 0
    assert names["tf_masks"].shape == (1, 3, 1024, 1024)
    assert (tmp_path / "my-tf-sam" / "model.safetensors").exists()


def test_the_commands_are_commands():
    lines = "".join(code_blocks(README, "console")).splitlines()
    commands = [line for line in lines if line.startswith("segment-anything")]
    assert len(commands) == 8
    for command in commands:
        assert build_parser().parse_args(shlex.split(command, comments=True)[1:]).command in command


def test_the_models_are_those_that_there_are():
    rows = re.findall(
        r"^\| `(\w*sam\w*)` \| ([\d.]+) million \| (\d+) x (\d+)", README, re.MULTILINE
    )
    assert [name for name, *_ in rows] == list_presets()
    for name, millions, *size in rows:
        config = SegmentAnythingModelConfig.from_preset(name)
        with torch.device("meta"):
            parameters = SegmentAnythingModel(config).num_parameters()
        assert f"{parameters / 1e6:.1f}" == millions
        assert config.input_size == tuple(map(int, size))


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([a-z-]+)", "".join(code_blocks(README, "console")), re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
    width, _ = image_size(str(ROOT / "docs" / "images" / "coffee.png"))
    assert width >= 800
