"""The problems that are measured. Imports neither JAX nor PyTorch: a process loads its own only."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

# "ResidualBlock_0/Conv_1/kernel" -> array in the layout of jaxmark's parameters.
Weights = dict[str, np.ndarray]
Row = dict[str, Any]
WORKS = ("step", "inference")
PICTURE = (256, 256, 1)
LANDMARKS = (5, 45)  # beside those of Spec
RIVALS = ("torch", "xla", "naive")
JAX = "experiments.benchmarks.contenders:JaxContender"


@dataclasses.dataclass(frozen=True)
class Spec:
    """One training problem; what is not here is `HeatmapRegression`'s default."""

    volume: tuple[int, int, int]  # voxels; one along Z: a picture
    batch: int = 1
    landmarks: int = 19
    widths: tuple[int, ...] = (16, 32, 64, 128)
    head: int = 64
    margin: int = 8
    spacing_mm: tuple[float, float, float] = (0.513, 0.513, 0.8)
    sigma_mm: float = 1.5
    alpha: float = 1000.0
    learning_rate: float = 1e-4
    platform: str = "cpu"  # "cpu" or "gpu", for JAX and PyTorch alike

    @property
    def planar(self) -> bool:
        """Whether the volume is a picture, and the network 2-D."""
        return self.volume[2] == 1

    @property
    def margins(self) -> tuple[int, int, int]:
        """`margin` along each axis; a picture has none along Z."""
        return self.margin, self.margin, 0 if self.planar else self.margin

    @property
    def dtype(self) -> str:
        """Arithmetic of the network while it is timed."""
        return "float32" if self.platform == "cpu" else "bfloat16"

    @property
    def columns(self) -> Row:
        """The first columns of a table."""
        size = "x".join(map(str, self.volume))
        return {"volume": size, "batch": self.batch, "K": self.landmarks}

    def __str__(self) -> str:
        return "{volume}, batch {batch}, K {K}".format(**self.columns)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    volumes: tuple[Spec, ...]  # smallest first, all with the first batch
    batches: tuple[int, ...]
    repeats: int
    seconds: float  # nothing is repeated any more once its repeats took this long
    rivals: tuple[str, ...] = RIVALS  # that jaxmark is compared with
    keep: Path | None = None  # folder for what profiler and compiler write

    def scaled(self) -> tuple[Spec, ...]:
        """The other batches, then other numbers of landmarks.

        At the first volume on a CPU, which would take minutes for a large one; at the last on a
        GPU, which a small one would not fill.
        """
        base = self.volumes[0 if self.volumes[0].platform == "cpu" else -1]
        batches = [dataclasses.replace(base, batch=batch) for batch in self.batches[1:]]
        counts = [dataclasses.replace(base, landmarks=count) for count in LANDMARKS]
        return (*batches, *counts)

    def pictures(self) -> tuple[Spec, ...]:
        """The volumes that are pictures, or one of 256 x 256, in all batches, largest first.

        With two landmarks and one that is absent.
        """
        planar = [spec for spec in self.volumes if spec.planar]
        planar = planar or [dataclasses.replace(self.volumes[0], volume=PICTURE)]
        return tuple(
            dataclasses.replace(spec, batch=batch, landmarks=3)
            for spec in planar
            for batch in sorted(self.batches, reverse=True)
        )

    def for_gpu(self) -> tuple[Spec, ...]:
        """The last volume in all batches, as a GPU would compute it."""
        last = dataclasses.replace(self.volumes[-1], platform="gpu")
        return tuple(dataclasses.replace(last, batch=batch) for batch in self.batches)


def cores() -> int:
    """That this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def example(spec: Spec) -> dict[str, np.ndarray]:
    """A batch of noise as the pipeline makes them: fields of `jaxmark.methods.method.Batch`.

    Landmarks lie anywhere in the crop, between voxels too; the last one is not annotated.
    """
    rng = np.random.default_rng(0)
    full = np.add(spec.volume, np.multiply(2, spec.margins))
    last = np.add(spec.volume, spec.margins) - 1
    points = rng.uniform(spec.margins, last, (spec.landmarks, 3))
    present = np.ones((spec.batch, spec.landmarks), bool)
    present[:, -1] = False
    return {
        "image": rng.random((spec.batch, *full, 1), np.float32).astype(np.float16),
        "landmarks_ijk": np.tile(points, (spec.batch, 1, 1)).astype(np.float32),
        "present": present,
        "absent": np.zeros_like(present),
    }
