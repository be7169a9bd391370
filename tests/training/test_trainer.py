"""Transformers' Trainer, with the model as it is."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tests.fake_backend import small_config
from tests.tiny import random_images, random_model


class Squares(Dataset):
    """One square an image, a box around it, and its true mask."""

    def __init__(self, config, count):
        self.images = random_images(config, count)
        self.config = config

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        left, top = 4 + 3 * index, 6 + 5 * index
        labels = torch.zeros(1, *self.config.input_size)
        labels[:, top : top + 30, left : left + 24] = 1.0
        box = torch.tensor([[left, top, left + 23.0, top + 29.0]])
        return {"pixel_values": self.images[index], "input_boxes": box, "labels": labels}


@pytest.fixture
def trainer(tmp_path):
    model = random_model(small_config())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Squares(model.config, 4)
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)


def test_trainer_lowers_the_loss_and_evaluates(trainer):
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_accumulated_steps_count_once(trainer):
    """The logged loss is a mean, not a sum over the accumulated batches."""
    trainer.train()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    model = random_model(small_config()).train()
    batch = [Squares(model.config, 4)[index] for index in range(4)]
    inputs = {name: torch.stack([sample[name] for sample in batch]) for name in batch[0]}
    assert first == pytest.approx(model(**inputs).loss.item(), rel=0.05)


def test_trained_weights_are_saved_and_loaded(trainer, tmp_path):
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    loaded = type(trainer.model).from_pretrained(tmp_path / "tuned")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
