"""The page on which you click, and its photograph."""
