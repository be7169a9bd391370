"""A graph that `torch.jit.trace` makes holds for other numbers of images, prompts and points."""

import pytest
import torch

from tests.tiny import MIXTURES, random_images, random_model, random_prompts, small_config

TRACED_WITH = [(1, 1, 1), (1, 3, 2), (2, 3, 4)]
"""Images, prompt sets, and points, boxes or masks of each."""
ASKED_WITH = [(1, 1, 1), (2, 1, 3), (1, 5, 1), (3, 20, 7)]

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


class Answer(torch.nn.Module):
    """The model as tracing takes it: tensors in their order, tensors out."""

    def __init__(self, model, names):
        """Prompts come in the order of their names."""
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values, *prompts):
        """Logits and qualities."""
        named = dict(zip(self.names, prompts, strict=True))
        output = self.model(pixel_values, **named)
        return output.pred_masks, output.iou_scores


def inputs_of(config, names, images, sets, items):
    prompts = random_prompts(config, images, seed=images + 10 * sets + 100 * items)

    def repeated(prompt):
        return prompt.repeat(1, sets, items, *[1] * (prompt.ndim - 3))[:, :sets, :items]

    jitter = torch.arange(sets).view(1, -1, 1)
    parts = []
    for name in names:
        prompt = repeated(prompts[name])
        if name != "input_labels":
            prompt = prompt + jitter.view(1, -1, *[1] * (prompt.ndim - 2))
        parts.append(prompt)
    return (random_images(config, images), *parts)


@pytest.mark.slow
@pytest.mark.parametrize("names", MIXTURES, ids="+".join)
@pytest.mark.parametrize("traced_with", TRACED_WITH)
def test_a_traced_model_takes_any_numbers(names, traced_with):
    config = small_config()
    answer = Answer(random_model(config), names).eval()
    with torch.no_grad():
        traced = torch.jit.trace(answer, inputs_of(config, names, *traced_with), check_trace=False)
        for counts in ASKED_WITH:
            inputs = inputs_of(config, names, *counts)
            torch.testing.assert_close(traced(*inputs), answer(*inputs), rtol=1e-4, atol=1e-5)
