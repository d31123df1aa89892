"""What the README and the pages in docs/ say: their blocks, commands, links and headings."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOME = Path(__file__).parents[1]
README = HOME / "README.md"
PAGES = (
    README,
    *sorted((HOME / "docs").rglob("*.md")),
    HOME / "experiments" / "cluster" / "README.md",
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`(python -m [^`]+)`")


@dataclass(frozen=True)
class Command:
    """A command of a page, split as a shell does."""

    page: Path
    words: tuple[str, ...]
    # What stands between the headings around it.
    section: str = ""

    def __str__(self) -> str:
        return f"{named(self.page)}: {shlex.join(self.words)}"


def named(page: Path) -> str:
    """Its path in the project."""
    return page.relative_to(HOME).as_posix()


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Text of each fenced block in this language, and of the section around it."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        if found[1] == language:
            # A comment in a block looks like a heading.
            fences = [fence.span() for fence in _FENCE.finditer(text)]
            heads = [
                head.start()
                for head in _HEADING.finditer(text)
                if not any(low <= head.start() < high for low, high in fences)
            ]
            before = max((at for at in heads if at <= found.start()), default=0)
            after = min((at for at in heads if at > found.start()), default=len(text))
            yield found[2], text[before:after]


def commands(page: Path) -> Iterator[Command]:
    """All of bash blocks."""
    for text, section in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in (*shlex.split(line, comments=True), "&&"):
                if word != "&&":
                    words.append(word)
                elif words:
                    yield Command(page, tuple(words), section)
                    words = []


def inline_commands(page: Path) -> Iterator[Command]:
    """`python -m ...` within text."""
    for found in _INLINE.finditer(prose(page)):
        yield Command(page, tuple(shlex.split(found[1])))


def prose(page: Path) -> str:
    """The text without fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MkDocs name them."""
    heads = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", head) for head in _HEADING.findall(prose(page)))
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@cache
def flags_of(path: Path) -> dict[str, list[str] | None]:
    """Flag -> its words, None where these are not written out, of a program in experiments/.

    Read, not imported: programs define flags of the same name. Flags of what it imports from
    experiments/ count as well, but those that are defined where that is itself the program.
    """
    tree = ast.parse(path.read_text("utf-8"))
    found = _defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
            parts = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = [HOME.joinpath(*part.split(".")).with_suffix(".py") for part in parts]
            for file in files:
                if file.is_file():
                    imported = ast.parse(file.read_text("utf-8"))
                    imported.body = [part for part in imported.body if not isinstance(part, ast.If)]
                    found = _defined(imported) | found
    return found


def _defined(tree: ast.AST) -> dict[str, list[str] | None]:
    """What is defined by absl or argparse."""
    found: dict[str, list[str] | None] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if isinstance(name, str) and (called.startswith("DEFINE_") or called == "add_argument"):
            found[name.lstrip("-")] = _words(node)
    return found


def _words(call: ast.Call) -> list[str] | None:
    lists = [*call.args[1:], *(k.value for k in call.keywords if k.arg == "choices")]
    for argument in lists:
        if isinstance(argument, ast.List | ast.Tuple):
            words = [word.value for word in argument.elts if isinstance(word, ast.Constant)]
            enumerated = isinstance(call.func, ast.Attribute) and "enum" in call.func.attr.lower()
            if enumerated or call.keywords and argument is lists[-1]:
                return [str(word) for word in words]
    return None
