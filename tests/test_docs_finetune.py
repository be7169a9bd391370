"""The page on fine-tuning: its code runs, its commands are commands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from segment_anything_transformers.cli_arguments import build_parser

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "fine-tune.md").read_text()


@pytest.mark.slow
@pytest.mark.tf
def test_the_python_code_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "fine-tune.md", "exec"), names)
    figures = names["after"].means()["all"]
    assert figures["objects"] == 6
    assert figures != names["before"].means()["all"]
    assert (tmp_path / "my-sam" / "model.safetensors").exists()
    assert np.isfinite(names["loss"].item())
    assert np.isfinite(names["history"].history["loss"]).all()


def test_the_commands_are_commands():
    commands = re.findall(r"^segment-anything .*", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).command in command
