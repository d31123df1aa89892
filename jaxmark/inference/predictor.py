"""Prediction of prepared volumes on all devices: landmarks come back, volumes stay."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxmark.config import Experiment
from jaxmark.core.augmentation import centre_crop
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.methods.method import Method, Params, Prediction
from jaxmark.system.devices import own_rows, put_batch, replicated, split


@dataclasses.dataclass(frozen=True)
class Volume:
    """A prepared image with its margin, and the way back to its scan's LPS mm."""

    name: str
    image: Callable[[], np.ndarray]  # (X, Y, Z); called where it is needed
    ijk_to_lps: np.ndarray  # (4, 4)


@dataclasses.dataclass(frozen=True)
class Found:
    """Landmarks of one volume in its voxels; `landmarks_mm` leads to the scan."""

    name: str
    ijk_to_lps: np.ndarray  # (4, 4)
    decoded_ijk: dict[str, np.ndarray]  # decoder -> (K, 3)
    score: np.ndarray  # (K,)
    evidence: np.ndarray  # (K,): see Prediction

    def landmarks_mm(self, decoder: str) -> np.ndarray:
        """(K, 3) LPS mm of the scan's own world."""
        return apply_affine(self.ijk_to_lps, self.decoded_ijk[decoder])


def volumes(cases: Iterable[PreparedCase]) -> Iterator[Volume]:
    """Prepared cases; each is read when it is its turn, by the process whose turn it is."""
    return (Volume(case.name, case.image, case.ijk_to_lps) for case in cases)


class Predictor:
    """A method's `predict`, jitted once for the experiment's crop and prediction batch."""

    def __init__(self, method: Method, experiment: Experiment, mesh: Mesh):
        self._mesh = mesh
        self._margin = margin = experiment.data.margin
        # Every device gets the same number of volumes.
        self._batch = -(-experiment.predict.batch // mesh.size) * mesh.size

        def predict(params: Params, image: Array) -> Prediction:
            return method.predict(params, centre_crop(image, margin).astype(jnp.float32))

        self._predict = jax.jit(
            predict,
            in_shardings=(replicated(mesh), split(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: Params, volumes: Iterable[Volume]) -> Iterator[Found]:
        """Predictions in order; a batch is read while the one before is computed."""
        source = iter(volumes)
        # Every process reads and computes its share of a batch, and gets all results.
        mine = own_rows(self._mesh, self._batch)
        pending: tuple[Sequence[Volume], Prediction] | None = None
        while part := list(islice(source, self._batch)):
            # The last batch may be too short for this process to have any of it.
            images = [volume.image()[..., None] for volume in part[mine] or part[-1:]]
            images += images[-1:] * (mine.stop - mine.start - len(images))
            result = self._predict(params, put_batch(self._mesh, np.stack(images)))
            if pending is not None:
                yield from self._collect(*pending)
            pending = part, result
        if pending is not None:
            yield from self._collect(*pending)

    def _collect(self, part: Sequence[Volume], result: Prediction) -> Iterator[Found]:
        host = jax.device_get(result)
        for i, volume in enumerate(part):
            decoded = {"argmax": host.argmax_ijk[i], "subvoxel": host.subvoxel_ijk[i]}
            yield Found(
                name=volume.name,
                ijk_to_lps=volume.ijk_to_lps,
                decoded_ijk={name: ijk + self._margin for name, ijk in decoded.items()},
                score=host.score[i],
                evidence=host.evidence[i],
            )
