"""What the PyTorch model returns, and what a call may ask of its parts beyond masks."""

from dataclasses import dataclass, field

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SegmentAnythingOutput(ModelOutput):
    """Masks that the model predicts.

    Attributes:
        loss: Scalar, with `labels` only.
        iou_scores: (N, P, K) predicted quality of each mask, an estimate of its IoU.
        pred_masks: (N, P, K, H', W') mask logits at low resolution, in the frame of the padded
            input.
        image_embeddings: (N, D, H'', W'') the embeddings that the masks were decoded from.
        vision_hidden_states: With `output_hidden_states`: the tokens (N, H'', W'', C) that enter
            the image encoder's first block, and those that leave each.
        vision_attentions: With `output_attentions`: the attention of each of these blocks,
            (N windows heads, L, L), with L positions in a window or in the whole grid.
        mask_decoder_attentions: With `output_attentions`: what the image's positions see in the
            prompts, for each block of the decoder, (N P, 1, H'' W'', D).
    """

    loss: Tensor | None = None
    iou_scores: Tensor | None = None
    pred_masks: Tensor | None = None
    image_embeddings: Tensor | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SegmentAnythingVisionOutput(ModelOutput):
    """What the image encoder makes of images.

    Attributes:
        last_hidden_state: (N, D, H'', W'') the image embeddings, after the neck.
        hidden_states: As `SegmentAnythingOutput.vision_hidden_states`.
        attentions: As `SegmentAnythingOutput.vision_attentions`.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Record:
    """What a call keeps of its way through the model, because it was asked to.

    Attributes:
        keeps_attentions: Whether attentions are kept.
        keeps_hidden_states: Whether hidden states are kept.
        hidden_states: The image encoder's, see `SegmentAnythingOutput`.
        attentions: The image encoder's.
        decoder_attentions: The mask decoder's.
    """

    keeps_attentions: bool = False
    keeps_hidden_states: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    decoder_attentions: list[Tensor] = field(default_factory=list)

    @classmethod
    def asked(cls, attentions: bool, hidden_states: bool) -> "Record | None":
        """A record if anything is to be kept."""
        return cls(attentions, hidden_states) if attentions or hidden_states else None

    def of_encoder(self) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """The image encoder's hidden states and attentions; None is what was not asked for."""
        hidden_states = tuple(self.hidden_states) if self.keeps_hidden_states else None
        return hidden_states, tuple(self.attentions) if self.keeps_attentions else None


@dataclass
class DecoderExtras:
    """What a call may ask of the mask decoder beyond masks for prompts.

    Attributes:
        similarity: Adds to the scores of the tokens' attention to the image; its shape becomes
            (N P, heads, T, H'' W'') by broadcasting (arXiv:2305.03048).
        target: Adds to the tokens (N, P, T, D) before each block (arXiv:2305.03048).
        record: Keeps what the image's positions see in the prompts.
    """

    similarity: Tensor | None = None
    target: Tensor | None = None
    record: Record | None = None
