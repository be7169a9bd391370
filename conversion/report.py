"""What a conversion found out, as JSON for programs and as Markdown for people."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from segment_anything_transformers import SegmentAnythingModel, __version__

_PACKAGES = (
    "torch",
    "transformers",
    "segment-anything",
    "onnxruntime",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
)

_OUTPUTS = ("embeddings", "logits", "scores")


@dataclass(frozen=True)
class Comparison:
    """How far one implementation is from the PyTorch model of this package.

    Attributes:
        against: The implementation.
        differences: Largest absolute difference of embeddings, logits and scores, by what was
            asked for.
        tolerance: What the differences may be, times the largest value where that is above 1.
        agrees: Whether they all are within it.
    """

    against: str
    differences: dict[str, float]
    tolerance: float
    agrees: bool

    def largest(self, what: str) -> float:
        """Largest difference of "embeddings", "logits" or "scores", over all kinds of prompts."""
        return max(value for name, value in self.differences.items() if name.startswith(what))


@dataclass(frozen=True)
class Report:
    """Where a folder comes from, what is in it, and what it was compared with."""

    source: str
    format: str
    parameters: int
    configuration: dict[str, Any]
    files: dict[str, dict[str, Any]]
    comparisons: list[Comparison]
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        source: str,
        to: str,
        model: SegmentAnythingModel,
        folder: Path,
        comparisons: list[Comparison],
    ) -> Self:
        """The report of a folder that has just been written."""
        own = type(model.config).__annotations__
        return cls(
            source=Path(source).name if Path(source).exists() else source,
            format=to,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            configuration={n: value for n, value in model.config.to_dict().items() if n in own},
            files={
                path.relative_to(folder).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": _sha256(path),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
            comparisons=comparisons,
            versions=_versions(),
        )

    def as_text(self) -> str:
        """The report as Markdown."""
        lines = [
            f"# {self.source} as {self.format}",
            "",
            f"{self.parameters / 1e6:.1f} million parameters, images of "
            f"{self.configuration['input_size'][0]} x {self.configuration['input_size'][1]}.",
            "",
            "Largest differences from the PyTorch model of this package:",
            "",
            "| compared with | embeddings | logits | scores |",
            "|---|---|---|---|",
            *(
                f"| {comparison.against} | "
                + " | ".join(f"{comparison.largest(what):.1e}" for what in _OUTPUTS)
                + " |"
                for comparison in self.comparisons
            ),
            *([] if self.comparisons else ["| nothing: no other implementation here | | | |"]),
            "",
            "| file | bytes | SHA-256 |",
            "|---|---|---|",
            *(f"| {n} | {file['bytes']} | {file['sha256']} |" for n, file in self.files.items()),
            "",
            ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Writes `report.json` and `report.md`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "report.md").write_text(self.as_text(), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "segment-anything-transformers": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
