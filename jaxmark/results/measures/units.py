"""Names in files of results: where lengths are pixels, names end in _px instead of _mm."""

from typing import Any


def in_unit(tree: Any, unit: str) -> Any:
    """JSON types, or a name, for a file: with the unit px each name's "_mm" becomes "_px"."""
    return _renamed(tree, "_mm", "_px") if unit == "px" else tree


def from_unit(tree: Any, unit: str) -> Any:
    """The inverse of `in_unit`."""
    return _renamed(tree, "_px", "_mm") if unit == "px" else tree


def _renamed(tree: Any, old: str, new: str) -> Any:
    if isinstance(tree, str):
        return tree.removesuffix(old) + new if tree.endswith(old) else tree
    if isinstance(tree, dict):
        return {_renamed(key, old, new): _inside(value, old, new) for key, value in tree.items()}
    return _inside(tree, old, new)


def _inside(value: Any, old: str, new: str) -> Any:
    """A value with renamed keys; texts stay."""
    if isinstance(value, dict):
        return _renamed(value, old, new)
    return [_inside(item, old, new) for item in value] if isinstance(value, list) else value
