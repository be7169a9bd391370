"""The command `segment-anything`."""
