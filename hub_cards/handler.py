"""Answers requests to a Hugging Face Inference Endpoint: an image and prompts in, masks out.

A copy of this file lies in the model's repository, beside `requirements.txt`. A request is

    {"inputs": "<the image file in base64>",
     "parameters": {"prompts": [{"points": [[320, 240]]}, {"boxes": [[9, 9, 80, 60]]}]}}

Each element of `prompts` describes one object, in pixels of the image. Without `prompts`, or with
"everything", all objects are looked for. The answer lists masks; a request that cannot be answered
gets {"error": {"status", "type", "message"}} and leaves no trace.
"""

from __future__ import annotations

import base64
import binascii
import json
import reprlib
import threading
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)
from segment_anything_transformers.data.pictures import png
from segment_anything_transformers.model.mask_ops import rle_to_mask
from segment_anything_transformers.model.pictures import UNREADABLE, PictureError
from segment_anything_transformers.model.prompt_rules import check_boxes, check_points
from segment_anything_transformers.prediction.mask_generator import usual_options
from segment_anything_transformers.prediction.object_masks import (
    mask_records,
    segment_closely,
    segment_object,
)
from segment_anything_transformers.prediction.visualization import to_rgb

MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 4096 * 4096
MAX_ASPECT_RATIO = 64
MAX_OBJECTS = 64
MAX_PROMPTS = 256
"""Points and boxes of all objects together."""
MAX_MASKS = 256
"""Masks in the answer to "everything"; the best stay."""

EVERYTHING_OPTIONS: dict[str, tuple[type, int, int]] = {
    "points_per_side": (int, 1, 32),
    "pred_iou_thresh": (float, 0, 1),
    "stability_score_thresh": (float, 0, 1),
    "box_nms_thresh": (float, 0, 1),
}
"""What may be set for "everything": integer or not, from, to."""

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
_MASK_FORMATS = ("coco_rle", "png")
_SWITCHES = ("multimask_output", "zoom")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class RequestError(Exception):
    """A request that is refused, with the HTTP status that says whose fault it is."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        """Takes the status, a name for programs and a reason for people."""
        super().__init__(message)
        self.answer = {"error": {"status": status, "type": kind, "message": message}}


class EndpointHandler:
    """The model behind an endpoint. Calls from several threads wait for each other.

    Args:
        path: Folder of the model's repository, or any name that `from_pretrained` takes.
    """

    def __init__(self, path: str = "") -> None:
        """Loads the model, onto a GPU if there is one."""
        model: Any = SegmentAnythingModel.from_pretrained(path or "sam_vit_t")
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        # One request computes at a time: it has all cores, and memory stays that of one request.
        self._turn = threading.Lock()

    def __call__(self, data: Any) -> dict[str, Any]:
        """The masks that a request asks for, or the reason why there are none.

        Args:
            data: "inputs": the image, as the bytes of a JPEG, PNG or WebP file, these in base64,
                or a PIL image; nothing is ever fetched from a URL. "parameters", all optional:
                "prompts": a list with, for each object, a dictionary of "points" (M1, 2),
                "labels" (M1,) with 1 foreground and 0 background, "boxes" (M2, 4) left, top,
                right, bottom; or "everything".
                "multimask_output": whether each object gets all masks that the model can mean.
                "zoom": whether the part around each object is looked at more closely, which finds
                small objects and finer outlines, and takes an encoding for each; of this look and
                that at all of the image the one that the model rates higher is kept.
                "mask_format": "coco_rle" or "png", the latter in base64, white on black.
                For "everything": the names in `EVERYTHING_OPTIONS`.
                The whole may also be JSON text.

        Returns:
            "width" and "height" of the image, turned upright; "masks": for each "segmentation",
            "area", "bbox", "predicted_iou" (the score) and "prompt", the index of its object, or
            "point_coords" and "stability_score" for "everything".
            For a request that is refused: "error" with "status", "type" and "message".
        """
        try:
            inputs, parameters = _read_request(data)
            prompts = _read_prompts(parameters)
            with self._turn:
                return self._answer(inputs, prompts, parameters)
        except RequestError as error:
            return error.answer
        except FloatingPointError as error:
            return RequestError(500, "model_failed", str(error)).answer

    def _answer(
        self, inputs: Any, prompts: list[dict[str, Any]] | None, parameters: dict[str, Any]
    ) -> dict[str, Any]:
        image = _read_image(inputs)
        if prompts is None:
            records = self._everything(image, parameters)
        else:
            asked = [parameters.get(name, False) for name in _SWITCHES]
            records = self._objects(image, prompts, *asked)
        if parameters.get("mask_format") == "png":
            for record in records:
                mask = rle_to_mask(record["segmentation"])
                record["segmentation"] = base64.b64encode(png(mask, one_bit=True)).decode()
        return {"width": image.width, "height": image.height, "masks": records}

    def _objects(
        self, image: Image.Image, prompts: list[dict[str, Any]], keep_all: bool, zoom: bool
    ) -> list[dict[str, Any]]:
        for index, prompt in enumerate(prompts):
            _check_inside(image.size, f"prompts[{index}]", prompt)
        predictor = SAMPredictor(self.model)
        predictor.set_image(image)
        records = []
        for index, prompt in enumerate(prompts):
            if zoom:
                masks, scores, _ = segment_closely(predictor, partial(dict, prompt), keep_all)
            else:
                masks, scores = segment_object(predictor, prompt, keep_all)
            records += [{"prompt": index, **record} for record in mask_records(masks, scores)]
        return records

    def _everything(self, image: Image.Image, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        options = {**usual_options(self.model.config), "points_per_side": 16}
        options |= {name: parameters[name] for name in EVERYTHING_OPTIONS if name in parameters}
        generator = SAMAutomaticMaskGenerator(self.model, **options, output_mode="coco_rle")
        return generator.generate(image)[:MAX_MASKS]


def _read_request(data: Any) -> tuple[Any, dict[str, Any]]:
    """The image, as it was sent, and the parameters, of which every name is known."""
    if isinstance(data, (str, bytes, bytearray)):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "invalid_json", f"The body is not JSON: {error}.") from error
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError(
            400, "invalid_request", 'Expected an object with "inputs", the image, in it.'
        )
    parameters = data.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _invalid("parameters must be an object", parameters)
    known = ("prompts", *_SWITCHES, "mask_format", *EVERYTHING_OPTIONS)
    for name in parameters:
        if name not in known:
            raise _invalid(f"Unknown parameter {name!r}. The parameters are {', '.join(known)}")
    _check_options(parameters)
    return data["inputs"], parameters


def _check_options(parameters: dict[str, Any]) -> None:
    for name in _SWITCHES:
        switch = parameters.get(name, False)
        if not isinstance(switch, bool):
            raise _invalid(f"{name} must be true or false", switch)
    mask_format = parameters.get("mask_format", "coco_rle")
    if mask_format not in _MASK_FORMATS:
        raise _invalid(f"mask_format must be one of {', '.join(_MASK_FORMATS)}", mask_format)
    for name, (kind, low, high) in EVERYTHING_OPTIONS.items():
        value = parameters.get(name, low)
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise _invalid(f"{name} must be a number from {low} to {high}", value)


def _read_prompts(parameters: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Arrays for each object; None for everything."""
    prompts = parameters.get("prompts", "everything")
    if prompts == "everything":
        return None
    if not isinstance(prompts, list) or not prompts:
        raise _invalid('prompts must be "everything" or a list with a prompt in it', prompts)
    if len(prompts) > MAX_OBJECTS:
        raise _too_many(f"{len(prompts)} objects, at most {MAX_OBJECTS} are answered at once")
    count = sum(
        len(prompt[name])
        for prompt in prompts
        if isinstance(prompt, dict)
        for name in ("points", "boxes")
        if isinstance(prompt.get(name), list)
    )
    if count > MAX_PROMPTS:  # before anything is made of them
        raise _too_many(f"{count} points and boxes, at most {MAX_PROMPTS} are answered at once")
    return [_read_prompt(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)]


def _read_prompt(where: str, prompt: Any) -> dict[str, np.ndarray]:
    """One object's points, labels and boxes as arrays of the right shape."""
    columns = {"points": 2, "labels": 0, "boxes": 4}
    if not isinstance(prompt, dict) or not prompt or not set(prompt) <= set(columns):
        raise _invalid(f"{where} must be an object of points, labels and boxes", prompt)
    arrays = {name: _rows(f"{where}.{name}", prompt[name], columns[name]) for name in prompt}
    if "labels" in arrays:
        if len(arrays["labels"]) != len(arrays.get("points", ())):
            raise _invalid(f"{where}.labels must be as many as points", prompt["labels"])
        if not np.isin(arrays["labels"], (0, 1)).all():
            raise _invalid(f"{where}.labels must be 1 or 0", prompt["labels"])
        arrays["labels"] = arrays["labels"].astype(np.int64)
    return arrays


def _rows(where: str, rows: Any, n_columns: int) -> np.ndarray:
    shape = f"a list of {n_columns} numbers each" if n_columns else "a list of numbers"
    try:
        array = np.array(rows)
    except (ValueError, OverflowError) as error:
        raise _invalid(f"{where} must be {shape}", rows) from error
    is_shaped = array.ndim == (2 if n_columns else 1) and array.shape[1:] in ((), (n_columns,))
    if not is_shaped or not len(array) or array.dtype.kind not in "if":
        raise _invalid(f"{where} must be {shape}", rows)
    if not np.isfinite(array).all():
        raise _invalid(f"{where} must be finite numbers", rows)
    return array.astype(np.float32)


def _check_inside(size: tuple[int, int], where: str, prompt: dict[str, np.ndarray]) -> None:
    """Refuses prompts that cannot be meant in this picture."""
    try:
        if "points" in prompt:
            check_points(f"{where}.points", prompt["points"], size[::-1])
        if "boxes" in prompt:
            check_boxes(f"{where}.boxes", prompt["boxes"], size[::-1])
    except ValueError as error:
        raise _invalid(str(error).rstrip(".")) from error


def _read_image(inputs: Any) -> Image.Image:
    """The RGB picture, upright. Its size is known, and judged, before it is decoded."""
    content = b"" if isinstance(inputs, Image.Image) else _file_bytes(inputs)
    try:
        if isinstance(inputs, Image.Image):
            return _decoded(inputs)
        with Image.open(BytesIO(content), formats=_IMAGE_FORMATS) as image:
            return _decoded(image)
    except _BOMBS as error:
        raise _too_large(f"at most {MAX_PIXELS} pixels are read") from error
    except PictureError as error:
        raise RequestError(422, "invalid_image", f"The image is not taken: {error}.") from error
    except UNREADABLE as error:
        formats = ", ".join(_IMAGE_FORMATS)
        raise RequestError(
            422, "invalid_image", f"The image is damaged, or none of {formats}."
        ) from error


def _decoded(image: Image.Image) -> Image.Image:
    _check_size(image)
    return to_rgb(image)


def _file_bytes(inputs: Any) -> bytes:
    if isinstance(inputs, str):
        if inputs.startswith(("http:", "https:", "file:", "ftp:")):
            raise _invalid("URLs are not fetched. Send the image itself, in base64")
        content = _from_base64(inputs)
    elif isinstance(inputs, (bytes, bytearray)):
        content = bytes(inputs)
    else:
        raise _invalid("inputs must be an image in base64", type(inputs).__name__)
    if not content:
        raise RequestError(422, "invalid_image", "The image has 0 bytes.")
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(f"a file of {len(content)} bytes, at most {MAX_FILE_BYTES} are read")
    return content


def _from_base64(text: str) -> bytes:
    if len(text) > MAX_FILE_BYTES * 4 // 3 + 1000:
        raise _too_large(f"{len(text)} characters, at most {MAX_FILE_BYTES} bytes are read")
    if text.startswith("data:"):  # as a browser's FileReader has it
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(f"inputs is not base64 ({error})") from error


def _check_size(image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if shorter * longer > MAX_PIXELS:
        raise _too_large(f"{image.width} x {image.height}, at most {MAX_PIXELS} pixels are read")
    if longer > MAX_ASPECT_RATIO * shorter:  # the model would see nothing of it
        raise RequestError(
            422,
            "invalid_image",
            f"The image is too narrow: {image.width} x {image.height}, at most "
            f"{MAX_ASPECT_RATIO} : 1 is read.",
        )


def _too_large(message: str) -> RequestError:
    return RequestError(413, "image_too_large", f"The image is too large: {message}.")


def _too_many(message: str) -> RequestError:
    return RequestError(422, "too_many_prompts", f"Too many prompts: {message}.")


def _invalid(message: str, got: Any = None) -> RequestError:
    shown = "" if got is None else f", got {reprlib.repr(got)}"
    return RequestError(422, "invalid_parameters", f"{message}{shown}.")
