"""Comments above fields as their documentation: what `jaxmark.config` says of a setting.

A Griffe extension of mkdocstrings; griffe itself knows docstrings alone.
"""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension


class Comments(Extension):
    """Gives an attribute without a docstring the comment lines that stand directly above it."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Griffe's hook: called for each attribute after it is made."""
        if attr.docstring is not None or not isinstance(node, ast.AST) or attr.lineno is None:
            return
        words = comment_above(attr.lines_collection[attr.filepath], attr.lineno)
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
