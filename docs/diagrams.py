"""Pages with a Mermaid diagram bring the script that draws it: no page asks another site for one.

MkDocs calls the functions. The script comes from npm, as docs/package-lock.json says.
"""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

FOLDER = Path(__file__).parent
SCRIPT = "assets/mermaid.js"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the script, installed if it is missing."""
    source = FOLDER / "node_modules" / "@mermaid-js" / "tiny" / "dist" / "mermaid.tiny.js"
    if not source.exists():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            raise PluginError(
                f"The script that draws the diagrams could not be installed: {reason}\n"
                "It needs Node.js and npm; `make programs` installs them."
            ) from error
    files.append(File.generated(config, SCRIPT, abs_src_path=str(source)))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Loads the script before the theme's own, which would else get one from elsewhere."""
    if 'class="mermaid"' not in output:
        return output
    script = f'<script src="{get_relative_url(SCRIPT, page.url)}"></script>\n'
    return re.sub(r'(?=<script src="[^"]*/bundle\.)', script, output, count=1)
