"""Comments beside fields as their documentation: what `jaxmark.config` says of a setting.

A Griffe extension of mkdocstrings; griffe itself knows docstrings alone.
"""

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Extension


class Comments(Extension):
    """Gives an attribute without a docstring the comment above it, or the one on its line."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Griffe's hook: called for each attribute after it is made."""
        if attr.docstring is not None or not isinstance(node, ast.AST) or attr.lineno is None:
            return
        lines = attr.lines_collection[attr.filepath]
        words = comment_above(lines, attr.lineno) or comment_behind(lines[attr.lineno - 1])
        if words:
            attr.docstring = Docstring(words, parent=attr, lineno=attr.lineno)


def comment_above(lines: list[str], number: int) -> str:
    """The comment that ends above line `number` (from 1), without its marks; "" if none does."""
    words: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.lstrip().startswith("# "):
            break
        words.insert(0, line.strip()[2:])
    return " ".join(words)


def comment_behind(line: str) -> str:
    """The comment at the end of a line of code; "" if there is none."""
    found = re.search(r"  # (?P<words>.+)$", line)
    return found["words"] if found else ""
