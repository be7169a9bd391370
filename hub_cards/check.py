"""Finds what is wrong with model cards, offline: `python -m hub_cards.check FILE ...`."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

SECTIONS = ("How to load it", "Training data", "Results", "Limits", "Bias", "Licence and citation")
FIELDS = {
    "license": "apache-2.0",
    "library_name": "transformers",
    "pipeline_tag": "mask-generation",
}


def code_blocks(text: str) -> list[str]:
    """The Python code in a Markdown text, block by block."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def faults(text: str) -> list[str]:
    """What is wrong with a card, a sentence each; empty for a sound one.

    Args:
        text: The card with its front matter.
    """
    try:
        card = ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return [f"The front matter cannot be read: {error}"]
    return [*_faults_of_data(card), *_faults_of_text(card.text)]


def _faults_of_data(card: ModelCard) -> Iterator[str]:
    for name, expected in FIELDS.items():
        if card.data.get(name) != expected:
            yield f"{name} must be {expected!r}, got {card.data.get(name)!r}."
    if "custom_code" not in (card.data.get("tags") or []):
        yield "The tag custom_code is missing: snippets would lack trust_remote_code."
    if card.data.get("widget"):
        yield "There is a widget, and the Hub has none for mask-generation."
    for result in card.data.get("eval_results") or []:
        if not 0 <= result.metric_value <= 1:
            yield f"{result.metric_name} must lie in [0, 1], got {result.metric_value}."


def _faults_of_text(text: str) -> Iterator[str]:
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if headings != list(SECTIONS):
        yield f"The sections must be {', '.join(SECTIONS)}; got {', '.join(headings)}."
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if not body.strip():
            yield f"The section {heading} is empty."
    if re.search(r"\{\{|\}\}|\{%|\[None\]|\| None \|", text):
        yield "A place of the template was not filled."
    for index, code in enumerate(code_blocks(text)):
        try:
            compile(code, f"block {index}", "exec")
        except SyntaxError as error:
            yield f"Code block {index} is no Python: {error}."


def main() -> int:
    """Prints the faults of the cards that the command line names; 1 if there are any."""
    found = [
        f"{path}: {fault}" for path in sys.argv[1:] for fault in faults(Path(path).read_text())
    ]
    print("\n".join(found) or "no faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
