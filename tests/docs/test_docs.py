"""The site: it builds without a warning, and what its pages show works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import segment_anything_transformers
from conversion.__main__ import main as convert_command
from conversion.__main__ import parse_arguments
from segment_anything_transformers import SegmentAnythingModel, SegmentAnythingModelConfig
from segment_anything_transformers.cli.arguments import build_parser
from segment_anything_transformers.cli.main import main
from tests.docs.test_readme import DEMO_IMAGE
from tests.made_once import built_site, exported_vit_t
from tests.markdown import code_blocks
from tests.parity.peers import huggingface_model
from tests.tiny import random_model, shallow_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS)): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
    if "node_modules" not in path.parts
}
TESTED_ELSEWHERE = "how-to/fine-tune.md"  # in test_docs_finetune.py
WITH_CODE = [n for n, text in PAGES.items() if "```python" in text and n != TESTED_ELSEWHERE]
COMMANDS = {
    (name, line)
    for name, text in PAGES.items()
    for line in "".join(code_blocks(text, "console")).splitlines()
}
OTHER_PROGRAMS = ("pip install", "make", "hf upload", "python -m hub_cards", "python -m conversion")

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The pictures that the pages speak of, in the folder that their code is run in."""
    monkeypatch.chdir(tmp_path)
    photo = Image.open(DEMO_IMAGE)
    photo.save("photo.jpg")
    photo.resize((200, 300)).save("other.jpg")
    red, green, blue = np.moveaxis(np.asarray(photo, np.uint16) * 40, -1, 0)
    bands = np.stack([blue, green, red, red // 2], axis=-1)
    tifffile.imwrite("scene.tif", bands, photometric="minisblack", planarconfig="contig")
    return tmp_path


@pytest.fixture
def metas_file(photos):
    """A checkpoint as Meta's files are, by the name of one, of the small model."""
    model = SegmentAnythingModel.from_pretrained("sam_vit_t")
    torch.save(model.state_dict(), "sam_vit_b_01ec64.pth")


@pytest.fixture
def huggingfaces_folder(tmp_path):
    """What `facebook/sam-vit-base` holds, of the small model."""
    model = SegmentAnythingModel.from_pretrained("sam_vit_t")
    height, width = model.config.input_size
    folder = tmp_path / "huggingface"
    huggingface_model(model).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "size": {"longest_edge": height},
        "pad_size": {"height": height, "width": width},
        "image_mean": model.config.mean,
        "image_std": model.config.std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture
def export_once(tmp_path_factory, monkeypatch):
    """The export of the model in the package, which other tests need too, is made for all."""

    def export(model, folder):
        assert model.config.name == "sam_vit_t"
        shutil.copytree(exported_vit_t(tmp_path_factory), folder)

    monkeypatch.setattr(segment_anything_transformers, "export_onnx", export)


@pytest.fixture
def shallow_folder(tmp_path):
    """`sam_vit_t` with a block of each kind: writing more of them shows nothing else."""
    random_model(shallow_config("sam_vit_t")).save_pretrained(tmp_path / "shallow")
    return tmp_path / "shallow"


@pytest.mark.tf
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_python_code_of_each_page_runs_from_top_to_bottom(name, photos, request):
    text = PAGES[name]
    if ".pth" in text:
        request.getfixturevalue("metas_file")
    if "export_onnx(model," in text:
        request.getfixturevalue("export_once")
        loads = 'TFSegmentAnythingModel.from_pretrained("{}")'.format
        text = text.replace(loads("sam_vit_t"), loads(request.getfixturevalue("shallow_folder")))
    if 'from_pretrained("facebook/sam-vit-base")' in text:
        folder = request.getfixturevalue("huggingfaces_folder")
        text = text.replace("facebook/sam-vit-base", str(folder))
    names = {}
    for block in code_blocks(text, "python"):
        exec(compile(block, name, "exec"), names)
    for line in code_blocks(text, "console"):
        if line.startswith("segment-anything evaluate"):  # of the folder that the page has made
            assert main([*shlex.split(line)[1:], "--quiet"]) == 0
    written = set(re.findall(r'save\("([\w.]+\.png)"\)', text))
    assert {path.name for path in photos.glob("*.png")} >= written


def runnable(command):
    """Whether the command of a page ends by itself, and needs no other model."""
    return not any(word in command for word in ("--serve", "--model", "evaluate"))


def test_every_command_is_one():
    assert len(COMMANDS) >= 10
    for page, command in COMMANDS:
        if command.startswith("segment-anything"):
            assert build_parser().parse_args(shlex.split(command)[1:]).command in command
        else:
            assert command.startswith(OTHER_PROGRAMS), (page, command)


def test_the_commands_of_the_pages_run(photos):
    commands = sorted(c for _, c in COMMANDS if c.startswith("segment-anything") and runnable(c))
    assert len(commands) >= 7
    main(["predict", "photo.jpg", "--point", "90,60", "--quiet"])  # leaves the mask that one reads
    for command in commands:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command


def test_the_conversions_are_done_as_shown(photos, metas_file):
    commands = [line for _, line in COMMANDS if line.startswith("python -m conversion")]
    in_order = sorted(commands, key=PAGES["how-to/convert.md"].index)
    assert len(in_order) == 4
    for command in in_order[:2]:  # the others are tested with the conversions
        assert convert_command(shlex.split(command)[3:]) == 0, command
    assert parse_arguments(shlex.split(in_order[2])[3:]).to == "meta"
    assert {"ours", "for-transformers"} <= {path.name for path in photos.iterdir()}


def test_the_repository_of_an_endpoint_is_made_as_shown(photos):
    [command] = [c for _, c in COMMANDS if c.startswith("python -m hub_cards.build")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    words = shlex.split(command)[1:]
    subprocess.run([sys.executable, *words], check=True, env=environment)
    made = {path.name for path in (photos / "my-endpoint").iterdir()}
    assert made >= {"handler.py", "requirements.txt", "README.md", "model.safetensors"}


def test_pages_show_no_picture_that_no_script_makes():
    shown = {
        Path(p).name for text in PAGES.values() for p in re.findall(r"!\[.*?\]\((.+?)\)", text)
    }
    paths = [*DOCS.glob("make_*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    scripts = "".join(path.read_text() for path in paths)
    for name in shown:
        assert f'"{Path(name).stem}"' in scripts or f'"{name}"' in scripts
        assert (DOCS / "images" / name).exists()


def test_the_shape_legend_is_true():
    for row in re.findall(r"^\| \(H.*", PAGES["shapes.md"], re.MULTILINE):
        letters, _, *sizes = (cell.strip() for cell in row.strip("| ").split("|"))
        method = {"(H, W)": "input_size", "(H'', W'')": "grid_size", "(H', W')": "mask_size"}.get(
            letters
        )
        for preset, size in zip(("sam_vit_b", "sam_vit_t"), sizes, strict=True):
            config = SegmentAnythingModelConfig.from_preset(preset)
            value = getattr(config, method) if method else "any"
            assert size == str(value() if callable(value) else value), (letters, preset)


@pytest.mark.node  # npm brings the script that draws diagrams
def test_the_site_builds_without_a_warning(tmp_path_factory):
    site = built_site(tmp_path_factory)
    pages = {str(path.relative_to(site)) for path in site.rglob("index.html")}
    for name in PAGES:
        stem = name.removesuffix(".md")
        assert ("index.html" if stem == "index" else f"{stem}/index.html") in pages
    reference = (site / "reference" / "index.html").read_text()
    for name in segment_anything_transformers.__all__:
        assert f'id="segment_anything_transformers.{name}"' in reference, name
    from_elsewhere = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!example)')
    for page in site.rglob("*.html"):
        assert not from_elsewhere.search(page.read_text()), page
