"""Fine-tuning in PyTorch: your images and masks, with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..data.annotations import load_samples
from ..data.samples import Faults, Samples
from ..model.image_processing_segment_anything import SegmentAnythingImageProcessor
from ..model.modeling_segment_anything import SegmentAnythingModel
from ..model.processing_segment_anything import SegmentAnythingProcessor
from .batches import Collator, ObjectsDataset, keep_embeddings
from .interactive_model import Mode, prepare_model, trained_model, without_adapters

LEARNING_RATES: dict[str, float] = {"all": 5e-5, "decoder": 2e-4, "lora": 2e-4}


class SegmentAnythingTrainer(Trainer):
    """Transformers' Trainer over samples: batches, metrics and arguments are in place.

    Args:
        model: What `prepare_model` returned.
        args: Arguments, of which `training_arguments` makes suitable ones.
        processor: Scales images and masks.
        train_dataset: Items to learn from.
        eval_dataset: Items to measure: `eval_iou_box` and `eval_iou_click`, means over objects at
            the size of the low-resolution masks.
        kwargs: What else `Trainer` takes.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        processor: SegmentAnythingProcessor,
        train_dataset: ObjectsDataset,
        eval_dataset: ObjectsDataset | None = None,
        **kwargs: Any,
    ) -> None:
        """Hands everything to `Trainer`."""
        self.measuring_collator = Collator(processor, with_prompts=True)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(processor),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor.image_processor,
            compute_metrics=mean_ious,
            **kwargs,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches with a click and a box for every object."""
        learning_collator, self.data_collator = self.data_collator, self.measuring_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = learning_collator

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Learns from a batch, as `Trainer` does.

        Raises:
            ValueError: The loss is NaN or infinite. The weights are as they were before.
        """
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss of step {self.state.global_step + 1} is {loss.item():g}: training came "
                f"apart. Take a learning rate lower than {self.args.learning_rate:g}."
            )
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Loss and IoUs of a batch; the true masks are not gathered, which would need memory."""
        loss, ious, _ = super().prediction_step(*args, **kwargs)
        return loss, ious, ious


def mean_ious(prediction: EvalPrediction) -> dict[str, float]:
    """Mean IoU with a box and with a click over all objects whose truth is known."""
    ious = np.asarray(prediction.predictions).reshape(-1, 2)
    ious = ious[(ious >= 0).all(axis=1)]
    box, click = ious.mean(axis=0) if len(ious) else (float("nan"),) * 2
    return {"iou_box": float(box), "iou_click": float(click)}


def training_arguments(output: str | Path, max_steps: int, **overrides: Any) -> TrainingArguments:
    """Arguments of the Trainer that fit the model and its loss.

    Args:
        output: Folder of the checkpoints.
        max_steps: Number of steps.
        overrides: Arguments of `TrainingArguments` to set or to set differently.
    """
    often = max(1, max_steps // 10)
    arguments = {
        "output_dir": str(output),
        "max_steps": max_steps,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max_steps // 20,
        "logging_steps": max(1, max_steps // 50),
        "save_steps": often,
        "save_total_limit": 2,
        "eval_steps": often,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "label_names": ["labels"],
        "remove_unused_columns": False,
        # Not every batch has points, boxes and corrections.
        "ddp_find_unused_parameters": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": [],
    }
    return TrainingArguments(**{**arguments, **overrides})


@dataclass
class Finetuned:
    """What fine-tuning leaves."""

    model: SegmentAnythingModel
    """The model that was saved, in evaluation mode."""
    log: list[dict[str, float]] = field(default_factory=list)
    """Losses and metrics by step, as the Trainer logs them."""
    faults: list[str] = field(default_factory=list)
    """Messages on the samples that were skipped."""


def finetune(
    model: SegmentAnythingModel | str,
    data: Samples | str | Path,
    output: str | Path,
    eval_data: Samples | str | Path | None = None,
    mode: Mode = "decoder",
    max_steps: int = 500,
    learning_rate: float | None = None,
    objects_per_image: int = 8,
    clicks: int = 8,
    faults: Faults = "refuse",
    resume: bool = False,
    lora_rank: int = 8,
    processor: SegmentAnythingProcessor | None = None,
    callbacks: list[TrainerCallback] | None = None,
    progress: Callable[[Any], Any] = iter,
    **arguments: Any,
) -> Finetuned:
    """Fine-tunes a model on images and masks, and saves it with its processor.

    The folder `output` is then a model like any other: for `from_pretrained` of both frameworks,
    for `pipeline("mask-generation")`, for the command. Beside it lie `checkpoints` and, with mode
    "decoder", the `embeddings` of the images, so that the encoder runs once for each.

    Args:
        model: The model, which changes as it learns, or what `from_pretrained` takes.
        data: Samples, or what `load_samples` takes.
        output: Folder.
        eval_data: Held-out samples, measured before, on the way and at the end.
        mode: What learns, see `prepare_model`.
        max_steps: Number of steps.
        learning_rate: By default that of `LEARNING_RATES`.
        objects_per_image: The most objects of an image in one step; others come in other steps.
        clicks: Corrections that are simulated; fewer take less time.
        faults: Whether faulty samples are skipped, or refused.
        resume: Whether to go on after the last checkpoint, if there is one. The result is that of
            a run that was not cut off.
        lora_rank: Rank of the adapters of mode "lora".
        processor: By default that of the model's configuration.
        callbacks: Of the Trainer.
        progress: Passes indices on while images are read and encoded, such as `tqdm`.
        arguments: Of `TrainingArguments`: `per_device_train_batch_size`, `bf16`, `seed`,
            `gradient_accumulation_steps`, `activation_checkpointing` and so on.

    Raises:
        AnnotationError: Samples are faulty and not to be skipped, or all are.
        ModuleNotFoundError: A library is missing; the message says how to install it.
        ValueError: `output` has checkpoints of an earlier run, an argument makes no sense, or the
            loss becomes NaN.
    """
    output = Path(output)
    last_checkpoint = _checkpoint_to_resume(output, resume)
    loaded: Any = SegmentAnythingModel.from_pretrained(model) if isinstance(model, str) else model
    processor = processor or SegmentAnythingProcessor(
        SegmentAnythingImageProcessor.from_config(loaded.config)
    )
    set_seed(arguments.setdefault("seed", 42))  # adapters start from random values
    learner = prepare_model(loaded, mode, lora_rank)
    without_adapters(learner).clicks = clicks
    arguments.setdefault("learning_rate", learning_rate or LEARNING_RATES[mode])
    arguments.setdefault("eval_strategy", "no" if eval_data is None else "steps")
    # An `evaluate` of the Trainer before its `train` would keep processes from sharing gradients.
    arguments.setdefault("eval_on_start", eval_data is not None and last_checkpoint is None)
    args = training_arguments(output / "checkpoints", max_steps, **arguments)
    datasets = [
        ObjectsDataset(_samples(source), limit, faults, progress)
        for source, limit in ((data, objects_per_image), (eval_data, None))
        if source is not None
    ]
    if mode == "decoder":
        _keep_embeddings(datasets, loaded, processor, args, output / "embeddings", progress)
    trainer = SegmentAnythingTrainer(learner, args, processor, *datasets, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)  # without bars nothing is printed: the log is returned
    trainer.train(resume_from_checkpoint=last_checkpoint)
    tuned = trained_model(learner)
    if trainer.is_world_process_zero():
        tuned.save_pretrained(output)
        processor.save_pretrained(output)
    messages = [message for dataset in datasets for message in dataset.faults]
    return Finetuned(tuned, trainer.state.log_history, messages)


def _keep_embeddings(
    datasets: Sequence[ObjectsDataset],
    model: Any,
    processor: SegmentAnythingProcessor,
    args: TrainingArguments,
    folder: Path,
    progress: Callable[[Any], Any],
) -> None:
    """Encodes the images of all data sets, in one of several processes."""
    model.to(args.device)
    for dataset in datasets:
        with args.main_process_first(desc="encoding images"):
            keep_embeddings(dataset, model, processor, folder, progress)


def _checkpoint_to_resume(output: Path, resume: bool) -> str | None:
    """The last checkpoint of a run that is to go on, None if a run begins."""
    last = find_checkpoint(output / "checkpoints")
    if last is not None and not resume:
        raise ValueError(
            f"{output} has checkpoints of an earlier run. Resume it, or choose another output."
        )
    return last


def _samples(source: Samples | str | Path) -> Samples:
    return source if isinstance(source, Samples) else load_samples(source)


def find_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end, or None."""
    # The Trainer's state is what it writes last.
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)
