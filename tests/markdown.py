"""The code in Markdown texts."""

import re


def code_blocks(text, language):
    """The blocks in a language, in order, except those marked as not to be run."""
    pattern = rf"(<!-- not run[^\n]*-->\n)?```{language}\n(.*?)```"
    return [code for mark, code in re.findall(pattern, text, re.DOTALL) if not mark]
