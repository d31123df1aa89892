"""Orbax checkpoints: one folder a step, with separate items, so that each reader takes its part.

`params` and, of a method that has any, `statistics` (all that prediction needs), `optimizer`,
`iterator` (the data streams' states) and `meta` (the whole config, and more). Writing is
asynchronous, and a folder with its final name is whole. The newest ones and the best on validation
are kept.

What a disk does to a file later is not seen by Orbax, so `meta` holds a digest of every item. A
checkpoint that cannot be read, or is not what was saved, is damaged: the next best is taken, and a
warning says so.
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
# Where training puts what it found damaged, so that its step can be saved again.
DAMAGED = "damaged_checkpoints"

# Of `meta`. Before 3, statistics lay among the parameters, and there was one stream of batches.
SCHEMA_VERSION = 3

T = TypeVar("T")


class DamagedError(InputError):
    """A checkpoint can't be read, or is not what was saved."""


class Checkpoints:
    """The checkpoints of a work dir, to be read; steps of what is being written don't count."""

    def __init__(self, workdir: Path):
        self.folder = workdir.absolute() / FOLDER
        self._damaged = workdir.absolute() / DAMAGED

    def steps(self) -> list[int]:
        """Ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays, with its `mre_mm` and `digests`."""
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
        """The file of `meta` for others: its config as `public` has it, and no case by name."""
        meta = self.meta(step)
        meta = {**meta, "config": public(meta["config"]), "data": {}, "recent": []}
        return json.dumps({"meta": meta, "digest": tree_digest(meta)}).encode()

    def variables(self, step: int, abstract: Variables, mesh: Mesh) -> Variables:
        """What prediction needs alone, onto whatever devices `mesh` has."""
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
        """Step -> its validation error; infinite where it was not validated, or can't be read."""
        known = dict.fromkeys(self.steps(), math.inf)
        for step in known:
            with contextlib.suppress(DamagedError):
                error = self.meta(step)["mre_mm"]
                known[step] = math.inf if error is None else float(error)
        return known

    def best_first(self) -> list[int]:
        """Steps by their validation error, then those that were not validated, newest first."""
        errors = self.errors_mm()
        return sorted(errors, key=lambda step: (errors[step], -step))

    def first_whole(self, steps: Iterable[int], read: Callable[[int], T]) -> tuple[int, T] | None:
        """The first step that `read` finds whole, and what it read; None without any step.

        Raises:
          InputError: all are damaged, or processes disagree about it.
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
                self.folder, "all checkpoints are damaged; to begin anew use another --workdir"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Move what is newer than the step out of the way; it was found damaged."""
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
        except Exception as error:  # whatever TensorStore, zlib or JSON make of a broken file
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
    """The step and variables of a work dir's "best" checkpoint on validation, or the "last" one.

    `init` is the method's, which knows how they lie.
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
    """Orbax's preservation policy; errors are not asked of files, which may be damaged."""

    newest: int
    errors_mm: dict[int, float]

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """Of checkpoints in ascending order."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        validated = [step for step in steps if math.isfinite(self.errors_mm.get(step, math.inf))]
        best = min(validated, key=lambda step: (self.errors_mm[step], -step), default=None)
        return [step in steps[-self.newest :] or step == best for step in steps]


class Writer:
    """Writes the checkpoints of a run; only one at a time may."""

    def __init__(self, workdir: Path, *, keep: int):
        self._errors_mm = Checkpoints(workdir).errors_mm()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=KeepNewestAndBest(keep, self._errors_mm),
            # What a run that was killed had begun to write.
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
        """Returns when everything is written.

        Raises:
          UnwritableError: the last checkpoint could not be written.
        """
        with self._failing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, and end.

        Raises:
          UnwritableError: the last checkpoint could not be written.
        """
        with self._failing():
            self._manager.wait_until_finished()
            self._manager.close()
        # After a failure answers may still come.
        if not self._failed:
            sys.unraisablehook = self._hook

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """In this block what TensorStore or the disk has to say becomes one line."""
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
    """What matters of messages that go on over pages."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text:
        return os.strerror(errno.ENOSPC)
    return f"{type(error).__name__}: {text[:80]}"


def _without_late_answers(hook: Callable[[Any], None], failure: Any) -> None:
    """A hook for exceptions that nobody can catch, of threads of TensorStore.

    They answer an event loop that a failure has closed, and would print a trace for each array.
    """
    if str(failure.exc_value) != "Event loop is closed":
        hook(failure)
