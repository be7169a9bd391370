"""What every test starts from: no network, and one thread for each of pytest's processes."""

import os
import shlex

import pytest

# Before anything imports huggingface_hub or numpy, which read them once. `make test` runs one
# process a core: with several threads in each, they would mostly wait for each other.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def node(request):
    """Runs node or npm in the test's folder, where its package-lock.json is installed."""
    from tests.node import node_in

    return node_in(request.path.parent)


@pytest.fixture
def run_on_data(capsys, tmp_path, monkeypatch):
    """Runs a command line in a folder with the model `tiny` and the data `data`, which it takes."""
    from segment_anything_transformers.cli import main
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
