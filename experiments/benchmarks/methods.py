"""Part (g): a training step and an inference of every method, the baselines too."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.common import WORKS, Options, Row, Spec
from experiments.benchmarks.contenders import JaxContender, task
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms, ratio
from jaxmark.core.anatomy import Scheme, Segment
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import (
    BY_SEGMENT,
    LABEL_MAPS,
    LABELS,
    SEGMENTATION,
    SEGMENTS_ABSENT,
    SEGMENTS_PRESENT,
    LandmarkSets,
    Method,
    Settings,
    State,
)
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import RECIPES, SpatialConfiguration, training_memory

METHOD = (
    "One step of a phase (noise as data; the loop's program: jitted, state donated) or inference "
    "(network and decoding), each contender in a process of its own with all cores, interleaved; "
    "medians. Settings are each method's defaults, with channels in proportion to the first of "
    "--widths (16: the defaults); Noothout's global network is trained on chunks of 72 voxels a "
    "side, its local ones on crops of 16, and what a volume is too small for is a note. A row "
    "without inference has that of the method's row above. MB of a step: what the compiled program "
    "needs at once, with weights, batch and optimiser (compiled.memory_analysis()); said_MB: what "
    "a person is told before training. What needs more memory than is free is not run. parameters: "
    "of the networks that the phase trains. compile_s: tracing and compiling the step."
)
HERE = "experiments.benchmarks.methods:MethodContender"
UNPAIRED = 500  # landmark sets without images, as in the paper


@dataclasses.dataclass(frozen=True)
class Contender:
    """A phase of a method."""

    settings: Callable[[Spec], Settings]
    networks: tuple[str, ...]  # that the phase trains, as in `State.params`
    phase: int = 0
    works: Sequence[str] = WORKS


def channels(spec: Spec, *of_16: int) -> tuple[int, ...]:
    """Defaults in proportion to the first of `spec.widths`."""
    return tuple(max(1, n * spec.widths[0] // Spec.widths[0]) for n in of_16)


def heatmap(spec: Spec) -> HeatmapRegression:
    """Our generator alone."""
    return HeatmapRegression(widths=spec.widths, head=spec.head)


def adversarial(spec: Spec) -> Adversarial:
    """With the paper's discriminator."""
    return Adversarial(
        widths=spec.widths,
        head=spec.head,
        discriminator_widths=channels(spec, *Adversarial.discriminator_widths),
        discriminator_hidden=channels(spec, Adversarial.discriminator_hidden)[0],
    )


def scn(spec: Spec, recipe: str, remat: bool = False) -> SpatialConfiguration:
    """With fewer levels, or a spatial part less coarse, where the volume asks for it."""

    def most(choices: Sequence[int], block: Callable[[int], int]) -> int:
        return next(n for n in choices if all(side % block(n) == 0 for side in spec.volume))

    down = most((8, 4, 2, 1) if recipe == "2019" else (4, 2, 1), lambda n: n)
    spatial = most((4, 3, 2, 1), lambda n: down * 2 ** (n - 1)) if recipe == "later" else 4
    return SpatialConfiguration(
        recipe=recipe,
        filters=channels(spec, RECIPES[recipe].filters)[0],
        levels=most((4, 3, 2, 1), lambda n: 2 ** (n - 1)),
        downsample=down,
        spatial_levels=spatial,
        remat=remat,
    )


def noothout(spec: Spec) -> RegressionClassification:
    """Both stages."""
    default = RegressionClassification()
    return RegressionClassification(
        stem=channels(spec, default.stem)[0],
        widths=channels(spec, *default.widths),
        head=channels(spec, default.head)[0],
        local_widths=channels(spec, *default.local_widths),
    )


def multitask(spec: Spec) -> Multitask:
    """All four tasks of the paper."""
    return Multitask(widths=spec.widths, head=spec.head)


TARGETS = {SEGMENTATION: LABELS, SEGMENTS_PRESENT: BY_SEGMENT, SEGMENTS_ABSENT: BY_SEGMENT}


def segmented(scheme: Scheme) -> Scheme:
    """The landmarks with 20 segments that may be missing, as many as the Circle of Willis has."""
    names = scheme.landmarks
    ends = [(names[i % len(names)], names[(i + 1) % len(names)]) for i in range(20)]
    segments = tuple(Segment(f"segment {i}", end, True) for i, end in enumerate(ends))
    return dataclasses.replace(scheme, segments=segments)


def example_segments(spec: Spec) -> dict[str, np.ndarray]:
    """A batch of label maps as noise, a twentieth of the voxels in some segment."""
    rng = np.random.default_rng(0)
    shape = (spec.batch, *np.add(spec.volume, np.multiply(2, spec.margins)))
    labels = rng.integers(1, 21, shape, np.uint8) * (rng.random(shape, np.float32) < 0.05)
    there = rng.random((spec.batch, 20)) < 0.9
    return {SEGMENTATION: labels, SEGMENTS_PRESENT: there, SEGMENTS_ABSENT: ~there}


CONTENDERS = {
    "heatmap": Contender(heatmap, ("generator",)),
    "multitask": Contender(multitask, ("network",)),
    "adversarial": Contender(adversarial, ("generator", "discriminator"), 1, ("step",)),
    "SCN 2019": Contender(lambda spec: scn(spec, "2019"), ("scn",)),
    "SCN 2019, remat": Contender(lambda spec: scn(spec, "2019", True), ("scn",), 0, ("step",)),
    "SCN later": Contender(lambda spec: scn(spec, "later"), ("scn",)),
    "Noothout, global": Contender(noothout, ("global",)),
    "Noothout, local": Contender(noothout, ("local",), 1, ("step",)),
}


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """A row a contender; what can't be built, compiled or run is a note."""
    workers: dict[str, Worker] = {}
    facts: dict[str, dict[str, Any]] = {}
    jobs: dict[str, dict[str, Callable[[], float]]] = {work: {} for work in WORKS}
    with contextlib.ExitStack() as stack:
        for name in CONTENDERS:
            try:
                workers[name] = stack.enter_context(Worker(HERE, spec, name))
                facts[name] = workers[name].call("facts")
            except WorkerError as error:
                yield f"{spec}: {name} is left out: {error}"
        for name, known in facts.items():
            if known["changes"]:
                yield f"{spec}: {name} with {known['changes']}"
            for work, size in known["bytes"].items():
                try:
                    # A process that asks for more may not be the one that the system ends.
                    if size > (free := free_bytes(spec)):
                        raise WorkerError(f"needs {size / 1e9:.1f} GB, {free / 1e9:.1f} are free")
                    jobs[work][name] = job(workers[name], work)
                except WorkerError as error:
                    yield f"{spec}: {name}: {work} is not timed: {error}"
        times = {work: interleave(jobs[work], options, f"{spec} {work}") for work in WORKS}
    for name, known in facts.items():
        yield row(spec, name, known, {work: times[work].get(name, []) for work in WORKS})


def row(spec: Spec, name: str, known: dict[str, Any], times: dict[str, list[float]]) -> Row:
    """Medians in ms, MB, and every repeat in seconds."""
    return {
        **spec.columns,
        "method": name,
        **{f"{work}_ms": median_ms(times[work]) for work in WORKS},
        "repeats": "/".join(str(len(times[work])) for work in WORKS),
        "step_MB": known["bytes"]["step"] / 1e6,
        "said_MB": ratio(known["said"], 1e6),
        "said/step": ratio(known["said"], known["bytes"]["step"]),
        "parameters": f"{known['parameters']:,}",
        "compile_s": known["compile_s"],
        "seconds": times,
    }


def free_bytes(spec: Spec) -> float:
    """Memory that processes can still have; infinite where an allocator says no by itself."""
    path = Path("/proc/meminfo")
    if spec.platform != "cpu" or not path.exists():
        return float("inf")
    sizes = dict(line.split(":") for line in path.read_text().splitlines())
    return 1024 * int(sizes["MemAvailable"].split()[0])


class MethodContender(JaxContender):
    """A phase of a method, from the state that the method starts with."""

    def __init__(self, spec: Spec, name: str):
        self.phase = CONTENDERS[name].phase
        self.settings = CONTENDERS[name].settings(spec)
        super().__init__(spec, name)
        if self.settings.needs & {LABEL_MAPS}:
            self.batch = self.batch.replace(  # type: ignore[attr-defined]
                targets=jax.device_put(example_segments(spec))
            )

    def method(self, dtype: str) -> Method:
        """By its public way."""
        rng = np.random.default_rng(0)
        last = np.add(self.spec.volume, self.spec.margins) - 1
        shape = UNPAIRED, self.spec.landmarks
        others = LandmarkSets(
            rng.uniform(self.spec.margins, last, (*shape, 3)).astype(np.float32),
            np.ones(shape, bool),
        )
        found = dataclasses.replace(task(self.spec, jnp.dtype(dtype)), unpaired=others)
        if self.settings.needs & {LABEL_MAPS}:
            found = dataclasses.replace(found, scheme=segmented(found.scheme), targets=TARGETS)
        return self.settings.build(found)

    def initial(self) -> State:
        """The method's own."""
        return self.afresh()

    def facts(self) -> dict[str, Any]:
        """All but times; compiles what is to be run."""
        contender = CONTENDERS[self.name]
        seconds = {work: self.prepare(work) for work in contender.works}
        trained = [self.shapes.params[name] for name in contender.networks]
        return {
            "bytes": {work: self.memory(work) for work in contender.works},
            "said": self.said(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
            "compile_s": seconds["step"],
            "changes": self.changes(),
        }

    def said(self) -> int | None:
        """Bytes of a step as the method says them before training."""
        if not isinstance(self.settings, SpatialConfiguration):
            return None
        found = task(self.spec, jnp.dtype(self.spec.dtype))
        return training_memory(self.settings, found, self.spec.batch).total

    def changes(self) -> str:
        """What is not the method's default because of the volume."""
        if not isinstance(self.settings, SpatialConfiguration):
            return ""
        default = SpatialConfiguration(downsample=RECIPES[self.settings.recipe].downsample)
        names = ("levels", "downsample", "spatial_levels")
        return ", ".join(
            f"{name} {getattr(self.settings, name)} instead of {getattr(default, name)}"
            for name in names
            if getattr(self.settings, name) != getattr(default, name)
        )
