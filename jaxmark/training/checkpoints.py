"""Orbax checkpoints: one folder a step, with separate items, so that readers load only some.

The items: `params` and, if a method has any, `statistics` (both are all that prediction needs),
`optimizer`, `iterator` (the data streams' states) and `meta` (the whole config, and more). Writing
is asynchronous, and a folder with its final name is whole. The newest checkpoints and the best on
validation are kept.

Orbax does not notice when a disk changes a file later, so `meta` holds a digest of every item. A
checkpoint is damaged if it cannot be read or differs from its digests. Then a warning names it, and
the next best is read.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from jaxmark.methods.method import State, Variables
from jaxmark.system.devices import replicated
from jaxmark.system.errors import InputError, UnwritableError
from jaxmark.system.messages import warn
from jaxmark.system.processes import check_alike, from_primary

FOLDER = "checkpoints"
# Training moves damaged checkpoints here, so that it can save their steps again.
DAMAGED = "damaged_checkpoints"

# Version of `meta`. Before 3, statistics were among the parameters, and there was one stream.
SCHEMA_VERSION = 3

T = TypeVar("T")


class DamagedError(InputError):
    """A checkpoint can't be read, or differs from what was saved."""


class Checkpoints:
    """Reads the checkpoints of a work dir; unfinished ones don't count."""

    def __init__(self, workdir: Path):
        self.folder = workdir.absolute() / FOLDER
        self._damaged = workdir.absolute() / DAMAGED

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def meta(self, step: int) -> dict[str, Any]:
        """The item `meta`, which includes `mre_mm` and `digests`."""
        saved = self._item(step, "meta", ocp.args.JsonRestore())
        try:
            meta = dict(saved["meta"])
            whole = saved["digest"] == tree_digest(meta)
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole:
            raise DamagedError(self.folder / str(step), "is damaged: meta is not what was saved")
        return meta

    def public_meta(self, step: int, public: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
        """The file of `meta` to share, with `public(config)` and without names of cases."""
        meta = self.meta(step)
        meta = {**meta, "config": public(meta["config"]), "data": {}, "recent": []}
        return json.dumps({"meta": meta, "digest": tree_digest(meta)}).encode()

    def variables(self, step: int, abstract: Variables, mesh: Mesh) -> Variables:
        """Read only what prediction needs, onto the devices of `mesh`."""
        if not abstract.statistics:
            return Variables(params=self._arrays(step, "params", abstract.params, mesh))
        if self.meta(step)["schema_version"] < 3:
            both = {**abstract.params, **abstract.statistics}
            found = self._arrays(step, "params", both, mesh)
            return Variables(
                params={name: found[name] for name in abstract.params},
                statistics={name: found[name] for name in abstract.statistics},
            )
        return Variables(
            params=self._arrays(step, "params", abstract.params, mesh),
            statistics=self._arrays(step, "statistics", abstract.statistics, mesh),
        )

    def state(self, step: int, abstract: State, mesh: Mesh) -> tuple[State, dict[str, Any]]:
        """The state of a step on `mesh`, and the states of the data streams by their names."""
        iterator = self._item(step, "iterator", ocp.args.JsonRestore())
        self._check(step, "iterator", iterator)
        if self.meta(step)["schema_version"] < 3:
            iterator = {"0": iterator}
        variables = self.variables(step, abstract.variables, mesh)
        state = State(
            step=jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh)),
            params=variables.params,
            statistics=variables.statistics,
            optimizer=self._arrays(step, "optimizer", abstract.optimizer, mesh),
        )
        return state, iterator

    def errors_mm(self) -> dict[int, float]:
        """Step -> validation error; infinite for a step without validation or a damaged one."""
        known = dict.fromkeys(self.steps(), math.inf)
        for step in known:
            with contextlib.suppress(DamagedError):
                error = self.meta(step)["mre_mm"]
                known[step] = math.inf if error is None else float(error)
        return known

    def best_first(self) -> list[int]:
        """Steps by validation error, then steps without validation, newest first."""
        errors = self.errors_mm()
        return sorted(errors, key=lambda step: (errors[step], -step))

    def first_whole(self, steps: Iterable[int], read: Callable[[int], T]) -> tuple[int, T] | None:
        """The first step that `read` can read, and its result; None if there are no steps.

        Raises:
          InputError: all checkpoints are damaged, or processes find different steps whole.
        """
        tried = False
        for step in steps:
            try:
                found = read(step)
            except DamagedError as damage:
                warn(damage)
                tried = True
                continue
            check_alike("newest whole checkpoint", step)
            return step, found
        if tried:
            raise InputError(
                self.folder, "all checkpoints are damaged; use another --workdir to start again"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Move checkpoints newer than the step to `DAMAGED`."""
        for newer in self.steps():
            if newer > step:
                self._damaged.mkdir(exist_ok=True)
                count = len(list(self._damaged.glob(f"{newer}-*")))
                (self.folder / str(newer)).rename(self._damaged / f"{newer}-{count}")

    def _arrays(self, step: int, item: str, abstract: Any, mesh: Mesh) -> Any:
        sharding = replicated(mesh)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
        )
        tree = self._item(step, item, ocp.args.StandardRestore(like))
        self._check(step, item, tree)
        return tree

    def _item(self, step: int, item: str, args: Any) -> Any:
        folder = self.folder / str(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                found = reader.restore(folder, ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # TensorStore, zlib and JSON raise many types for a broken file
            problem = f"is damaged: {item} cannot be read ({one_line(error)})"
            raise DamagedError(folder, problem) from error
        if found is None:
            raise DamagedError(folder, f"is damaged: {item} is missing")
        return found

    def _check(self, step: int, item: str, tree: Any) -> None:
        if self.meta(step)["digests"][item] != tree_digest(tree):
            raise DamagedError(self.folder / str(step), f"is damaged: {item} is not what was saved")


def load_variables(
    workdir: Path, which: str, init: Callable[[jax.Array], State], mesh: Mesh
) -> tuple[int, Variables]:
    """The step and variables of a work dir's "best" checkpoint on validation, or of its "last".

    `init` is the method's; it gives the tree and shapes of the variables.
    """
    checkpoints = Checkpoints(workdir)
    abstract = jax.eval_shape(init, jax.random.key(0)).variables
    order = checkpoints.best_first() if which == "best" else checkpoints.steps()[::-1]
    found = checkpoints.first_whole(
        from_primary("model's step", order),
        lambda step: checkpoints.variables(step, abstract, mesh),
    )
    if found is None:
        raise InputError(checkpoints.folder, "holds no finished checkpoint: train first")
    return found


@dataclasses.dataclass
class KeepNewestAndBest:
    """Orbax's preservation policy; validation errors are in memory, since files may be damaged."""

    newest: int
    errors_mm: dict[int, float]

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """Whether to keep each of the checkpoints, which are in ascending order."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        validated = [step for step in steps if math.isfinite(self.errors_mm.get(step, math.inf))]
        best = min(validated, key=lambda step: (self.errors_mm[step], -step), default=None)
        return [step in steps[-self.newest :] or step == best for step in steps]


class Writer:
    """Writes the checkpoints of a run; a work dir may have one writer at a time."""

    def __init__(self, workdir: Path, *, keep: int):
        self._errors_mm = Checkpoints(workdir).errors_mm()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=KeepNewestAndBest(keep, self._errors_mm),
            # Removes unfinished folders of a killed run.
            cleanup_tmp_directories=True,
        )
        self.folder = workdir.absolute() / FOLDER
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._hook, self._failed = sys.unraisablehook, False
        sys.unraisablehook = functools.partial(_without_late_answers, self._hook)

    def save(
        self,
        state: State,
        iterator: Mapping[str, Any],
        meta: Mapping[str, Any],
        mre_mm: float | None,
    ) -> None:
        """Start writing `state`; arrays are copied before this returns, so they may be donated.

        Raises:
          UnwritableError: this checkpoint, or the one before, could not be written.
        """
        self._errors_mm[int(state.step)] = math.inf if mre_mm is None else mre_mm
        arrays = {"params": state.params, "optimizer": state.optimizer}
        if state.statistics:
            arrays["statistics"] = state.statistics
        trees = {**arrays, "iterator": dict(iterator)}
        known = {
            "schema_version": SCHEMA_VERSION,
            **meta,
            "mre_mm": mre_mm,
            "digests": {name: tree_digest(tree) for name, tree in trees.items()},
        }
        with self._failing():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
                    iterator=ocp.args.JsonSave(dict(iterator)),
                    meta=ocp.args.JsonSave({"meta": known, "digest": tree_digest(known)}),
                ),
            )

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
          UnwritableError: the last checkpoint could not be written.
        """
        with self._failing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, then close.

        Raises:
          UnwritableError: the last checkpoint could not be written.
        """
        with self._failing():
            self._manager.wait_until_finished()
            self._manager.close()
        # After a failure, TensorStore's threads may still raise.
        if not self._failed:
            sys.unraisablehook = self._hook

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn errors of TensorStore and of the disk into one UnwritableError of one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._failed = True
            raise UnwritableError(
                self.folder,
                f"cannot be written ({one_line(error)}); earlier checkpoints are intact",
            ) from error


def tree_digest(tree: Any) -> str:
    """SHA-256 of a tree of arrays and JSON values: names, types, shapes and every bit."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, (jax.Array, np.ndarray)):
            array = np.ascontiguousarray(jax.device_get(leaf))
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.data)
        else:
            found.update(json.dumps(leaf).encode())
    return found.hexdigest()


def one_line(error: Exception) -> str:
    """The important part of an error whose message may have pages."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text:
        return os.strerror(errno.ENOSPC)
    return f"{type(error).__name__}: {text[:80]}"


def _without_late_answers(hook: Callable[[Any], None], failure: Any) -> None:
    """A `sys.unraisablehook` that hides exceptions of TensorStore's threads after a failure.

    The threads call an event loop that the failure has closed, and would print a trace for each
    array.
    """
    if str(failure.exc_value) != "Event loop is closed":
        hook(failure)
