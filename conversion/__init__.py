"""Converts Segment Anything between this package and others: `python -m conversion --help`."""
