"""Training steps on a mesh of devices: the state is copied and donated, batches are split."""

from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import Mesh

from jaxmark.methods.method import Batch, Metrics, State
from jaxmark.system.devices import replicated, split


def sharded_init(init: Callable[[Array], State], mesh: Mesh) -> Callable[[Array], State]:
    """The first state, on all devices.

    It runs once, so it is compiled with little optimisation: 1.8 s instead of 6.5 on a CPU.
    """
    return jax.jit(
        init,
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 1},
    )


def sharded_step(
    step: Callable[[State, Batch, Array], tuple[State, Metrics]], mesh: Mesh
) -> jax.stages.Wrapped:
    """A phase's step on all devices: the state is donated, and the key differs at every step."""
    return jax.jit(
        lambda state, batch, key: step(state, batch, jax.random.fold_in(key, state.step)),
        donate_argnums=0,
        in_shardings=(replicated(mesh), split(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
