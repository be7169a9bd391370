"""What every test starts from: the variables of its environment, and fixtures for several files."""

import os
import shlex

import pytest

from tests.environments import VARIABLES

# Before anything imports huggingface_hub or numpy, which read them once. The C library reads its
# own when a process starts: pytest's processes for the tests are started after this.
for name, value in VARIABLES.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="module")
def node(request):
    """Runs node or npm in the test's folder, where its package-lock.json is installed."""
    from tests.node import node_in

    return node_in(request.path.parent)


@pytest.fixture
def run_on_data(capsys, tmp_path, monkeypatch):
    """Runs a command line in a folder with the model `tiny` and the data `data`, which it takes."""
    from segment_anything_transformers.cli.main import main
    from tests.fake_backend import small_config
    from tests.sample_folders import write_folder
    from tests.tiny import random_model

    monkeypatch.chdir(tmp_path)
    random_model(small_config()).save_pretrained("tiny")
    write_folder(tmp_path / "data")
    capsys.readouterr()

    def run(line):
        code = main([*shlex.split(line), "--model", "tiny", "--device", "cpu"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
