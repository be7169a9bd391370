"""The cards: built from measurements, sound, shown by the Hub as meant, and their code runs."""

import ast
import json
import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hub_cards.build import CARDS, FILES, RESULTS, build_card, build_repository
from hub_cards.check import code_blocks, faults
from hub_cards.models import MODELS, OWNER
from segment_anything_transformers import (
    SegmentAnythingImageProcessor,
    SegmentAnythingModelConfig,
    SegmentAnythingProcessor,
    list_presets,
)
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository as it would be uploaded, of a tiny model."""
    folder = tmp_path_factory.mktemp("repository")
    config = small_config(input_size=(64, 64), encoder_patch_size=16)
    random_model(config).save_pretrained(folder / "source")
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(config))
    processor.save_pretrained(folder / "source")
    build_repository("sam_vit_b", folder / "made", source=str(folder / "source"))
    return folder / "made"


def run_code(code, folder, tmp_path, names):
    """Runs code of a page, for which the repository lies in a folder instead."""
    Image.linear_gradient("L").resize((600, 400)).save(tmp_path / "photo.jpg")
    exec(
        compile(re.sub(rf"{OWNER}/(sam_vit_\w|mobile_sam)", str(folder), code), "card", "exec"),
        names,
    )


def test_every_model_has_a_card_and_it_is_the_one_that_is_built():
    assert list(MODELS) == list_presets()
    assert {path.stem for path in CARDS.iterdir()} == set(MODELS)
    for name in MODELS:
        assert (CARDS / f"{name}.md").read_text() == str(build_card(name)), (
            f"The card of {name} is out of date: run python -m hub_cards.build"
        )


@pytest.mark.parametrize("name", MODELS)
def test_cards_have_no_faults(name):
    assert faults((CARDS / f"{name}.md").read_text()) == []


def test_faults_are_found():
    text = (CARDS / "sam_vit_t.md").read_text()
    spoilt = {
        "license must be 'apache-2.0', got 'mit'": text.replace(
            "license: apache-2.0", "license: mit"
        ),
        "custom_code is missing": text.replace("- custom_code\n", ""),
        "The sections must be": text.replace("## Bias", "## Biases"),
        "The section Bias is empty": re.sub(r"(## Bias\n)(.|\n)*?(?=## )", r"\1\n", text),
        "A place of the template": text.replace("# sam_vit_t", "# {{ name }}"),
        "Code block 0 is no Python": text.replace("import numpy as np", "import numpy as"),
        "there is a widget": text.replace("tags:\n", "widget:\n- src: a.png\ntags:\n"),
        "must lie in [0, 1], got 7": re.sub(r"value: 0\.\d+", "value: 7", text, count=1),
        "cannot be read": text.replace("tags:\n", "tags: [\n"),
    }
    for message, card in spoilt.items():
        assert message.lower() in " ".join(faults(card)).lower(), message


def test_figures_are_those_that_were_measured():
    measured = json.loads((RESULTS / "quality_sam_vit_t.json").read_text())["photographs"]["all"]
    card = ModelCard.load(CARDS / "sam_vit_t.md")
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    kinds = ("box, single", "box, best", "click, best", "5 clicks")
    assert shown == {f"Mean IoU ({kind})": round(measured[kind], 4) for kind in kinds}
    row = next(line for line in card.text.splitlines() if line.startswith("| all |"))
    cells = [float(cell) for cell in row.strip("| ").split("|")[1:]]
    assert cells == [round(value, 2) for value in measured.values()]


def test_sizes_are_the_models(repository):
    for name in MODELS:
        config = SegmentAnythingModelConfig.from_preset(name)
        assert f"{config.input_size[0]} x {config.input_size[1]} pixels" in str(build_card(name))
    assert "| 93.7 million |" in str(build_card("sam_vit_b"))


def as_laid_out_alike(code):
    return ast.unparse(ast.parse(code))


@pytest.mark.tf
@pytest.mark.slow
def test_the_code_on_the_card_runs(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = code_blocks((CARDS / "sam_vit_b.md").read_text())
    assert len(blocks) == 3
    run_code(blocks[0], repository, tmp_path, names)
    assert names["masks"].shape == (3, 400, 600)
    run_code(blocks[1], repository, tmp_path, names)
    assert [tuple(mask.shape) for mask in names["masks"]] == [(1, 3, 400, 600)]
    run_code(blocks[2], repository, tmp_path, names)
    assert isinstance(names["records"], list)
    shared = [as_laid_out_alike(block) for block in blocks]
    others = [code_blocks((CARDS / f"{name}.md").read_text()) for name in MODELS]
    for name, other in zip(MODELS, others, strict=True):
        own = GENERATOR_THRESHOLDS.get(name, {})
        thresholds = "".join(f", {threshold}={value}" for threshold, value in own.items())
        assert thresholds in other[2]
        codes = [code.replace(name, "sam_vit_b").replace(thresholds, "") for code in other]
        assert [as_laid_out_alike(code) for code in codes] == shared


def test_a_repository_has_what_an_endpoint_needs(repository):
    names = {path.name for path in repository.iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    assert names >= set(FILES)
    assert faults((repository / "README.md").read_text()) == []


def hub_page(node, card, name):
    """What the Hub makes of the card; the rest it reads from the repository's files."""
    model = {
        **card.data.to_dict(),
        "id": f"{OWNER}/{name}",
        "transformersInfo": {
            "auto_model": "AutoModelForMaskGeneration",
            "pipeline_tag": "mask-generation",
            "processor": "AutoProcessor",
        },
    }
    return json.loads(node("node", "hub_page.mjs", json.dumps(model)).stdout)


@pytest.mark.node
@pytest.mark.parametrize("name", ["sam_vit_t", "sam_vit_h"])
def test_the_hub_shows_task_library_and_no_widget(name, node):
    page = hub_page(node, ModelCard.load(CARDS / f"{name}.md"), name)
    assert page["task"]["name"] == "Mask Generation"
    assert page["task"]["modality"] == "cv"
    assert page["taskIsTheLibrarys"]
    assert page["library"] == "Transformers"
    assert page["widgetInputs"] == []


@pytest.mark.node
def test_the_hubs_own_snippets_run(node, repository, tmp_path, monkeypatch):
    """Those behind the button "Use this model"."""
    monkeypatch.chdir(tmp_path)
    snippets = hub_page(node, ModelCard.load(CARDS / "sam_vit_b.md"), "sam_vit_b")["snippets"]
    assert len(snippets) == 2
    names = {}
    for snippet in snippets:
        assert "trust_remote_code=True" in snippet
        run_code(snippet, repository, tmp_path, names)
    found = names["pipe"]("photo.jpg", points_per_crop=2, pred_iou_thresh=-10)
    assert set(found) >= {"masks", "scores"}
    assert names["model"].config.model_type == "segment_anything"
    assert type(names["processor"]).__name__ == "SegmentAnythingProcessor"
