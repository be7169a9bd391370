"""The folder that is uploaded as a Space."""

import runpy
from pathlib import Path

import pytest
from huggingface_hub import RepoCard

from hub_cards.models import MODELS, OWNER
from segment_anything_transformers.cli.arguments import build_parser

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "hub_cards" / "space"


def test_the_front_matter_names_what_is_there():
    data = RepoCard.load(SPACE / "README.md", repo_type="space").data
    assert (SPACE / data.app_file).exists()
    assert data.sdk == "gradio"
    assert f"\ngradio=={data.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert len(data.short_description) <= 60  # the Hub's limit
    assert set(data.models) <= {f"{OWNER}/{name}" for name in MODELS}


def test_the_app_is_the_commands_page(monkeypatch):
    given = []
    monkeypatch.setattr(
        "segment_anything_transformers.cli.main.main", lambda line: given.extend(line)
    )
    monkeypatch.setenv("MODEL", "facebook/sam-vit-base")
    with pytest.raises(SystemExit):
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    options = build_parser().parse_args(given)
    assert (options.command, options.serve, options.host) == ("demo", True, "0.0.0.0")
    assert options.model == "facebook/sam-vit-base"
