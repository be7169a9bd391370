"""The demo as a Space: what `segment-anything demo --serve` shows."""

import os
import sys

from segment_anything_transformers.cli.main import main

MODEL = os.environ.get("MODEL", "sam_vit_t")

if __name__ == "__main__":
    sys.exit(main(["demo", "--serve", "--host", "0.0.0.0", "--port", "7860", "--model", MODEL]))
