"""What every test starts from: no network, and one thread for each of pytest's processes."""

import os

# Before anything imports huggingface_hub or numpy, which read them once. `make test` runs one
# process a core: with several threads in each, they would mostly wait for each other.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
