"""Prediction of prepared volumes on all devices: landmarks come back, volumes stay."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import HostBatch, Volume
from jaxmark.inference.engines import XLA, EngineRun, Run, check_engine
from jaxmark.methods.method import Method, Prediction, Stage, Variables
from jaxmark.system.devices import own_rows, platform, put_batch, replicated, split
from jaxmark.system.memory import Demand


@dataclasses.dataclass(frozen=True)
class Found:
    """A network's prediction of one volume; `landmarks_mm` converts it to the scan's world."""

    volume: Volume
    prediction: Prediction  # of this volume alone, on the host

    @property
    def name(self) -> str:
        """The name of the volume's case."""
        return self.volume.name

    def without_maps(self) -> "Found":
        """The same without maps, which are as large as the volume; to keep many in memory."""
        return dataclasses.replace(self, prediction=self.prediction.replace(maps={}))  # type: ignore[attr-defined]

    def landmarks_mm(self, decoder: str) -> np.ndarray:
        """(K, 3) LPS mm of the scan's own world."""
        ijk = np.asarray(self.prediction.positions_ijk[decoder])
        return apply_affine(self.volume.ijk_to_lps, ijk)


class Predictor:
    """A method's stages, each jitted once for the shapes that it reads and this batch size.

    InputError if the `engine` (see `engines`) is not installed or does not work on these devices.
    """

    def __init__(self, method: Method, batch: int, mesh: Mesh, engine: str = XLA):
        check_engine(engine, platform(mesh), mesh.size)
        # Every device gets the same number of volumes.
        rows = -(-batch // mesh.size) * mesh.size
        self.tells = method.tells
        self._stages = [_Program(stage, rows, mesh, engine) for stage in method.stages]

    def __call__(self, variables: Variables, volumes: Iterable[Volume]) -> Iterator[Found]:
        """Predictions in order; a batch is read while the one before is computed."""
        pairs: Iterator[tuple[Volume, Prediction | None]] = ((volume, None) for volume in volumes)
        for stage in self._stages:
            pairs = stage(variables, pairs)
        return (Found(volume, prediction) for volume, prediction in pairs if prediction is not None)


class _Program:
    """One stage with its host parts."""

    def __init__(self, stage: Stage, rows: int, mesh: Mesh, engine: str):
        self._stage, self._rows, self._mesh = stage, rows, mesh
        self._jitted = jax.jit(
            stage.run,
            in_shardings=(replicated(mesh), split(mesh)),
            out_shardings=replicated(mesh),
        )
        self._run: Run = self._jitted
        if engine != XLA:
            self._run = EngineRun(stage.run, self._jitted, engine)

    def __call__(
        self, variables: Variables, pairs: Iterator[tuple[Volume, Prediction | None]]
    ) -> Iterator[tuple[Volume, Prediction | None]]:
        # Every process reads and computes its share of a batch, and gets all results.
        mine = own_rows(self._mesh, self._rows)
        pending: tuple[Sequence[Volume], Prediction, Demand] | None = None
        while part := list(islice(pairs, self._rows)):
            # The last batch may be too short for this process to have any of it.
            read = [self._stage.read(*pair) for pair in part[mine] or part[-1:]]
            memory = self._demand(variables, read[0])
            memory.check_arrays()
            read += read[-1:] * (mine.stop - mine.start - len(read))
            with memory.watched():
                arrays: Any = jax.tree.map(lambda *rows: np.stack(rows), *read)
                result = self._run(variables, put_batch(self._mesh, arrays))
            if pending is not None:
                yield from self._finished(*pending)
            pending = [volume for volume, _ in part], result, memory
        if pending is not None:
            yield from self._finished(*pending)

    def _demand(self, variables: Variables, case: HostBatch) -> Demand:
        """The stage's demand of memory, for batches of arrays like one case's."""
        elsewhere = "" if platform(self._mesh) == "cpu" else "; JAX_PLATFORMS=cpu predicts without"
        return Demand(
            field="config.predict.batch",
            batch=self._rows,
            what="a prediction",
            case=lambda: case,
            program=lambda batch: self._jitted.lower(variables, batch),
            mesh=self._mesh,
            less=f"a device with more memory is needed{elsewhere}",
        )

    def _finished(
        self, part: Sequence[Volume], result: Prediction, memory: Demand
    ) -> Iterator[tuple[Volume, Prediction]]:
        with memory.watched():
            host = jax.device_get(result)
        for row, volume in enumerate(part):
            yield volume, self._stage.finish(jax.tree.map(lambda x, row=row: x[row], host))
