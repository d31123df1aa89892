"""The benchmarks' contenders do the same work, and their figures are what they say."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments.benchmarks import compiled, methods
from experiments.benchmarks.adversarial import AdversarialContender
from experiments.benchmarks.cardiac_gan import CardiacContender
from experiments.benchmarks.common import Options, Spec
from experiments.benchmarks.contenders import JaxContender, short
from experiments.benchmarks.convolutions import forms, shapes
from experiments.benchmarks.profile import ProfiledContender
from experiments.benchmarks.roofline import costs, floor_seconds
from experiments.benchmarks.step import LIMITS, agrees, differences, row
from experiments.benchmarks.timing import interleave, median_ms, ratio, table
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import RECIPES, resolved

ROOT = Path(__file__).parents[1]
SPEC = Spec((16, 16, 8), batch=2, landmarks=3, widths=(4, 8), head=8, margin=4)


@pytest.fixture(scope="module")
def own() -> JaxContender:
    """jaxmark, its outcome as `expected` of the others."""
    return JaxContender(SPEC, "jaxmark")


@pytest.fixture(scope="module")
def expected(own: JaxContender) -> dict[str, Any]:
    return own.outcome("float32")


def test_naive_flax_does_the_same(own: JaxContender, expected: dict[str, Any]) -> None:
    naive = JaxContender(SPEC, "naive")
    found = differences(naive.outcome("float32"), expected, own.weights())
    assert agrees(found, "float32") and found["same_argmax"] == 1, found
    assert naive.run("step", 2) > 0 and naive.memory() > 0


@pytest.mark.parametrize("side, platform", [(3, "cpu"), (7, "cpu"), (3, "gpu")])
@pytest.mark.parametrize("direction", ["value", "weight gradient"])
def test_all_forms_are_one_convolution(direction: str, side: int, platform: str) -> None:
    x, kernel, gradient = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 8, 6, 4, 9), (side, side, side, 9, 10), (2, 8, 6, 4, 10)])
    )
    found = forms(direction, side, platform)
    other = kernel if direction == "value" else gradient
    expected = found["lax 3-D"](x, other)
    for name, form in found.items():
        np.testing.assert_allclose(form(x, other), expected, atol=1e-3, err_msg=name)


def test_convolutions_of_the_paper() -> None:
    found = shapes(Spec((96, 80, 48)), Spec((192, 160, 96)))
    assert found[1] == ((96, 80, 48), 3, 32, 16)
    assert found[-1] == ((24, 20, 12), 7, 64, 64)


def test_torch_does_the_same(own: JaxContender, expected: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    from experiments.benchmarks.twin import TorchTwin

    twin = TorchTwin(SPEC, own.weights())
    twin.run("step", 1)  # an outcome is of the start, whatever went before
    found = differences(twin.outcome("float32"), expected, own.weights())
    assert agrees(found, "float32") and found["same_argmax"] == 1, found


def test_torch_does_the_same_of_pictures() -> None:
    pytest.importorskip("torch")
    from experiments.benchmarks.twin import TorchTwin

    spec = dataclasses.replace(SPEC, volume=(16, 24, 1))
    own = JaxContender(spec, "jaxmark")
    twin = TorchTwin(spec, own.weights())
    twin.run("step", 1)
    found = differences(twin.outcome("float32"), own.outcome("float32"), own.weights())
    assert agrees(found, "float32") and found["same_argmax"] == 1, found


def test_torch_does_the_same_against_a_discriminator() -> None:
    pytest.importorskip("torch")
    from experiments.benchmarks.adversarial_twin import AdversarialTwin

    own = AdversarialContender(SPEC, "jaxmark")
    twin = AdversarialTwin(SPEC, own.weights())
    twin.run("step", 1)
    found = differences(twin.outcome("float32"), own.outcome("float32"), own.weights())
    assert agrees(found, "float32"), found


@pytest.mark.slow
def test_torch_does_the_same_by_the_cardiac_gan() -> None:
    pytest.importorskip("torch")
    from experiments.benchmarks.cardiac_gan_twin import CardiacTwin

    spec = dataclasses.replace(SPEC, volume=(128, 192, 1))
    own = CardiacContender(spec, "jaxmark")
    assert len(own.weights()) == len(flatten_dict(own.shapes.params))
    twin = CardiacTwin(spec, own.weights())
    twin.run("step", 1)
    found = differences(twin.outcome("float32"), own.outcome("float32"), own.weights())
    assert found["heatmaps"] < 1e-4 and found["same_argmax"] == 1, found
    assert agrees(found, "float32"), found


def test_parameters_of_both_networks_have_names_of_their_own() -> None:
    own = AdversarialContender(SPEC, "jaxmark")
    shapes = flatten_dict(own.shapes.params, sep="/")
    assert {short(name) for name in shapes} == set(own.weights())
    assert len(own.weights()) == len(shapes)
    assert sum(name.startswith("discriminator/") for name in own.weights()) > 8


def test_a_profile_times_the_kernels_of_the_program() -> None:
    found = ProfiledContender(dataclasses.replace(SPEC, batch=1), "heatmap").kernels("inference")
    assert {one["kind"] for one in found} >= {"product", "elementwise"}
    assert all(one["ms"] > 0 for one in found) and sum(one["MB"] for one in found) > 0.01
    assert any("ResidualBlock_0" in one["from"] for one in found)


def test_without_its_compiler_nothing_is_compiled_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled.importlib.metadata, "entry_points", lambda **_: ())
    options = Options((SPEC,), (1,), 1, 0.0)
    assert list(compiled.rows(SPEC, options)) == [
        "16x16x8, batch 2, K 3: needs JAX's CUDA plugin (pip install '.[cuda13]')"
    ]


@pytest.mark.slow
def test_programs_are_compiled_for_a_gpu() -> None:
    if not importlib.metadata.entry_points(group="jax_plugins"):
        pytest.skip("needs JAX's CUDA plugin")
    spec = Spec((32, 32, 16), widths=(8, 16), platform="gpu")
    found = list(compiled.rows(spec, Options((spec,), (1,), 1, 0.0)))
    notes = [one for one in found if isinstance(one, str)]
    measured = [one for one in found if not isinstance(one, str)]
    assert not notes and len(measured) == 6
    for one in measured:
        assert one["moved_MB"] > (one["floor_MB"] or 0) and one["peak_MB"] > 1
        assert one["convolution"] > 0 and one["product"] > 0


def test_other_weights_do_not_agree(own: JaxContender, expected: dict[str, Any]) -> None:
    start = own.weights()
    same = differences(expected, expected, start)
    assert same == {"heatmaps": 0, "loss": 0, "gradient": 0, "update": 0, "same_argmax": 1}
    for name in LIMITS["float32"]:
        assert not agrees(same | {name: 0.2}, "float32")
        assert not agrees(same | {name: float("nan")}, "float32")
    stuck = differences({**expected, "weights": start}, expected, start)
    assert stuck["update"] == pytest.approx(1)
    shifted = {**expected, "heatmaps": 1.5 * expected["heatmaps"], "loss": 2 * expected["loss"]}
    found = differences(shifted, expected, start)
    assert found["heatmaps"] == pytest.approx(0.5) and found["loss"] == pytest.approx(1)


def test_methods_at_the_papers_size_have_their_defaults() -> None:
    paper = Spec((192, 160, 96))
    assert methods.heatmap(paper) == HeatmapRegression()
    assert methods.adversarial(paper) == Adversarial()
    assert methods.noothout(paper) == RegressionClassification()
    for recipe in RECIPES:
        found = methods.scn(paper, recipe)
        assert resolved(found) == RECIPES[recipe] and (found.levels, found.spatial_levels) == (4, 4)


def test_methods_in_small_volumes() -> None:
    later = methods.scn(Spec((48, 40, 32), widths=(2, 4)), "later")
    assert (later.filters, later.levels, later.downsample, later.spatial_levels) == (12, 4, 4, 2)
    small = methods.scn(Spec((12, 10, 6), widths=(2,)), "2019")
    assert (small.filters, small.levels, small.downsample) == (8, 2, 2)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "Noothout, local" else pytest.mark.slow)
        for name in methods.CONTENDERS
    ],
)
def test_a_methods_phase_trains_its_networks(name: str) -> None:
    spec = Spec((16, 16, 8), landmarks=2, widths=(2, 4), head=2, margin=2)
    contender = methods.MethodContender(spec, name)
    found = contender.facts()
    before = jax.tree.map(np.asarray, contender.state.params)
    for work in methods.CONTENDERS[name].works:
        assert contender.run(work, 1) > 0 and found["bytes"][work] > 0
    after = contender.state.params
    trained = methods.CONTENDERS[name].networks
    for network in [name for name in before if isinstance(before[name], dict)]:
        pairs = zip(*map(jax.tree.leaves, (before[network], after[network])), strict=True)
        assert any((a != b).any() for a, b in pairs) == (network in trained)
    assert found["parameters"] == sum(
        leaf.size for network in trained for leaf in jax.tree.leaves(before[network])
    )
    is_scn = name.startswith("SCN")
    assert (found["said"] is not None) == is_scn
    assert not is_scn or 0.2 < found["said"] / found["bytes"]["step"] < 5
    assert (found["changes"] == "spatial_levels 2 instead of 4") == (name == "SCN later")


def test_methods_that_do_not_fit_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: methods.CONTENDERS[name] for name in ("heatmap", "Noothout, global")}
    monkeypatch.setattr(methods, "CONTENDERS", chosen)
    spec = Spec((12, 8, 8), landmarks=2, widths=(2, 4), head=2, margin=2)
    options = Options((spec,), (1,), 2, seconds=1)
    note, found = methods.rows(spec, options)
    assert isinstance(note, str) and "Noothout, global is left out" in note
    assert "config.data.crop" in note
    assert isinstance(found, dict) and found["method"] == "heatmap" and found["repeats"] == "2/2"
    assert found["step_ms"] == pytest.approx(1e3 * np.median(found["seconds"]["step"]))
    assert found["said_MB"] is None


def test_what_needs_more_memory_than_is_free_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "heatmap"
    monkeypatch.setattr(methods, "CONTENDERS", {name: methods.CONTENDERS[name]})
    monkeypatch.setattr(methods, "Worker", Idle)
    monkeypatch.setattr(methods, "free_bytes", lambda spec: 2.5e9)
    *notes, found = methods.rows(SPEC, Options((SPEC,), (1,), 2, seconds=1))
    assert notes == [f"{SPEC}: heatmap: step is not timed: needs 3.0 GB, 2.5 are free"]
    assert isinstance(found, dict) and found["step_ms"] is None and found["inference_ms"] == 1000
    assert found["step_MB"] == 3000 and found["repeats"] == "0/2"


class Idle:
    """In place of a worker: says what a process would, at once."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, method: str, *arguments: Any) -> Any:
        sizes = {"step": 3_000_000_000, "inference": 1}
        facts = {"bytes": sizes, "said": None, "parameters": 1, "compile_s": 1.0, "changes": ""}
        return facts if method == "facts" else float(arguments[1])


def test_memory_that_is_free() -> None:
    assert methods.free_bytes(Spec((8, 8, 8), platform="gpu")) == float("inf")
    assert methods.free_bytes(SPEC) > 1e6


def test_against_a_published_network() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("landmarker")
    from experiments.benchmarks import published

    counts = published.parameters()
    assert counts["ours"] == counts["by hand"] != counts["landmarker"]
    weights = published.random_weights()
    image = np.random.default_rng(1).standard_normal((1, *published.SHAPE, 1), np.float32)
    for reflect in (False, True):
        found = published.compared(weights, image, reflect)
        assert max(found["local"], found["spatial"]) < published.LIMIT


def test_medians_and_ratios() -> None:
    assert median_ms([0.003, 0.001, 0.009]) == 3 and median_ms([]) is None
    assert ratio(3, 2) == 1.5 and ratio(None, 2) is None and ratio(3, None) is None
    found = row(SPEC, "step", {"jaxmark": [0.002, 0.004], "naive": [0.03]}, {"jaxmark": 5_000_000})
    assert found["jaxmark_ms"] == 3 and found["naive_ms"] == 30 and found["torch_ms"] is None
    assert found["naive/jaxmark"] == 10 and found["torch/jaxmark"] is None
    assert found["repeats"] == "2/0/0/1" and found["jaxmark_MB"] == 5 and found["naive_MB"] is None
    assert found["seconds"]["jaxmark"] == [0.002, 0.004]


def test_table() -> None:
    rows = [{"a": 1, "ms": 1234.5, "x": {"y": 1}}, {"a": 20, "ms": None, "x": {}}]
    assert table(rows) == " a     ms\n 1  1,234\n20      -"
    assert table([{"ms": 3.14159}]) == "  ms\n3.14"
    assert table([]) == ""


def test_jobs_take_turns_until_their_time_is_spent() -> None:
    order = []

    def job(name: str) -> float:
        order.append(name)
        return 1.0

    jobs = {"a": lambda: job("a"), "b": lambda: job("b")}
    times = interleave(jobs, Options((SPEC,), (1,), repeats=3, seconds=60), "")
    assert order == ["a", "b"] * 3 and times == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert interleave(jobs, Options((SPEC,), (1,), 3, seconds=0), "") == {"a": [1.0], "b": [1.0]}


def test_other_batches_and_landmarks_change_one_thing() -> None:
    large = dataclasses.replace(SPEC, volume=(32, 32, 16))
    found = Options((SPEC, large), (2, 4), 1, 1).scaled()
    assert [(s.volume[0], s.batch, s.landmarks) for s in found] == [
        (16, 4, 3),
        (16, 2, 5),
        (16, 2, 45),
    ]
    gpu = [dataclasses.replace(spec, platform="gpu") for spec in (SPEC, large)]
    assert {spec.volume[0] for spec in Options(tuple(gpu), (2, 4), 1, 1).scaled()} == {32}


def test_costs_by_hand(own: JaxContender) -> None:
    fine, coarse = 2 * 16 * 16 * 8, 2 * 8 * 8 * 4
    # (voxels met by the kernel, voxels out, taps, channels in and out), in the network's order.
    convolutions = [
        *((fine, fine, 27, 1, 4), (fine, fine, 27, 4, 4), (fine, fine, 1, 1, 4)),
        *((coarse, coarse, 27, 4, 8), (coarse, coarse, 27, 8, 8), (coarse, coarse, 1, 4, 8)),
        (coarse, fine, 8, 8, 4),
        *((fine, fine, 27, 8, 4), (fine, fine, 27, 4, 4), (fine, fine, 1, 8, 4)),
        *((fine, fine, 1, 4, 8), (fine, fine, 1, 8, 3)),
    ]
    forward = [(2 * n * taps * a * b, 4 * (n * a + out * b)) for n, out, taps, a, b in convolutions]
    assert costs("inference", SPEC) == forward
    kernels = sum(w.size for name, w in own.weights().items() if name.endswith("kernel"))
    needed = costs("step", SPEC)
    assert needed[-1] == (0, 32 * kernels)
    flops = sum(cost[0] for cost in forward)
    image = forward[0][0] + forward[2][0]  # has no gradient
    assert sum(cost[0] for cost in needed) == 3 * flops - image
    assert floor_seconds([(100, 1), (1, 30)], peak=10, bandwidth=5) == 16


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.run", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--parts=step,foo"], ["--parts", "'foo'", "roofline"]),
        (["--volumes=20x16x16"], ["--volumes", "'20x16x16'", "multiples of 8"]),
        (["--volumes=16x16,16x20"], ["--volumes", "'16x20'", "multiples of 8"]),
        (["--batches=1,no"], ["--batches", "'1,no'"]),
        (["--out=nowhere/x.json"], ["--out", "nowhere/x.json"]),
    ],
)
def test_bad_flags_are_one_line(
    tmp_path: Path, arguments: Sequence[str], fragments: Sequence[str]
) -> None:
    ran = command(tmp_path, *arguments)
    assert ran.returncode == 1 and ran.stdout == "" and ran.stderr.count("\n") == 1
    assert all(fragment in ran.stderr for fragment in fragments), ran.stderr
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    tiny = ["--volumes=16x16x8", "--widths=4", "--repeats=2", "--seconds=0.1"]
    ran = command(tmp_path, "--parts=step", "--out=found.json", *tiny)
    assert ran.returncode == 0, ran.stderr
    assert "torch/jaxmark" in ran.stdout and "written: found.json" in ran.stdout
    tree = json.loads((tmp_path / "found.json").read_text())
    assert tree["platform"] == "cpu" and tree["versions"]["jax"] and tree["date"]
    part = tree["parts"]["step"]
    assert any("naive against jaxmark in float32" in note for note in part["notes"])
    with_torch = importlib.util.find_spec("torch") is not None
    assert with_torch or "PyTorch is not installed" in ran.stdout
    assert [found["work"] for found in part["rows"]] == ["step", "inference"]
    for found in part["rows"]:
        seconds = found["seconds"]
        rivals = {"xla", "naive"} | ({"torch"} if with_torch else set())
        assert set(seconds) == {"jaxmark"} | rivals
        assert found["jaxmark_ms"] == pytest.approx(1e3 * np.median(seconds["jaxmark"]))
        assert found["naive/jaxmark"] == pytest.approx(found["naive_ms"] / found["jaxmark_ms"])
