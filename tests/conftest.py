"""What every test starts from: no network, and pictures that are the same each time."""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
