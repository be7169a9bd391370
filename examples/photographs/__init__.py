"""Photographs to train on, with masks that another model gave."""
