"""The parts of docs/benchmarks.md, and of the README, that scripts write."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"


def write_part(name: str, text: str, page: Path = PAGE) -> None:
    """Puts the text between the marks `<!-- name -->` and `<!-- /name -->` of the page."""
    before, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->\n")
    if not (begin and end):
        raise ValueError(f"{page} has no part between <!-- {name} --> and <!-- /{name} -->.")
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; columns in which no row has anything are left out."""
    used = [not rows or any(cells) for cells in zip(*rows, strict=True)] or [True] * len(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell for cell, is_used in zip(line, used, strict=True) if is_used)} |"
        for line in lines
    )


def machine_lines(machine: dict) -> str:
    """What the figures were measured on, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in machine.items())
