"""Node.js beside Python: packages that are installed once, and programs that use them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def node_in(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command in a folder, and returns what it said once it has succeeded.

    What the folder's `package-lock.json` says is installed first, where it is missing or out of
    date, by one of pytest's processes for all.
    """

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done

    lock = (folder / "package-lock.json").read_bytes()
    installed = folder / "node_modules" / ".installed"
    with FileLock(folder / ".install.lock"):
        if not installed.exists() or installed.read_bytes() != lock:
            # Without scripts: that of onnxruntime-node would download files for CUDA.
            run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            installed.write_bytes(lock)
    return run
