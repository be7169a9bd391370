"""What tests run in: no network, one thread a process, and interpreters that lack a package."""

import json
import multiprocessing
import os
import subprocess
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from sysconfig import get_path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
TORCH = ("torch", "torchgen", "functorch", "accelerate")
TENSORFLOW = ("tensorflow", "tensorflow_cpu", "keras", "tensorboard", "jax", "jaxlib")
PRELOADED = ("torch", "torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "PIL.Image")
"""What takes long to import and reads none of the variables that tests set."""

VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    # `make test` runs one process a core: with more threads they would mostly wait for each other.
    "OMP_NUM_THREADS": "1",
    # The C library keeps what is freed. Otherwise the system clears every large tensor's memory
    # anew, which takes a sixth of the time of all tests.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    # TensorFlow and JAX compile with less care, which takes half of the time.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


def link_packages(folder: Path, without: tuple[str, ...]) -> Path:
    """A folder of packages to search in: all that are installed here, but for some."""
    for entry in Path(get_path("purelib")).iterdir():
        name = entry.name.split("-")[0].split(".")[0]
        if name not in without and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def run_python(code: str, packages: Path | None = None, **environment: str) -> Any:
    """What the code leaves in `result`, run by another interpreter, in JSON and back.

    Args:
        code: Statements; `result` is what the last of them leaves there.
        packages: Folder to search in instead of this environment.
        environment: Further variables of the environment.

    Raises:
        AssertionError: The code failed; the message is what it said.
    """
    code += "\nimport json\nprint('\\n' + json.dumps(locals().get('result')))"
    search = [str(SOURCE), str(packages)] if packages else sys.path
    done = subprocess.run(
        [sys.executable, *(["-S"] if packages else []), "-W", "error::RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": ":".join(search),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **VARIABLES,
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_preloaded(code: str, **environment: str) -> Any:
    """As `run_python`, by a fork of an interpreter that has imported PyTorch but not Transformers.

    Whatever it imports stays its own, and most of the time of its start is paid for once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, code, environment))
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        result, error = None, "it ended without a word"
    process.join()
    assert error is None, error
    return result


def _answer(pipe: Connection, code: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    warnings.simplefilter("error", RuntimeWarning)
    names: dict[str, Any] = {}
    try:
        exec(code, names)
        pipe.send((names.get("result"), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
