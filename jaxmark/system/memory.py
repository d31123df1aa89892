"""Memory of the devices: how much there is, how much a program needs, which batch fits."""

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

# The search for the largest batch compiles this many programs at most; three if memory is linear.
_MAX_COMPILED = 8
# A container's limit: control groups version 2 and version 1.
_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays in a tree, or of arrays of these shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_at_once(compiled: Any) -> int:
    """Bytes that a program needs on each device: arguments, results, temporaries."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


def machine_bytes(limits: Sequence[Path] = _LIMIT_FILES) -> int | None:
    """Memory of the machine that this process may use; None where the system does not say.

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
    """Memory of one of the mesh's devices; None where it is unknown.

    On an accelerator: what JAX may use. CPU devices of one process share the machine's memory.
    """
    if platform(mesh) == "cpu":
        whole = machine_bytes()
        return None if whole is None else whole // len(mesh.local_devices)
    # Some devices have no memory statistics.
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def largest_batch(bytes_of: Callable[[int], int], limit: int, most: int) -> int:
    """The largest batch, 1 to `most`, that needs no more than `limit` bytes; 0: none does.

    Memory is nearly linear in the batch, and each call of `bytes_of` compiles a program. So the
    search tries batches 1 and 2, and the batch where their line meets the limit. It tries a few
    more if that batch does not lie on the line. The result fits. Up to ten it is the largest batch
    that does; beyond ten it may be a tenth too small.
    """
    known: dict[int, int] = {}
    fits, over, batch = 0, most + 1, 1
    while batch < over and batch - fits > fits // 10 and len(known) < _MAX_COMPILED:
        known[batch] = bytes_of(batch)
        if known[batch] <= limit:
            fits = batch
        else:
            over = batch
        batch = _next_batch(known, limit, fits, over)
    return fits


def _next_batch(known: dict[int, int], limit: int, fits: int, over: int) -> int:
    """The batch to try between `fits` and `over`, which is too large; `fits` if none is left."""
    if len(known) == 1:
        return min(2, over - 1)
    # The line goes through both ends of the open range, if known, else through the largest two.
    low, high = (fits, over) if fits in known and over in known else sorted(known)[-2:]
    slope = (known[high] - known[low]) / (high - low)
    if slope <= 0:
        return over - 1
    if known[high] > 2 * limit and high == over:
        # A line is not trusted so far beyond the limit.
        return (fits + over) // 2
    return min(low + int((limit - known[low]) // slope), over - 1)


def ran_out(error: BaseException) -> bool:
    """Whether the error means that a device or the host had too little memory."""
    of_xla = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_xla or isinstance(error, MemoryError)


def gigabytes(size: int) -> str:
    """A number of bytes as text: "41.3 GB", "0.002 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e9:.1g} GB"


@dataclasses.dataclass(frozen=True)
class Demand:
    """A program that takes batches, and the error where a batch needs too much memory.

    `case()` returns a tree of one case's arrays, or of their shapes; `program` takes a batch's
    shapes. A batch counts the cases on all devices together.
    """

    field: str  # the field that sets the batch: "config.train.batch"
    batch: int
    what: str  # what the program computes, for messages: "a step"
    case: Callable[[], Any]
    program: Callable[[Any], jax.stages.Lowered]
    mesh: Mesh
    # The advice where not even the smallest batch fits: what needs less memory.
    less: str

    def bytes_of(self, batch: int) -> int:
        """Bytes that a batch needs on each device, by the compiler's count; allocates nothing."""
        return bytes_at_once(self.program(batch_shapes(self.case(), batch)).compile())

    def check_arrays(self) -> None:
        """Raises InputError if a batch's arrays are larger than the machine's memory.

        To be called before they are read: reading could take long, and get a process killed.
        """
        machine, share = machine_bytes(), self.batch // jax.process_count()
        size = share * nbytes(self.case())
        if machine is not None and size > machine:
            raise self._refusal(f"the arrays of {share:,} cases are", size)

    def check(self, compiled: Any) -> None:
        """Raises InputError if the program does not fit; on a CPU, which may swap, it warns.

        If it fits, nothing more is compiled.
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
        """Turns running out of memory in this block into an InputError with a batch that fits."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise self._refusal(f"{self.what} needs", self._known(self.batch)) from error

    def _refusal(self, what: str, needs: int | None) -> InputError:
        """The error; `needs` are the bytes needed, None where the compiler does not say."""
        there, devices = device_bytes(self.mesh), self.mesh.size
        figures = "out of memory" if needs is None else f"{what} {gigabytes(needs)}"
        if there is None:
            return InputError(self.field, f"{figures}; {self._advice(self.batch // 2)}")
        figures += f", the device has {gigabytes(there)}"
        if needs is not None and needs <= there:
            # Other programs, or other arrays of this process, take memory of the device.
            return InputError(
                self.field, f"{figures}, not all of it free; {self._advice(self.batch // 2)}"
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
        return InputError(self.field, f"{figures}; {self._advice(0)}")

    def _advice(self, smaller: int) -> str:
        """What to do where no fitting batch is known; `smaller` is one to try, 0 if none."""
        smaller -= smaller % self.mesh.size
        if smaller:
            return f"try a smaller one ({self._flag(smaller)})"
        return f"not even {self.mesh.size} fits; {self.less}"

    def _flag(self, batch: int) -> str:
        return f"--{self.field}={batch}"

    def _with_next(self, batch: int) -> int | None:
        """`_known` and the next batch, which is copied to the device during a step."""
        needs = self._known(batch)
        return None if needs is None else needs + batch // self.mesh.size * nbytes(self.case())

    def _known(self, batch: int) -> int | None:
        """`bytes_of`; None where compiling itself runs out of memory."""
        try:
            return self.bytes_of(batch)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            return None


def batch_shapes(case: Any, batch: int) -> Any:
    """The shapes of a batch of cases like `case`, one in each row."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *np.shape(x)), x.dtype), case)
