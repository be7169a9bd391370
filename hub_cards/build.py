"""Writes the models' cards from the template and from what was measured.

    python -m hub_cards.build                                 # all cards, into hub_cards/cards
    python -m hub_cards.build --model sam_vit_t --folder out  # a repository, ready to upload

Figures come from `benchmarks/results`, which `benchmarks.quality --output` writes, and from the
configuration. None is typed in.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hub_cards.models import MODELS, OWNER, PROJECT_URL
from segment_anything_transformers import (
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    SegmentAnythingProcessor,
)
from segment_anything_transformers.model.checkpoints import WEIGHTS_FOLDER
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS

HERE = Path(__file__).parent
CARDS = HERE / "cards"
RESULTS = HERE.parent / "benchmarks" / "results"
TAGS = ["segment-anything", "sam", "image-segmentation", "vision", "custom_code"]
"""The last one because loading without the package runs the code in the repository."""

PICTURES = "photographs"
DATASET = "Objects in the photographs of scikit-image, outlined by hand"
MEASURED = ("box, single", "box, best", "click, best", "5 clicks")
"""The figures that stand at the head of a card: what a user gets."""
FILES = ("handler.py", "requirements.txt")


def build_card(name: str, owner: str = OWNER) -> ModelCard:
    """The card of a model.

    Args:
        name: A key of `MODELS`.
        owner: Who has the repository on the Hub.
    """
    model, quality = MODELS[name], _quality(name)
    config = SegmentAnythingModelConfig.from_preset(name)
    parameters = _parameter_count(config)
    tables = {title: rows for title, rows in quality.items() if title.startswith(PICTURES)}
    return ModelCard.from_template(
        _card_data(name, tables.get(PICTURES, {})),
        template_path=str(HERE / "card.md.jinja"),
        name=name,
        repository=f"{owner}/{name}",
        project_url=PROJECT_URL,
        parameters=f"{parameters / 1e6:.1f} million",
        megabytes=round(_weight_bytes(name, parameters) / 1e6),
        input_height=config.input_size[0],
        input_width=config.input_size[1],
        masks=config.nb_multimask_outputs,
        thresholds=GENERATOR_THRESHOLDS.get(name, {}),
        summary=model.summary,
        training_data=model.training_data,
        limits=model.limits,
        bias=model.bias,
        base_model=model.base_model,
        paper=model.paper,
        peers=model.peers,
        quality=tables,
        quality_command="python -m benchmarks.quality",
        machine=quality.get("machine"),
    )


def _card_data(name: str, rows: dict[str, Any]) -> ModelCardData:
    """The front matter, which the Hub shows beside the card and searches in."""
    figures = {name: value for name, value in rows.get("all", {}).items() if name in MEASURED}
    results = [
        EvalResult(
            task_type="mask-generation",
            dataset_type="scikit-image-photographs",
            dataset_name=DATASET,
            metric_type="mean_iou",
            metric_name=f"Mean IoU ({kind})",
            metric_value=round(value, 4),
        )
        for kind, value in figures.items()
    ]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="mask-generation",
        tags=TAGS,
        base_model=MODELS[name].base_model,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _quality(name: str) -> dict[str, Any]:
    path = RESULTS / f"quality_{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _parameter_count(config: SegmentAnythingModelConfig) -> int:
    with torch.device("meta"):  # nothing is made
        return sum(parameter.numel() for parameter in SegmentAnythingModel(config).parameters())


def _weight_bytes(name: str, parameters: int) -> int:
    shipped = WEIGHTS_FOLDER / name / "model.safetensors"
    return shipped.stat().st_size if shipped.exists() else 4 * parameters


def build_repository(
    name: str, folder: Path, source: str | None = None, owner: str = OWNER
) -> None:
    """Fills a folder with a model's repository: weights, processor, card, endpoint.

    Args:
        name: A key of `MODELS`.
        folder: Made if needed.
        source: What `from_pretrained` takes; by default the name, for Meta's weights a download.
        owner: Who has the repository on the Hub.
    """
    model: Any = SegmentAnythingModel.from_pretrained(source or name)
    model.save_pretrained(folder)
    SegmentAnythingProcessor.from_pretrained(source or name).save_pretrained(folder)
    build_card(name, owner).save(folder / "README.md")
    for file in FILES:
        shutil.copyfile(HERE / file, folder / file)


def main() -> None:
    """Writes all cards, or one repository."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=list(MODELS), help="the one to make a repository of")
    parser.add_argument("--folder", type=Path, help="where to make it")
    parser.add_argument("--owner", default=OWNER, help="who has it on the Hub")
    options = parser.parse_args()
    if options.model:
        if options.folder is None:
            parser.error("--model needs --folder")
        build_repository(options.model, options.folder, owner=options.owner)
        return
    CARDS.mkdir(exist_ok=True)
    for name in MODELS:
        build_card(name, options.owner).save(CARDS / f"{name}.md")


if __name__ == "__main__":
    main()
