"""Synthetic scenes with instance maps, for training promptable segmentation."""
