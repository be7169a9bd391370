"""The models of the command `segment-anything`: which there are, and how one is loaded."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .files import UsageError, one_line

# A name like this may be found on the Hub; a file that is not there is only missing.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.pth)(?<!\.safetensors)")


def load_model(
    name: str, framework: str = "auto", device: str = "auto", dtype: str = "float32"
) -> Any:
    """The model of that name, on the device and in the precision that were asked for.

    Args:
        name: A preset, a folder, a Hub repository or a `.pth` file of Meta's.
        framework: "torch", "tf", or "auto" for the first of them that is installed.
        device: What torch calls it, or "auto" for the fastest there is.
        dtype: "float32", "bfloat16" or "float16"; "int8" for the encoder's linear layers. In
            PyTorch the decoder keeps float32.

    Raises:
        UsageError: There is no such model or device, or the framework is not installed.
    """
    from ..model.configuration_segment_anything import list_presets

    if not (name in list_presets() or Path(name).exists() or _REPOSITORY.fullmatch(name)):
        raise UsageError(
            f"unknown model {name!r}: expected {', '.join(list_presets())}, a folder or .pth file "
            "that exists, or a Hub repository such as facebook/sam-vit-base"
        )
    if framework == "auto":
        only_keras = find_spec("torch") is None and find_spec("keras") is not None
        framework = "tf" if only_keras else "torch"
    load = {"torch": _load_in_torch, "tf": _load_in_keras}[framework]
    try:
        return load(name, device, dtype)
    except ModuleNotFoundError as error:
        raise UsageError(one_line(error)) from error
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"cannot load the model {name}: {one_line(error)}") from error


def _load_in_torch(name: str, device: str, dtype: str) -> Any:
    from transformers.utils import logging

    from .. import SegmentAnythingModel
    from ..prediction.backends import with_encoder_in

    logging.disable_progress_bar()
    place = _usable_device(device)
    model: Any = SegmentAnythingModel.from_pretrained(name, dtype="float32")
    return with_encoder_in(model.to(place).eval(), dtype)


def compile_encoder(model: Any) -> None:
    """Has PyTorch compile the model's encoder when it is first used.

    Raises:
        UsageError: It is a Keras model.
    """
    from ..prediction.backends import backend_for

    if backend_for(model).name != "torch":
        raise UsageError("--compile is PyTorch's; a Keras model runs as a graph anyway")
    model.image_encoder.compile()


def _load_in_keras(name: str, device: str, dtype: str) -> Any:
    from .. import TFSegmentAnythingModel

    if device != "auto":
        raise UsageError(
            "--device is PyTorch's; Keras takes the GPU if there is one, and with "
            "CUDA_VISIBLE_DEVICES=-1 it sees none"
        )
    if dtype == "int8":
        raise UsageError("--dtype int8 is PyTorch's; Keras takes float32, bfloat16 and float16")
    return TFSegmentAnythingModel.from_pretrained(
        name, dtype="float32" if dtype == "float32" else f"mixed_{dtype}"
    )


def _usable_device(name: str) -> str:
    """The device, or the fastest one for "auto"; UsageError if it is not here."""
    import torch

    if name == "auto":
        is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return next((device for device in is_there if is_there[device]), "cpu")
    try:
        torch.ones(1, device=name).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the device {name!r} cannot be used here: {reason}") from error
    return name


def print_models(_: object = None) -> int:
    """Prints a table of the presets: their size, and where their weights come from."""
    from ..model.configuration_segment_anything import (
        SegmentAnythingModelConfig,
        list_presets,
        preset_repository,
    )

    table = Table("model")
    for heading in ("parameters", "file", "input"):
        table.add_column(heading, justify="right")
    table.add_column("weights")
    for name in list_presets():
        config = SegmentAnythingModelConfig.from_preset(name)
        height, width = config.input_size
        count, size = _parameters_and_bytes(name, config)
        origin = preset_repository(name) or "in the package"
        table.add_row(name, count, size, f"{height} x {width}", origin)
    Console().print(table)
    return 0


def _parameters_and_bytes(name: str, config: Any) -> tuple[str, str]:
    """Number of parameters and size of the file, as a person reads them; "-" without PyTorch."""
    from ..model.checkpoints import WEIGHTS_FOLDER

    try:
        count = _parameter_count(config)
    except ModuleNotFoundError:
        return "-", "-"
    shipped = [path.stat().st_size for path in WEIGHTS_FOLDER.glob(f"{name}/*.safetensors")]
    n_bytes = sum(shipped) or 4 * count  # the Hub's files have four bytes a parameter
    return f"{count / 1e6:.1f} M", f"{n_bytes / 1e6:.0f} MB"


def _parameter_count(config: Any) -> int:
    """How many numbers the model learns; none of them is made."""
    import torch

    from .. import SegmentAnythingModel

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SegmentAnythingModel(config).parameters())
