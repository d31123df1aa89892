"""Orbax checkpoints: one folder a step, with separate items, so that each reader takes its part.

`params` (all that prediction needs), `optimizer`, `iterator` (the data iterator's state) and `meta`
(step, phase, the whole config). Writing is asynchronous and atomic: a folder with its final name is
whole. The newest ones and the best on validation are kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from jaxmark.core.errors import InputError
from jaxmark.methods.method import Params, State
from jaxmark.training.sharding import replicated

METRIC = "validation_mre_mm"


class Checkpoints:
    """The checkpoints of a work dir, `<workdir>/checkpoints`."""

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        self.folder = workdir.absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise InputError(self.folder, "no checkpoints: train first")
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            reverse=True,  # ascending order puts the best last, and an error is better when smaller
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            read_only=read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the smallest validation error; the newest one where none was validated."""
        best = self._manager.best_step()
        return self.latest_step() if best is None else best

    def save(
        self,
        state: State,
        iterator: Mapping[str, Any],
        meta: Mapping[str, Any],
        mre_mm: float | None,
    ) -> None:
        """Start writing `state`; arrays are copied before this returns, so they may be donated."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.optimizer),
                iterator=ocp.args.JsonSave(dict(iterator)),
                meta=ocp.args.JsonSave(dict(meta)),
            ),
            metrics=None if mre_mm is None else {METRIC: mre_mm},
        )

    def meta(self, step: int) -> dict[str, Any]:
        """The `meta` item of a step."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def restore(self, step: int, abstract: State, mesh: Mesh) -> tuple[State, dict[str, Any]]:
        """The state of a step on `mesh`, and the state of the data iterator."""
        like = _on(mesh, abstract)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                optimizer=ocp.args.StandardRestore(like.optimizer),
                iterator=ocp.args.JsonRestore(),
            ),
        )
        count = jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh))
        state = State(step=count, params=items["params"], optimizer=items["optimizer"])
        return state, items["iterator"]

    def restore_params(self, step: int, abstract: Params, mesh: Mesh) -> Params:
        """The parameters alone, onto whatever devices `mesh` has."""
        items = self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_on(mesh, abstract)))
        )
        return items["params"]

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _on(mesh: Mesh, abstract: Any) -> Any:
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
