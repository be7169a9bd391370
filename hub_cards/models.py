"""What a card says of a model that nothing measures: its origin, its limits, its bias."""

import re
from dataclasses import dataclass

from segment_anything_transformers.model.checkpoints import WEIGHTS_FOLDER
from segment_anything_transformers.model.configuration_segment_anything import preset_repository

OWNER = "segment-anything-transformers"
PROJECT_URL = "https://pypi.org/project/segment-anything-transformers/"

_SA_1B = """\
SA-1B: 11 million photographs with 1.1 billion masks, which a model proposed and, in part, people
corrected. No training took place here."""

_LIMITS_OF_METAS = """\
Fine structures are missed, small disconnected regions are sometimes made up, and edges are less
crisp than those of models that zoom in. A single click is often ambiguous: compare the masks. The
masks have no names: the model does not know what it outlines. Everything in a large picture takes
long without a GPU."""

_BIAS_OF_METAS = """\
Its authors found no large differences between perceived gender, age and skin tone for people in
pictures, but differences for clothing, and they balanced regions and incomes of countries only in
part; see the paper's section on responsible AI. Test it on pictures of your own before you rely on
it, above all where people are concerned."""


@dataclass(frozen=True)
class Model:
    """The words of one card.

    Args:
        summary: One or two sentences that say what it is for.
        training_data: What it was trained on.
        limits: What it cannot do.
        bias: Whom and what it does worse.
        base_model: Hub repository that the weights are from; None for our own.
        paper: Where those who made the weights tell what they measured.
        peers: Whose code the implementation is compared with.
    """

    summary: str
    training_data: str
    limits: str
    bias: str
    base_model: str | None = None
    paper: str = "https://arxiv.org/abs/2304.02643"
    peers: str = "Meta's and Hugging Face's code"


def _beside_the_weights(heading: str) -> str:
    """A section of the text that lies beside the weights in the package, without relative links."""
    text = (WEIGHTS_FOLDER / "sam_vit_t" / "README.md").read_text()
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].strip()
    return re.sub(r"\[([^]]+)\]\(\.\.[^)]*\)", r"`\1` of the package's repository", section)


def _metas(size: str, base_model: str) -> Model:
    summary = f"Segment Anything with the {size} image encoder of its authors, in a form for\n"
    summary += "Transformers 5 without torchvision."
    return Model(summary, _SA_1B, _LIMITS_OF_METAS, _BIAS_OF_METAS, base_model)


MODELS: dict[str, Model] = {
    "sam_vit_t": Model(
        summary="""\
A small Segment Anything model for trying, testing and fine-tuning, trained from scratch on rendered
scenes, and at the end on photographs that another model had labelled. For the best masks of
photographs take a model with Meta's weights.""",
        training_data=_beside_the_weights("Data"),
        limits=_beside_the_weights("Limits"),
        bias="""\
Clip art and rendered objects show some things often and others never. Its photographs are few, and
their people are mostly young and at desks; it also has the faults of the model that labelled them.
Do not use it where a mask decides about a person.""",
    ),
    "mobile_sam": Model(
        summary="""\
MobileSAM: Segment Anything with a small image encoder, TinyViT, that learnt to give what Meta's
largest encoder gives. In a form for Transformers 5 without torchvision or timm.""",
        training_data="""\
A hundredth of SA-1B's 11 million photographs: the encoder learnt the embeddings of Meta's ViT-H.
The decoder is Meta's, with Meta's weights. No training took place here.""",
        limits=_LIMITS_OF_METAS,
        bias="""\
What holds for the model that it learnt from may hold for it: its authors found no large differences
between perceived gender, age and skin tone for people in pictures, but differences for clothing.
Test it on pictures of your own before you rely on it, above all where people are concerned.""",
        base_model=preset_repository("mobile_sam"),
        paper="https://arxiv.org/abs/2306.14289",
        peers="MobileSAM's own code",
    ),
    "sam_vit_b": _metas("base (ViT-B)", "facebook/sam-vit-base"),
    "sam_vit_l": _metas("large (ViT-L)", "facebook/sam-vit-large"),
    "sam_vit_h": _metas("huge (ViT-H)", "facebook/sam-vit-huge"),
}
