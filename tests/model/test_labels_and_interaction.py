"""True masks of every form, and the simulated interaction, in PyTorch."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.model import loss_segment_anything as losses
from segment_anything_transformers.model.configuration_segment_anything import PADDING
from segment_anything_transformers.model.loss_segment_anything import (
    correction_points,
    first_prompts,
    interactive_loss,
    loss_of_all_masks,
    mask_iou,
    noisy_boxes,
    read_labels,
    segmentation_loss,
)
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model

N, P, H, W = 2, 3, 12, 16
INPUT_HW = (96, 64)


@pytest.fixture
def masks():
    return torch.rand(N, P, H, W, generator=torch.Generator().manual_seed(0)) > 0.6


FORMS = {
    "boolean": lambda masks: masks,
    "0 and 1": lambda masks: masks.int(),
    "0 and 255": lambda masks: masks.to(torch.uint8) * 255,
    "0.0 and 1.0": lambda masks: masks.float(),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_form(masks, form):
    truth, known = read_labels(FORMS[form](masks), P)
    assert_close(truth, masks.float())
    assert known.all()


def test_instance_ids_are_the_prompt_sets_in_order():
    ids = torch.tensor([[[0, 1, 1], [3, 2, -1]], [[2, 2, 9], [0, 0, 9]]])
    truth, known = read_labels(ids, 3, ignore_value=9)
    assert_close(truth, torch.stack([ids == 1, ids == 2, ids == 3], dim=1).float())
    expected = (ids >= 0) & (ids != 9)
    assert torch.equal(known, expected[:, None].expand(N, 3, 2, 3))


@pytest.mark.parametrize("unknown", [{"fill": -1.0}, {"fill": 255.0, "ignore_value": 255}])
def test_unknown_labels_do_not_count(masks, unknown):
    labels = masks.float()
    labels[..., 5:] = unknown.pop("fill")
    truth, known = read_labels(labels, P, **unknown)
    assert_close(truth[..., :5], masks[..., :5].float())
    assert not truth[..., 5:].any()
    assert known[..., :5].all()
    assert not known[..., 5:].any()
    logits, scores = torch.randn(N, P, 4, H, W), torch.rand(N, P, 4)
    cut = segmentation_loss(logits[..., :5], scores, masks[..., :5])
    assert_close(segmentation_loss(logits, scores, labels, **unknown), cut)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((N, P, H, W), 7), "boolean, from 0 to 1, or 0 and 255.*values up to 7"),
        (torch.tensor([0, 1, 255]).repeat(N, P, H, 4), "values up to 255"),
        (torch.full((N, P, H, W), torch.nan), "got values up to nan"),
        (torch.zeros(N, P + 1, H, W), r"\('N', 3, 'h', 'w'\).*got \(2, 4, 12, 16\)"),
        (torch.zeros(H, W), r"got \(12, 16\)"),
        (torch.zeros(N + 1, P, H, W), "those of 2 images, got 3"),
        (torch.full((N, H, W), 255, dtype=torch.uint8), "the 3 prompt sets from 1 on; got 255"),
        (torch.full((N, H, W), 0.5), "got 0.5.* axis of prompt sets"),
        (torch.full((N, H, W), torch.nan), "got nan"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        segmentation_loss(torch.zeros(N, P, 4, H, W), torch.zeros(N, P, 4), labels)


@pytest.mark.parametrize("loss", [segmentation_loss, loss_of_all_masks])
def test_gradients_agree_with_finite_differences(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 2, 3, 3, 2, generator=generator, requires_grad=True)
    scores = torch.rand(1, 2, 3, generator=generator, requires_grad=True)
    labels = (torch.rand(1, 2, 3, 2, generator=generator) > 0.5).float()
    labels[0, 0, 0, 0] = -1.0
    loss(logits, scores, labels).backward()
    step = 1e-2
    for tensor in (logits, scores):
        values, slopes = tensor.data.flatten(), torch.zeros(tensor.numel())
        for index in range(len(values)):
            before = values[index].item()
            for sign in (1, -1):
                values[index] = before + sign * step
                slopes[index] += sign * loss(logits, scores, labels).item() / (2 * step)
            values[index] = before
        assert_close(tensor.grad.flatten(), slopes, rtol=1e-2, atol=2e-4)


def test_corrections_keep_out_of_the_unknown(masks):
    known = torch.zeros_like(masks)
    known[..., 4:9] = True
    for _ in range(20):
        points, _ = correction_points(~masks, masks, known)
        assert ((points[..., 0] >= 4) & (points[..., 0] < 9)).all()


def test_boxes_are_off_by_a_tenth_of_their_side(monkeypatch):
    truth = torch.zeros(1, 2, H, W, dtype=torch.bool)
    truth[0, 0, 3:9, 4:12] = True  # times 8 down and times 4 across
    clean = torch.tensor([[16.0, 24.0, 47.0, 71.0], [0.0, 0.0, 63.0, 95.0]])
    monkeypatch.setattr(losses, "_normal", lambda shape, device: torch.zeros(shape))
    assert_close(noisy_boxes(truth, INPUT_HW)[0], clean)
    monkeypatch.setattr(losses, "_normal", lambda shape, device: torch.ones(shape))
    moved = clean[0] + torch.tensor([3.1, 4.7, 3.1, 4.7])
    assert_close(noisy_boxes(truth, INPUT_HW)[0, 0], moved)
    monkeypatch.setattr(losses, "_normal", lambda shape, device: torch.full(shape, -9.0))
    assert_close(noisy_boxes(truth, INPUT_HW)[0, 0], torch.tensor([0.0, 4.0, 27.0, 51.0]))


def test_the_first_prompt_is_a_click_or_a_box(masks):
    seen = []
    for _ in range(30):
        points, labels, boxes = first_prompts(masks, torch.ones_like(masks), INPUT_HW)
        is_box = labels[..., 0] == PADDING
        assert (labels[~is_box] == 1).all()
        assert (points[is_box] == PADDING).all()
        assert (boxes[~is_box] == PADDING).all()
        assert (boxes[is_box] >= 0).all()
        pixel = ((points[:, :, 0] + 0.5) / torch.tensor([4.0, 8.0]) - 0.5).round().long()
        inside = [masks[n, p, y, x] for n in range(N) for p, (x, y) in enumerate(pixel[n].tolist())]
        assert torch.stack(inside).view(N, P)[~is_box].all()
        seen.append(is_box)
    assert 0.3 < torch.stack(seen).float().mean() < 0.7


class Rounds:
    """A `decode` that remembers its calls; its masks exceed, miss, and then miss less."""

    def __init__(self):
        self.calls = []

    def __call__(self, points, labels, boxes, masks, selection):
        self.calls.append((points, labels, boxes, masks))
        count = 4 if selection == slice(None) else 1
        generator = torch.Generator().manual_seed(len(self.calls))
        logits = torch.randn(N, P, count, H, W, generator=generator)
        return logits, torch.rand(N, P, count, generator=generator)


@pytest.mark.parametrize("clicks", [0, 1, 5, 8])
def test_rounds_of_interaction(masks, clicks):
    decode = Rounds()
    loss = interactive_loss(decode, masks, INPUT_HW, clicks=clicks)
    assert len(decode.calls) == (clicks + 3 if clicks else 1)
    _, labels, first_boxes, first_mask = decode.calls[0]
    assert first_mask is None
    replay, expected = Rounds(), []
    for number, (points, labels, boxes, given) in enumerate(decode.calls):
        logits, scores = replay(points, labels, boxes, given, slice(None if number == 0 else 1))
        if number + 1 < len(decode.calls):
            best = scores.argmax(2)[:, :, None, None, None]
            assert torch.equal(decode.calls[number + 1][3], logits.take_along_dim(best, dim=2))
        term = loss_of_all_masks if number == 0 else segmentation_loss
        expected.append(term(logits, scores, masks))
        assert points.shape == (N, P, number + 1, 2)
        assert torch.equal(boxes, first_boxes)
    assert_close(loss, torch.stack(expected).mean())
    pauses = (labels[0, 0, 1:] == PADDING).tolist()
    assert sum(pauses) == (2 if clicks else 0)
    assert pauses[-1:] == [True][: clicks + 1 if clicks else 0]
    for points, pause in zip(labels[:, :, 1:].unbind(2), pauses, strict=True):
        assert (points == PADDING).all() == pause


def test_the_round_without_a_click_may_be_any(masks):
    seen = set()
    for _ in range(60):
        decode = Rounds()
        interactive_loss(decode, masks, INPUT_HW, clicks=2)
        seen.add((decode.calls[-1][1][0, 0, 1:] == PADDING).int().argmax().item())
    assert seen == {0, 1, 2}


def test_corrections_answer_the_last_mask(masks):
    decode = Rounds()
    interactive_loss(decode, masks, INPUT_HW, clicks=4)
    for (_, _, _, given), (points, labels, _, _) in zip(
        decode.calls[1:], decode.calls[1:], strict=True
    ):
        is_click = labels[..., -1] != PADDING
        pixel = ((points[:, :, -1] + 0.5) / torch.tensor([4.0, 8.0]) - 0.5).round().long()
        for n, p in is_click.nonzero().tolist():
            x, y = pixel[n, p].tolist()
            assert masks[n, p, y, x] == (labels[n, p, -1] == 1)
            assert (given[n, p, 0, y, x] > 0) != masks[n, p, y, x]


@pytest.mark.slow
def test_one_image_is_learnt_by_interaction():
    torch.manual_seed(0)
    model = random_model(small_config()).train()
    pixels = random_images(model.config, 1)
    labels = torch.zeros(1, 2, 96, 64)
    labels[0, 0, 16:56, 8:36] = 1.0
    labels[0, 1, 52:92, 40:60] = 1.0
    pixels[:, 0] += 3 * labels[:, 0]
    pixels[:, 1] += 3 * labels[:, 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=220)
    for _ in range(220):
        decode = partial(model.decode, model.get_image_embeddings(pixels))
        loss = interactive_loss(decode, labels, (96, 64), clicks=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    boxes = torch.tensor([[[8.0, 16, 35, 55], [40, 52, 59, 91]]])
    with torch.no_grad():
        logits = model.eval()(pixels, input_boxes=boxes, multimask_output=False).pred_masks
    truth, known = losses.resize_labels(labels, logits)
    iou = mask_iou(logits > 0, truth > 0.5, known)
    assert iou.min() >= 0.98
