"""What each framework's user has where the other framework is not installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers import SAMPredictor, SegmentAnythingModel
from segment_anything_transformers.cli.main import DEMO_IMAGE, DEMO_POINT
from tests.environments import SOURCE, TENSORFLOW, TORCH, link_packages, run_python
from tests.fake_backend import small_config
from tests.tiny import random_model

pytestmark = pytest.mark.slow
PHOTO = SOURCE / "segment_anything_transformers" / "demo" / DEMO_IMAGE
FIND = "from importlib.util import find_spec\nresult = [find_spec(name) is None for name in {}]"
USE = """
import sys
import numpy as np
from PIL import Image
import segment_anything_transformers as ours
image = Image.open({photo!r})
model = ours.{model}.from_pretrained("sam_vit_t")
predictor = ours.SAMPredictor(model)
predictor.set_image(image)
masks, scores, logits = predictor(points=np.array([{point}]))
records = ours.SAMAutomaticMaskGenerator(
    model, points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0
).generate(np.array(image))
model.save_pretrained({folder!r})
ours.SegmentAnythingProcessor.from_pretrained("sam_vit_t").save_pretrained({folder!r})
np.savez({folder!r} + "/results.npz", masks=masks, scores=scores, logits=logits)
absent = [name for name in {absent} if any(m.split(".")[0] == name for m in sys.modules)]
result = {{"records": len(records), "absent but imported": absent}}
"""
COMMAND = """
from segment_anything_transformers.cli.main import main
result = main(["predict", {photo!r}, "--point", "300,180", "-q", "-o", {folder!r}])
"""
CALL = """
import segment_anything_transformers as ours
try:
    {call}
except Exception as error:
    result = f"{{type(error).__name__}}: {{error}}"
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    return link_packages(tmp_path_factory.mktemp("without_torch"), TORCH)


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    return link_packages(tmp_path_factory.mktemp("without_tensorflow"), TENSORFLOW)


def use(model, absent, packages, folder):
    """Predicts, generates and saves with one class in an environment of its own."""
    folder.mkdir()
    code = USE.format(
        photo=str(PHOTO), model=model, point=DEMO_POINT, folder=str(folder), absent=absent
    )
    result = run_python(code, packages)
    assert result["absent but imported"] == []
    assert result["records"] > 0
    return dict(np.load(folder / "results.npz"))


@pytest.mark.tf
def test_the_environments_lack_what_they_should(without_torch, without_tensorflow):
    assert run_python(FIND.format(["torch", "keras"]), without_torch) == [True, False]
    assert run_python(FIND.format(["torch", "keras"]), without_tensorflow) == [False, True]


@pytest.mark.tf
def test_both_frameworks_alone_do_the_same_with_a_photo(
    without_torch, without_tensorflow, tmp_path
):
    theirs = use("SegmentAnythingModel", TENSORFLOW, without_tensorflow, tmp_path / "torch")
    ours = use("TFSegmentAnythingModel", TORCH, without_torch, tmp_path / "tf")
    for name in ("scores", "logits"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-3)
    assert (ours["masks"] == theirs["masks"]).mean() > 0.9999

    names = {path.name for path in (tmp_path / "torch").iterdir()}
    assert names == {path.name for path in (tmp_path / "tf").iterdir()}
    predictor = SAMPredictor(SegmentAnythingModel.from_pretrained(tmp_path / "tf"))
    predictor.set_image(Image.open(PHOTO))
    masks, _, _ = predictor(points=np.array([DEMO_POINT]))
    assert (masks == theirs["masks"]).mean() > 0.9999


@pytest.mark.tf
def test_the_command_takes_the_framework_that_is_there(without_torch, without_tensorflow, tmp_path):
    for packages in (without_torch, without_tensorflow):
        folder = tmp_path / packages.name
        code = COMMAND.format(photo=str(PHOTO), folder=str(folder))
        assert run_python(code, packages) == 0
        assert (folder / "coffee.json").is_file()


@pytest.mark.tf
def test_without_torch_errors_name_the_way_out(without_torch, tmp_path):
    error = run_python(CALL.format(call="ours.SegmentAnythingModel"), without_torch)
    assert error.startswith("ModuleNotFoundError: SegmentAnythingModel needs torch")
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(random_model(small_config()).state_dict(), path)
    call = f"ours.TFSegmentAnythingModel.from_pretrained({str(path)!r})"
    error = run_python(CALL.format(call=call), without_torch)
    assert "PyTorch is not installed. Convert it where it is: SegmentAnythingModel." in error


def test_without_tensorflow_the_error_names_the_extra(without_tensorflow):
    error = run_python(CALL.format(call="ours.TFSegmentAnythingModel"), without_tensorflow)
    assert error.startswith("ModuleNotFoundError: TFSegmentAnythingModel needs keras")
    assert "segment-anything-transformers[tensorflow]" in error
