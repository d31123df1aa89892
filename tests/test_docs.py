"""The README and docs/ say what is there: commands, fields, Python, links, pictures, figures."""

import ast
import builtins
import copy
import importlib
import inspect
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from documents import (
    HOME,
    PAGES,
    README,
    Command,
    anchors,
    blocks,
    commands,
    flags_of,
    inline_commands,
    links,
    named,
    prose,
)
from ml_collections import config_flags
from running import jaxmark

from jaxmark import main
from jaxmark.config import Experiment, validate
from jaxmark.inference.model import Landmark, ScanLandmarks, TrainedModel
from jaxmark.registry import METHODS, PHANTOMS

ALL = [command for page in PAGES for command in commands(page)]
# What stands for the reader's own: `FOLDER`, `WORKDIR`, `experiments/RUN`.
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_0-9]+\b")
# Presets that a CPU is too slow for.
LARGE = ("paper", "full", "reverse", "aorta")
WARNING = re.compile(r"needs? a GPU|takes hours")
# Programs of a shell and of other packages, whose flags are not ours.
OTHERS = (".", "export", "sbatch", "mkdocs", "python3")


def of_program(words: tuple[str, ...]) -> str:
    """The module that `python -m` starts, "" for other programs."""
    if words[0] == "sbatch":
        return "jaxmark.main"
    return words[2] if words[:2] == ("python", "-m") else ""


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """The flags of `jaxmark.main`; absl's errors, and a KeyError for an unknown field."""
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_key_flags_for_module(main.__name__):
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    # ml_collections looks there for overrides.
    monkeypatch.setattr(sys, "argv", ["jaxmark", *arguments])
    values(sys.argv)
    return values


@cache
def fields() -> set[str]:
    """All that `config.` may be followed by: method and phantom are any."""
    holder = Experiment(None)
    found = {"method", "phantom", "name", "seed"}
    for part in ("data", "augment", "train", "stream", "predict", "evaluate"):
        found |= {part, *inner(getattr(holder, part), part)}
    for part, kinds in (("method", METHODS), ("phantom", PHANTOMS)):
        for kind in kinds.values():
            found |= set(inner(kind(), part))
    # Of `experiments/atlases.py`.
    return found | {"method.mesh_mm", "method.atlases"}


def inner(settings: Any, path: str) -> Iterator[str]:
    for field in settings.__dataclass_fields__:
        yield f"{path}.{field}"
        if hasattr(value := getattr(settings, field), "__dataclass_fields__"):
            yield from inner(value, f"{path}.{field}")


def is_open(argument: str) -> bool:
    """Whether the value is left to the reader, so that only its flag or field is known.

    Raises KeyError for a field that does not exist.
    """
    name, _, value = argument.lstrip("-").partition("=")
    if not re.fullmatch("[A-Z_]{2,}", value):
        return False
    if name.startswith("config."):
        if name.removeprefix("config.") not in fields():
            raise KeyError(name)
        return True
    return name in flags.FLAGS and isinstance(flags.FLAGS[name].parser, flags.EnumParser)


def check_main(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, experiment file, preset and fields exist, and the values are allowed."""
    arguments = [word for word in command.words if word.startswith("-") and word != "-m"]
    config = next((a for a in arguments if a.startswith("--config=")), "")
    if not config or PLACEHOLDER.search(config):
        # The trained model's own, or the reader's.
        arguments = [a for a in arguments if a != config]
        arguments.insert(0, "--config=experiments/cow.py:small")
    monkeypatch.chdir(HOME)
    values = parsed([a for a in arguments if not is_open(a)], monkeypatch)
    validate(values["config"].value)
    needed = {"predict": ("checkpoint", "output"), "export": ("output",), "pack": ("output",)}
    if values["mode"].value != "predict" or values["input"].value:
        for name in needed.get(values["mode"].value, ()):
            assert values[name].value, f"--{name} is missing"


def check_experiment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Module and flags exist; presets, parts and rows are known where they are written out."""
    path = HOME.joinpath(*of_program(command.words).split(".")).with_suffix(".py")
    assert path.is_file()
    known = flags_of(path)
    for word in command.words[3:]:
        assert word.startswith("--"), f"{word!r} is no flag"
        name, _, value = word[2:].partition("=")
        if name.startswith("config."):
            continue
        assert name in known, f"there is no --{name}"
        if (words := known[name]) is not None and not PLACEHOLDER.search(value):
            assert value in words
        if name == "preset":
            assert value in sizes(path)
    if "config" in known:
        own = tuple(word for word in command.words if not word.startswith("--workdir"))
        check_main(Command(command.page, own), monkeypatch)


@cache
def sizes(path: Path) -> list[str]:
    """The values of --preset."""
    found = runpy.run_path(str(path))
    return list(found["TABLE"].sizes if "TABLE" in found else found["cardiac_gan"].SIZES)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_a_command_has_files_flags_and_fields(command, monkeypatch):
    module, words = of_program(command.words), command.words
    if module == "jaxmark.main":
        check_main(command, monkeypatch)
    elif module.startswith("experiments."):
        check_experiment(command, monkeypatch)
    elif words[:2] == ("pip", "install"):
        check_install(words[2])
    elif words[0] == "python" and not module:
        assert (HOME / words[1]).is_file()
    else:
        assert words[0] in OTHERS or module == "pytest"
    for word in words:
        if word.endswith((".sbatch", ".yml")):
            assert (HOME / word).is_file()


def check_install(what: str) -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", what)
    assert extras
    assert set((extras[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])


def test_commands_within_text_have_files_flags_and_fields(monkeypatch):
    found = [command for page in PAGES for command in inline_commands(page)]
    assert len(found) > 50
    for command in found:
        try:
            if of_program(command.words) == "jaxmark.main":
                check_main(command, monkeypatch)
            elif of_program(command.words).startswith("experiments."):
                check_experiment(command, monkeypatch)
        except Exception as error:
            raise AssertionError(str(command)) from error


def test_the_check_of_commands_finds_what_is_wrong(monkeypatch):
    def command(text: str) -> Command:
        return Command(README, tuple(text.split()))

    start = "python -m jaxmark.main --config=experiments/cow.py"
    with pytest.raises(flags.Error):
        check_main(command(f"{start}:small --wrkdir=runs/a"), monkeypatch)
    with pytest.raises(flags.Error):
        check_main(command(f"{start}:huge"), monkeypatch)
    with pytest.raises(flags.Error):
        check_main(command(f"{start}:small --mode=learn"), monkeypatch)
    with pytest.raises(KeyError):
        check_main(command(f"{start}:small --config.data.rot=FOLDER"), monkeypatch)
    with pytest.raises(AssertionError, match="--output is missing"):
        check_main(command(f"{start}:small --mode=pack"), monkeypatch)
    for wrong in ("compare --size=small", "compare --preset=huge", "gone --preset=small"):
        with pytest.raises(AssertionError):
            check_experiment(command(f"python -m experiments.{wrong}"), monkeypatch)


@pytest.mark.parametrize("command", ALL, ids=str)
def test_a_page_says_which_commands_need_a_gpu_or_hours(command):
    large = "experiments.gpu" in command.words
    for word in command.words:
        preset = word.rpartition(":")[2] if word.startswith("--config=") else ""
        large |= preset.split("/")[0] in LARGE or word == "--preset=paper"
    # The phantom's scans are drawn on a CPU.
    if large and "--mode=phantom" not in command.words:
        assert WARNING.search(command.section)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_fields_of_the_config_exist(page):
    for code in re.findall(r"`([^`]+)`", prose(page)):
        for field in re.findall(r"(?<![\w.])(?:--)?config\.([a-z_]+(?:\.[a-z_]+)*)", code):
            if field not in ("json",):
                assert field in fields(), code


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_import_and_name_what_there_is(page, monkeypatch):
    monkeypatch.syspath_prepend(str(HOME / "docs"))
    known: dict[str, Any] = {"__name__": ""}
    for text, _ in blocks(page, "python"):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            known |= dict(imported(node))
            known |= {
                target.id: None
                for target in ast.walk(node)
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
                if target.id not in known
            }
            if isinstance(node, ast.arg):
                known.setdefault(node.arg, None)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                known.setdefault(node.name, None)
        for node in ast.walk(tree):
            check_names(node, known)


def imported(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # Extras of the package need not be here.
            pytest.importorskip(alias.name.split(".")[0])
            module = importlib.import_module(alias.name)
            first = sys.modules[alias.name.split(".")[0]]
            yield (alias.asname, module) if alias.asname else (alias.name.split(".")[0], first)
    elif isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            yield alias.name, getattr(module, alias.name)


# Variables of the pages' examples.
VARIABLES = {"landmark": Landmark, "found": ScanLandmarks, "model": TrainedModel}


def check_names(node: ast.AST, known: dict[str, Any]) -> None:
    if isinstance(node, ast.Name):
        assert node.id in known or hasattr(builtins, node.id), node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        holder = known.get(node.value.id) or VARIABLES.get(node.value.id)
        attributes = {*dir(holder), *getattr(holder, "__dataclass_fields__", ())}
        assert holder is None or node.attr in attributes, ast.unparse(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        function = known.get(node.func.id)
        if inspect.isfunction(function) or inspect.isclass(function):
            arguments = {k.arg: None for k in node.keywords if k.arg}
            inspect.signature(function).bind_partial(*node.args, **arguments)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_pictures_and_anchors_exist(page):
    for target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        # Pages of docs/ are a site of their own.
        assert page == README or "docs" not in page.parts or "docs" in path.parts, target
        if anchor:
            assert anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_lines_are_not_too_long(page):
    lines = page.read_text("utf-8").splitlines()
    assert max(len(line) for line in lines if not line.startswith("|")) <= 220


def test_the_readme_is_short_and_its_speeds_are_those_measured():
    text = README.read_text("utf-8")
    assert len(text.split()) < 900
    figures = HOME / "experiments" / "results" / "figures" / "speed.json"
    measured = [[str(cell) for cell in row] for row in json.loads(figures.read_text())["rows"]]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| ([\dx ]+)?\| (training step|inference)", line)
    ]
    assert len(rows) == 5
    for row, (volume, work, zen5, ratio5, _, zen4, ratio4, *_) in zip(rows, measured, strict=False):
        assert row == [volume, work, zen5, ratio5, zen4, ratio4]


@pytest.mark.parametrize("page", sorted((HOME / "docs").rglob("*.md")), ids=named)
def test_a_page_says_for_whom_it_is_and_is_in_the_menu(page):
    title, empty, reader = page.read_text("utf-8").splitlines()[:3]
    assert title.startswith("# ") and not empty and reader.startswith("*For whoever ")
    menu = (HOME / "docs" / "site" / "mkdocs.yml").read_text("utf-8")
    assert page.relative_to(HOME / "docs").as_posix() in menu


def runnable() -> Iterator[tuple[str, ...]]:
    """Commands that train or draw without data of the reader's, at their tiny size."""
    for command in ALL:
        words, module = command.words, of_program(command.words)
        config = next((w for w in words if w.startswith("--config=")), "")
        mode = next((w[7:] for w in words if w.startswith("--mode=")), "run")
        own = any(PLACEHOLDER.search(w) for w in words if w[:8] not in ("--output", "--config"))
        own |= "--config.data.root=FOLDER" in words
        known = ("run", "train", "crossval", "phantom")
        if words[0] == "sbatch" or own or module != "jaxmark.main" or mode not in known:
            continue
        file, _, preset = config.partition(":")
        # What is overridden of phantom and frame is made for the other size.
        kept = [w for w in words if not w.startswith(("--config", "--workdir", "--output"))]
        kept = ["--folds=2" if w.startswith("--folds=") else w for w in kept]
        row = preset.partition("/")[2]
        yield (*kept, f"{file}:{'/'.join(filter(None, ('tiny', row)))}")


@pytest.mark.slow
@pytest.mark.parametrize("words", sorted(set(runnable())), ids=" ".join)
def test_a_command_runs_at_its_tiny_size(words, tmp_path):
    folder = "--output" if "--mode=phantom" in words else "--workdir"
    done = jaxmark(*words[3:], f"{folder}={tmp_path / 'made'}")
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "made").iterdir())
