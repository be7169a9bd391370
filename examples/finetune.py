"""Fine-tuning with transformers' Trainer, every part in sight.

    python -m examples.finetune cells --output my-sam
    accelerate launch -m examples.finetune cells --output my-sam --bf16

The command `segment-anything finetune` and the function `finetune` do the same with more options.
They refuse faulty samples unless they are asked to skip them; this skips those to learn from, and
names them. Take it where you need a Trainer of your own: callbacks, another optimizer, logging, the
Hub.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from transformers import set_seed

from segment_anything_transformers import (
    SegmentAnythingModel,
    SegmentAnythingProcessor,
    load_samples,
)
from segment_anything_transformers.training.batches import ObjectsDataset, keep_embeddings
from segment_anything_transformers.training.finetuning import (
    LEARNING_RATES,
    SegmentAnythingTrainer,
    find_checkpoint,
    training_arguments,
)
from segment_anything_transformers.training.interactive_model import prepare_model, trained_model


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says, and saves a model that `from_pretrained` reads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="folder, COCO annotations or Hub data set")
    parser.add_argument("--eval-data", help="held-out data")
    parser.add_argument("--output", required=True, help="folder of the new model")
    parser.add_argument("--model", default="sam_vit_t", help="the model to start from")
    parser.add_argument("--mode", default="decoder", choices=("decoder", "lora", "all"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--resume", action="store_true", help="go on after the last checkpoint")
    options = parser.parse_args(arguments)

    model: Any = SegmentAnythingModel.from_pretrained(options.model)
    processor = SegmentAnythingProcessor.from_pretrained(options.model)
    set_seed(options.seed)  # adapters start from random values
    learner = prepare_model(model, options.mode)
    train_data = ObjectsDataset(load_samples(options.data), objects_per_image=8, faults="skip")
    eval_data = ObjectsDataset(load_samples(options.eval_data)) if options.eval_data else None
    for fault in train_data.faults:
        print(f"skipped {fault}", file=sys.stderr)
    checkpoints = Path(options.output) / "checkpoints"
    args = training_arguments(
        checkpoints,
        options.steps,
        learning_rate=LEARNING_RATES[options.mode],
        seed=options.seed,
        bf16=options.bf16,
        eval_strategy="steps" if eval_data else "no",
    )
    if options.mode == "decoder":  # the image encoder does not change: it runs once an image
        model.to(args.device)
        for dataset in filter(None, (train_data, eval_data)):
            with args.main_process_first():
                keep_embeddings(dataset, model, processor, f"{options.output}/embeddings")
    trainer = SegmentAnythingTrainer(learner, args, processor, train_data, eval_data)
    trainer.train(resume_from_checkpoint=find_checkpoint(checkpoints) if options.resume else None)
    if trainer.is_world_process_zero():
        trained_model(learner).save_pretrained(options.output)
        processor.save_pretrained(options.output)


if __name__ == "__main__":
    main()
