"""The rooms of the package: imports point down only, and each library stays in its room."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxmark"
# From the ground up. A room, or a file of the package itself, imports from lower ones and its own.
FLOORS = (
    ("system",),
    ("bounds",),
    ("config",),
    ("core",),
    ("data", "models"),
    ("methods",),
    ("registry", "inference"),
    ("trained", "training"),
    ("results",),
    ("workflow",),
    ("crossval", "planning"),
    ("main",),
)
# Libraries that are met in few places, so that they can be replaced there.
LIBRARIES = {
    "SimpleITK": ("data", "inference/model.py"),
    "grain": ("data/pipeline.py",),
    "orbax": ("training/checkpoints.py", "system/processes.py"),
    "optax": ("methods",),
    "onnx": ("inference/onnx_graph.py",),
    "openvino": ("inference/openvino_graph.py",),
    "flax": (
        "models",
        "methods/method.py",
        "inference/engines.py",
        "core/augmentation.py",
        "core/losses.py",
    ),
    "absl": ("main.py",),
    "ml_collections": ("main.py",),
    "matplotlib": ("results/figures",),
    "skimage": ("core/segmentation.py", "core/spots.py"),
    "tensorboardX": ("training/records.py",),
}
# Mathematics and files that need no JAX: they run in worker processes.
WITHOUT_JAX = (
    "data",
    *(f"core/{name}.py" for name in ("alignment", "anatomy", "calibration", "geometry", "grids")),
    *(f"core/{name}.py" for name in ("metrics", "pose", "segmentation", "spots", "tissues")),
)
# The one import that points up: where experiment files of people look for the first phantom.
UPWARD = {("config.py", "jaxmark.data.phantoms.cow.cohort")}

FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path):
    """Full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            # `from jaxmark import workflow` imports a module, too.
            if node.module == "jaxmark":
                yield from (f"jaxmark.{alias.name}" for alias in node.names)


def floor(name):
    """The number of the floor that a file (as in FILES) or a module (jaxmark.x.y) lies on."""
    (found,) = (number for number, rooms in enumerate(FLOORS) if room(name) in rooms)
    return found


def room(name):
    """The folder, or the file of the package itself."""
    return name.removeprefix("jaxmark.").replace("/", ".").removesuffix(".py").split(".")[0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_imports_point_down(name):
    for module in imports(FILES[name]):
        if not module.startswith("jaxmark.") or (name, module) in UPWARD:
            continue
        allowed = floor(module) < floor(name) or room(module) == room(name)
        assert allowed, f"{name} imports {module}, which is not below it"


def test_the_upward_import_is_still_needed():
    for name, module in UPWARD:
        assert module in imports(FILES[name])


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_rooms(library):
    users = {
        name
        for name, path in FILES.items()
        if any(module.split(".")[0] == library for module in imports(path))
    }
    assert users, f"nothing imports {library}"
    strays = {name for name in users if not name.startswith(LIBRARIES[library])}
    assert not strays, f"{library} is imported by {strays}"


def test_worker_processes_need_no_jax():
    for name, path in FILES.items():
        if name.startswith(WITHOUT_JAX):
            found = {module for module in imports(path) if module.split(".")[0] in ("jax", "flax")}
            assert not found, f"{name} imports {found}"


def test_nothing_asks_for_the_host_s_devices_while_it_is_traced():
    # The platform is a value of the task: programs may be compiled for another one.
    for name, path in FILES.items():
        if name.startswith(("core", "models", "methods")):
            text = path.read_text("utf-8")
            assert "default_backend" not in text and "jax.devices" not in text, name


def test_methods_do_not_know_each_other_but_for_the_generator():
    # One file a paper: what two papers share is moved down, or is the one network they share.
    papers = ("adversarial", "cardiac_gan", "cascade", "coarse_to_fine", "heatmap", "multitask")
    papers += ("noothout", "scn")
    for name in papers:
        known = {f"jaxmark.methods.{paper}" for paper in papers}
        others = known & set(imports(FILES[f"methods/{name}.py"]))
        assert others <= {"jaxmark.methods.heatmap"}, name
