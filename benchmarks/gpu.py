"""Encoder, decoder and everything on a GPU, ours beside transformers'.

    python -m benchmarks.gpu

Where PyTorch finds no GPU it says so, and leaves docs/benchmarks.md as it is. Weights are random
and seeded; seconds are the best of several rounds in which the contestants take turns, memory is
the peak that PyTorch held on the GPU above the weights.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.speeds import calls, contestants, measure, page
from segment_anything_transformers import SAMAutomaticMaskGenerator

IMAGES = 8
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def models(device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Ours and transformers' with the same weights."""
    ours: Any = contestants.ours(dtype=dtype)
    return ours.to(device), contestants.transformers(dtype=dtype).to(device)


def encoders(device: str, dtype: torch.dtype) -> dict[str, measure.Call]:
    """An image of 1024 x 1024."""
    pixels = calls.pixels().to(device, dtype)
    ours, theirs = models(device, dtype)
    return {
        "ours": lambda: ours.get_image_embeddings(pixels),
        "transformers": lambda: theirs.get_image_embeddings(pixels),
    }


def decoders(device: str, dtype: torch.dtype) -> dict[str, measure.Call]:
    """64 clicks into an image that is encoded already."""
    embeddings = calls.embeddings().to(device, dtype)
    clicks = torch.from_numpy(contestants.grid(64, 1024))[None].to(device)
    labels = torch.ones(clicks.shape[:3], dtype=torch.long, device=device)

    def call_of(model: Any) -> measure.Call:
        inputs = {"image_embeddings": embeddings, "input_points": clicks}
        return lambda: model(**inputs, input_labels=labels).pred_masks

    ours, theirs = models(device, dtype)
    return {"ours": call_of(ours), "transformers": call_of(theirs)}


def everything(device: str, dtype: torch.dtype) -> dict[str, measure.Call]:
    """Several photographs of 1800 x 1200, 1024 clicks in each."""
    image, options = contestants.photograph(1800, 1200), calls.options_for("sam_vit_b")
    model: Any = contestants.ours(dtype=dtype)
    model = model.to(device)
    generator = SAMAutomaticMaskGenerator(model, output_mode="uncompressed_rle", **options)
    images = [image] * IMAGES
    return {
        "generate_batch": lambda: [*generator.generate_batch(images)],
        "generate_batch, four at once": lambda: [
            *generator.generate_batch(images, images_per_batch=4)
        ],
        "generate, one by one": lambda: [generator.generate(one) for one in images],
    }


CASES: Mapping[str, Callable[[str, torch.dtype], dict[str, measure.Call]]] = {
    "Encoder of sam_vit_b, one image of 1024 x 1024": encoders,
    "Decoder of sam_vit_b, 64 clicks, three masks each": decoders,
    f"Everything in {IMAGES} photographs of 1800 x 1200, 1024 clicks each, sam_vit_b": everything,
}


def peak_memory(call: measure.Call) -> int:
    """Bytes that PyTorch held on the GPU at most, above what it held before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def until_done(call: measure.Call) -> measure.Call:
    """The call, which now waits for the GPU."""

    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    return waiting


def compared(contestants: Mapping[str, measure.Call], rounds: int, is_gpu: bool) -> str:
    """A table of seconds and memory, the first contestant beside the others."""

    calls = {name: until_done(call) if is_gpu else call for name, call in contestants.items()}
    measure.best_times(calls, 1)  # the first call of each chooses its kernels
    seconds = measure.best_times(calls, rounds)
    first = next(iter(calls))
    rows = []
    for name, call in calls.items():
        ratio = "" if name == first else f"{seconds[first] / seconds[name]:.2f}"
        memory = f"{peak_memory(call) / 1e9:.2f} GB" if is_gpu else ""
        rows.append([name, f"{seconds[name]:.3g}", ratio, memory])
    return page.table(["", "seconds", "ours / theirs", "peak memory above the weights"], rows)


def gpu() -> dict[str, str]:
    """What the figures were measured on."""
    rates = {
        f"{name} matrix products": measure.matrix_product_rate(dtype, "cuda", size=8192)
        for name, dtype in PRECISIONS.items()
    }
    about = {"GPU": torch.cuda.get_device_name(), "torch": torch.__version__}
    return about | {name: f"{rate / 1e12:.1f} TFLOP/s" for name, rate in rates.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu tries whether it runs, on the screen")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    is_gpu = options.device.startswith("cuda")
    if is_gpu and not torch.cuda.is_available():
        print("PyTorch finds no GPU here, so nothing was measured.")
        return
    parts = [page.machine_lines(gpu())] if is_gpu else []
    for title, calls_of in CASES.items():
        for name, dtype in PRECISIONS.items():
            table = compared(calls_of(options.device, dtype), options.rounds, is_gpu)
            parts += [f"### {title}, {name}", table]
            print("\n\n".join(parts[-2:]))
    if is_gpu:
        page.write_part("gpu", "\n\n".join(parts))


if __name__ == "__main__":
    main()
