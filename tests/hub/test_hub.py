"""Push and pull against the Hub's API, served on this machine, by processes with a cache each."""

import hashlib
import json

import datasets
import pytest
from PIL import Image
from safetensors.torch import load

from segment_anything_transformers import evaluate
from segment_anything_transformers.data.samples import Sample
from tests.environments import TENSORFLOW, TORCH, link_packages, run_preloaded, run_python
from tests.fake_backend import small_config
from tests.hub.server import TOKEN, Hub, Repository
from tests.sample_folders import instance_ids, rectangles
from tests.tiny import random_model

pytestmark = pytest.mark.slow
SIZE = list(small_config().input_size)
CARD = "---\nlicense: apache-2.0\npipeline_tag: mask-generation\n---\n# A model\n"
CLIENT = f"""
import hashlib
import numpy as np
import segment_anything_transformers as ours
from huggingface_hub import HfApi, ModelCard

def push(folder, repository, model="SegmentAnythingModel", **options):
    model = getattr(ours, model).from_pretrained(folder)
    model.push_to_hub(repository, **options)
    image_processor = ours.SegmentAnythingImageProcessor.from_config(model.config)
    ours.SegmentAnythingProcessor(image_processor).push_to_hub(repository, **options)
    ModelCard({CARD!r}).push_to_hub(repository, revision=options.get("revision"))

def pull(repository, model="SegmentAnythingModel", **options):
    model = getattr(ours, model).from_pretrained(repository, **options)
    processor = ours.SegmentAnythingProcessor.from_pretrained(repository, **options)
    size = processor.image_processor.pad_size
    state, whole = model.state_dict(), hashlib.sha256()
    for name in sorted(state):
        whole.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
    return [whole.hexdigest(), [size["height"], size["width"]]]

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
"""
PULL_WITHOUT_THE_PACKAGE = """
import sys
from transformers import AutoConfig, AutoProcessor
trust = {{"trust_remote_code": True}}
config = AutoConfig.from_pretrained({repository!r}, **trust)
processor = AutoProcessor.from_pretrained({repository!r}, **trust)
if {framework!r} == "torch":
    from transformers import AutoModelForMaskGeneration
    model = AutoModelForMaskGeneration.from_pretrained({repository!r}, **trust)
else:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    model_class = get_class_from_dynamic_module(config.auto_map["TFAutoModel"], {repository!r})
    model = model_class.from_pretrained({repository!r})
size = processor.image_processor.pad_size
result = [type(model).__name__, [size["height"], size["width"]]]
assert "segment_anything_transformers" not in sys.modules
"""


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub
    assert hub.unknown == []


@pytest.fixture
def client(hub, tmp_path):
    """Runs code in a process whose Hub is the local one."""

    def run(code, packages=None, **environment):
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "huggingface"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # its server is not part of the Hub's API
            **environment,
        }
        if packages is None:
            return run_preloaded(CLIENT + code, **environment)
        return run_python(code, packages, PYTHONPATH=str(packages), **environment)

    return run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of two versions of a model."""
    places = [str(tmp_path_factory.mktemp("saved") / version) for version in ("first", "second")]
    for seed, place in enumerate(places):
        random_model(small_config(), seed).save_pretrained(place)
    return places


def version(seed):
    """What `pull` answers for one of the versions."""
    state = random_model(small_config(), seed).state_dict()
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(name.encode() + state[name].numpy().tobytes())
    return [whole.hexdigest(), SIZE]


@pytest.mark.tf
@pytest.mark.parametrize("pushed", ["SegmentAnythingModel", "TFSegmentAnythingModel"])
def test_sharded_weights_of_either_framework_are_pulled_by_both(hub, client, saved, pushed):
    name = f"owner/sharded-{pushed.lower()}"
    code = f"push({saved[0]!r}, {name!r}, {pushed!r}, max_shard_size='60KB')\nresult = ["
    code += f"pull({name!r}), pull({name!r}, 'TFSegmentAnythingModel')]"
    assert client(code) == [version(0), version(0)]
    files = hub.repositories[name].commits[hub.repositories[name].refs["main"]]
    assert {"config.json", "processor_config.json", "modeling_segment_anything.py"} <= set(files)
    assert files["README.md"].decode() == CARD
    shards = [path for path in files if path.endswith(".safetensors")]
    assert len(shards) > 2
    weights = {name: tensor for path in shards for name, tensor in load(files[path]).items()}
    assert weights.keys() == random_model(small_config()).state_dict().keys()


@pytest.mark.tf
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_repository_loads_without_the_package_then_offline(
    hub, client, saved, tmp_path, framework
):
    name = f"owner/sam-for.{framework}"
    client(f"push({saved[0]!r}, {name!r})")
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(packages, {"torch": TENSORFLOW, "tensorflow": TORCH}[framework])
    code = PULL_WITHOUT_THE_PACKAGE.format(repository=name, framework=framework)
    class_name = {"torch": "SegmentAnythingModel", "tensorflow": "TFSegmentAnythingModel"}
    user = {"HF_HOME": str(tmp_path / "user")}
    assert client(code, packages, **user) == [class_name[framework], SIZE]
    asked = len(hub.requests)
    assert client(code, packages, HF_HUB_OFFLINE="1", **user) == [class_name[framework], SIZE]
    assert client(f"result = pull({name!r})", HF_HUB_OFFLINE="1", **user) == version(0)
    assert len(hub.requests) == asked


def test_revisions_are_kept_apart(client, saved):
    code = f"""
api, name = HfApi(), "owner/versions"
push({saved[0]!r}, name)
first = api.model_info(name).sha
api.create_tag(name, tag="v1")
api.create_branch(name, branch="try")
push({saved[1]!r}, name, revision="try")
result = [pull(name), pull(name, revision="try")]
push({saved[1]!r}, name)
result += [pull(name), pull(name, revision="v1"), pull(name, revision=first)]
result += [refused(pull, name, revision="v9")]
"""
    *pulled, error = client(code)
    assert pulled == [version(number) for number in (0, 1, 1, 0, 0)]
    assert error.startswith("OSError")
    assert "v9" in error


def test_a_private_repository_is_refused_without_a_token(hub, client, saved, tmp_path):
    name = "owner/secret"
    client(f"push({saved[0]!r}, {name!r}, private=True)")
    assert hub.repositories[name].private
    code = f"result = [refused(pull, {name!r}), refused(push, {saved[1]!r}, {name!r})]\n"
    code += f"result += [pull({name!r}, token={TOKEN!r})]"
    no_pull, no_push, pulled = client(code, HF_TOKEN="", HF_HOME=str(tmp_path / "stranger"))
    assert no_pull.startswith("OSError")
    assert name in no_pull
    assert "token" in no_pull
    assert "401" in no_push
    assert pulled == version(0)


def test_an_interrupted_upload_publishes_nothing(hub, client, saved):
    """While weights go up, or while the commit does that names them; the next try succeeds."""
    name = "owner/interrupted"
    client(f"push({saved[0]!r}, {name!r})")
    before = dict(hub.repositories[name].refs)
    code = "import time\ntime.sleep = lambda seconds: None  # between the client's own tries\n"
    code += f"result = [refused(push, {saved[1]!r}, {name!r}), pull({name!r})]"
    for place in ("/uploads/", "/commit/"):
        hub.break_off = place
        try:
            error, pulled = client(code)
        finally:
            hub.break_off = None
        assert error is not None
        assert hub.repositories[name].refs == before
        assert pulled == version(0)
    assert client(f"push({saved[1]!r}, {name!r})\nresult = pull({name!r})") == version(1)


def test_a_data_set_is_read_from_the_hub(hub, client, saved, tmp_path):
    """What a model is worth on a data set of the Hub, of which nothing is on this machine."""
    image, masks = rectangles(0)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    mask = Image.fromarray(instance_ids(masks))
    rows = {"image": [Image.fromarray(image)], "mask": [mask]}
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    hub.repositories["owner/cells"] = cells = Repository(private=False)
    cells.commit("main", {"data/test-00000-of-00001.parquet": path.read_bytes()})

    out = tmp_path / "out"
    command = ["evaluate", "owner/cells", "--split", "test", "--clicks", "1", "-q"]
    command += ["--model", saved[0], "-o", str(out)]
    read = "from segment_anything_transformers.cli.main import main"
    assert client(f"{read}\nresult = main({command})") == 0
    measured = json.loads((out / "evaluation.json").read_text())
    sample = Sample("row 0", image, masks)
    expected = evaluate(random_model(small_config()), [sample], [1])
    assert measured["means"]["all"] == pytest.approx(expected.means()["all"], abs=1e-3)
    assert measured["means"]["all"]["objects"] == 2
