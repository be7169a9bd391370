"""What every test starts from: no network, and one thread for each of pytest's processes."""

import os

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
