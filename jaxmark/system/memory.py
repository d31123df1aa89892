"""Memory of the devices: what there is, what a program needs of it, which batch fits."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmark.system.devices import platform
from jaxmark.system.errors import InputError
from jaxmark.system.messages import say, warn

# Programs that the largest batch that fits may take to find; three where memory is linear.
_COMPILED = 8
# What a container may use: of control groups of the second and of the first kind.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_at_once(compiled: Any) -> int:
    """What a program needs on each device: arguments, results, temporaries."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


def machine_bytes(limits: Sequence[Path] = _LIMITS) -> int | None:
    """Memory that this process may use of its machine; None where the system does not say.

    `limits` are files with a container's limit, a number or "max".
    """
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in limits:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text("utf-8")))
    return min(found)


def device_bytes(mesh: Mesh) -> int | None:
    """Memory of one of the mesh's devices; None where it is not known.

    Of an accelerator it is what JAX may take of it. CPU devices of one process share the machine's.
    """
    if platform(mesh) == "cpu":
        whole = machine_bytes()
        return None if whole is None else whole // len(mesh.local_devices)
    # Not every device counts its memory.
    counted = mesh.local_devices[0].memory_stats() or {}
    return counted.get("bytes_limit")


def largest_batch(bytes_of: Callable[[int], int], limit: int, most: int) -> int:
    """The largest batch, 1 to `most`, that needs no more than `limit` bytes; 0: none does.

    Memory is nearly linear in the batch, and each call of `bytes_of` compiles a program: so batches
    1 and 2 are looked at, and the one that their line has at the limit. A few more follow where
    that one does not lie on the line. The batch that is returned fits; up to ten it is the largest
    one, beyond it may be a tenth too small.
    """
    known: dict[int, int] = {}
    fits, over, batch = 0, most + 1, 1
    while batch < over and batch - fits > fits // 10 and len(known) < _COMPILED:
        known[batch] = bytes_of(batch)
        if known[batch] <= limit:
            fits = batch
        else:
            over = batch
        batch = _next(known, limit, fits, over)
    return fits


def _next(known: dict[int, int], limit: int, fits: int, over: int) -> int:
    """The batch to look at, between one that fits and one that is too large; `fits`: none."""
    if len(known) == 1:
        return min(2, over - 1)
    # Both ends of what is open, or else the last two.
    low, high = (fits, over) if fits in known and over in known else sorted(known)[-2:]
    slope = (known[high] - known[low]) / (high - low)
    if slope <= 0:
        return over - 1
    if known[high] > 2 * limit and high == over:
        # Too far off for a line.
        return (fits + over) // 2
    return min(low + int((limit - known[low]) // slope), over - 1)


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory did not suffice: a device's or the host's."""
    of_xla = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_xla or isinstance(error, MemoryError)


def gigabytes(size: int) -> str:
    """As text: "41.3 GB", "0.002 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e9:.1g} GB"


@dataclasses.dataclass(frozen=True)
class Demand:
    """A program that takes batches, and the error where memory does not suffice for one.

    `case()` is a tree of arrays of one case, or of their shapes; `program(batch)` takes the shapes
    of a batch of them. Batches are of all devices together.
    """

    field: str  # that the batch is set by: config.train.batch
    batch: int
    what: str  # a step
    case: Callable[[], Any]
    program: Callable[[Any], jax.stages.Lowered]
    mesh: Mesh
    # What needs less where not even the smallest batch fits.
    less: str

    def bytes_of(self, batch: int) -> int:
        """What it needs on each device, by the compiler's count; nothing is allocated."""
        return bytes_at_once(self.program(batch_shapes(self.case(), batch)).compile())

    def check_arrays(self) -> None:
        """InputError where the arrays of a batch alone are more than the machine has.

        Before they are read: that could take long, and end in another process being killed.
        """
        machine, share = machine_bytes(), self.batch // jax.process_count()
        size = share * nbytes(self.case())
        if machine is not None and size > machine:
            raise self._refusal(f"the arrays of {share:,} cases are", size)

    def check(self, compiled: Any) -> None:
        """InputError where the batch's program does not fit; of a CPU, which may swap, a warning.

        Nothing is compiled where it fits.
        """
        needs, there = bytes_at_once(compiled), device_bytes(self.mesh)
        if there is None or needs <= there:
            return
        if platform(self.mesh) != "cpu":
            raise self._refusal(f"{self.what} needs", needs)
        warn(
            f"{self.field}: {self.what} needs {gigabytes(needs)}, the machine has "
            f"{gigabytes(there)}: it may fail, or be slow where memory is swapped"
        )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """In this block running out of memory is an InputError that says which batch fits."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise self._refusal(f"{self.what} needs", self._known(self.batch)) from error

    def _refusal(self, what: str, needs: int | None) -> InputError:
        """The line; `needs` are what is refused for, None where the compiler does not say."""
        there, devices = device_bytes(self.mesh), self.mesh.size
        figures = "out of memory" if needs is None else f"{what} {gigabytes(needs)}"
        if there is None:
            return InputError(self.field, f"{figures}; {self._without(self.batch // 2)}")
        figures += f", the device has {gigabytes(there)}"
        if needs is not None and needs <= there:
            # Others use the device, or what this process keeps there.
            return InputError(
                self.field, f"{figures}, not all of it free; {self._without(self.batch // 2)}"
            )
        say(f"looking for the largest {self.field} that fits: this compiles a few programs")
        rows = largest_batch(
            lambda rows: self._with_next(rows * devices) or sys.maxsize,
            there,
            max(1, self.batch // devices - 1),
        )
        fitting = rows * devices
        if 0 < fitting < self.batch:
            return InputError(self.field, f"{figures}; {fitting} fits ({self._flag(fitting)})")
        return InputError(self.field, f"{figures}; {self._without(0)}")

    def _without(self, smaller: int) -> str:
        """What to do where no figure says which batch fits."""
        smaller -= smaller % self.mesh.size
        if smaller:
            return f"try a smaller one ({self._flag(smaller)})"
        return f"not even {self.mesh.size} fits; {self.less}"

    def _flag(self, batch: int) -> str:
        return f"--{self.field}={batch}"

    def _with_next(self, batch: int) -> int | None:
        """Also with the batch that is copied to the device meanwhile."""
        needs = self._known(batch)
        return None if needs is None else needs + batch // self.mesh.size * nbytes(self.case())

    def _known(self, batch: int) -> int | None:
        """`bytes_of`; None where compiling takes more memory than there is."""
        try:
            return self.bytes_of(batch)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            return None


def batch_shapes(case: Any, batch: int) -> Any:
    """The shapes of a batch of such cases, one a row."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *np.shape(x)), x.dtype), case)
