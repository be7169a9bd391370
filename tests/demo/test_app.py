"""The page of the demo without a browser; tests/browser clicks in it."""

import os
import socket
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import gradio
import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers.cli.main import main
from segment_anything_transformers.data.files import read_pixels
from segment_anything_transformers.demo import app
from tests.data.picture_files import FILES
from tests.environments import SOURCE
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.mark.parametrize(
    "act",
    [
        partial(app._do, app._Visit.undo),
        partial(app._everything, points_per_side=1, pred_iou_thresh=0, stability=0),
        partial(app._open, path="photo.jpg"),
        partial(app._look_closely, is_close=True),
    ],
)
def test_a_visit_that_was_forgotten_is_begun_anew(act):
    with pytest.raises(gradio.Error, match="left alone for too long"):
        act(None)


def test_files_of_earlier_masks_are_removed(model):
    visit = app._Visit(model, Image.new("RGB", (60, 40)))
    assert visit.files() == [None, None, None]
    folders = []
    for x in (10, 50):
        visit.click(x, 20)
        assert [path.rsplit("/", 1)[1] for path in visit.files()] == [
            "mask.png",
            "cut_out.png",
            "masks.zip",
        ]
        folders.append(visit.folder)
    assert not folders[0].exists()
    assert folders[1].exists()
    app._leave(visit)
    app._leave(None)
    assert not folders[1].exists()


def test_small_pictures_are_enlarged_and_large_ones_are_not(model):
    visit = app._Visit(model, Image.new("RGB", (60, 40)))
    assert visit.enlarged_picture().size == (900, 600)
    visit.open(Image.new("RGB", (1000, 40)))
    assert visit.enlarged_picture().size == (1000, 40)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named_in_one_line(model, tmp_path):
    model.save_pretrained(tmp_path)
    code = "import sys; from segment_anything_transformers.cli.main import main; sys.exit(main())"
    arguments = ["demo", "--serve", "--model", str(tmp_path), "--port"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, port],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("segment-anything: ")
    assert port in done.stderr.splitlines()[-1]


def test_points_are_not_given_to_the_page(capsys):
    assert main(["demo", "--serve", "--point", "1,2"]) == 2
    assert "points are clicked on the page" in capsys.readouterr().err


def test_the_command_says_that_gradio_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("segment_anything_transformers.cli.main.find_spec", lambda name: None)
    assert main(["demo", "--serve"]) == 2
    assert "pip install 'segment-anything-transformers[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_the_page_reads_every_file_as_all_do(name, tmp_path, monkeypatch):
    """As tests/data/test_doors.py says of the other ways in."""
    save, _, _ = FILES[name]
    save(tmp_path / name)
    opened = []
    monkeypatch.setattr(app, "_seen", lambda visit: ())
    app._open(SimpleNamespace(open=opened.append), str(tmp_path / name))
    np.testing.assert_array_equal(np.asarray(opened[0]), read_pixels(tmp_path / name))
