"""Optimisers, learning rates and the training step of one network, shared by methods."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmark.methods.method import Batch, Metrics, Params, State


def clipped(norm: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser after clipping gradients to this norm; 0: no clipping."""
    return optax.chain(optax.clip_by_global_norm(norm), optimizer) if norm else optimizer


def cosine_at_the_end(peak: float, steps: int, share: float) -> optax.Schedule:
    """A constant rate, then a cosine to zero over the last `share` of the steps."""
    if not share:
        return optax.constant_schedule(peak)
    start = round(steps * (1 - share))
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, max(1, steps - start))],
        [start],
    )


def nesterov(rate: optax.ScalarOrSchedule, momentum: float = 0.99) -> optax.GradientTransformation:
    """Gradient descent with Nesterov's momentum."""
    return optax.sgd(rate, momentum=momentum, nesterov=True)


def decayed(decay: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser of a loss plus `decay` times half the squared norm of all kernels.

    Biases, scales and other parameters do not decay.
    """
    return optax.chain(
        optax.add_decayed_weights(decay, mask=kernels) if decay else optax.identity(), optimizer
    )


def kernels(tree: Any) -> Any:
    """True at the kernels of a tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", tree
    )


def adams(
    rates: Mapping[str, tuple[float, int]], decay: float, norm: float
) -> dict[str, optax.GradientTransformation]:
    """Adam for each network, by its rate and steps; see `cosine_at_the_end` and `clipped`."""
    return {
        name: clipped(norm, optax.adam(cosine_at_the_end(rate, steps, decay)))
        for name, (rate, steps) in rates.items()
    }


# Statistics of a method whose second network refines the first one's landmarks. 0: the second
# network is not trained yet, and its output is ignored. 1: it is trained.
NOT_REFINED = {"refine": 0.0}


def refined(statistics: dict[str, Any]) -> dict[str, Any]:
    """The statistics after a step of the second network; see `NOT_REFINED`."""
    return {"refine": jnp.ones_like(statistics["refine"])}


def untrained(
    params: dict[str, Params],
    optimizers: Mapping[str, optax.GradientTransformation],
    statistics: Mapping[str, float],
) -> State:
    """The state before the first step, for networks with one optimiser each."""
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer={name: optimizers[name].init(params[name]) for name in optimizers},
        statistics={name: jnp.asarray(value) for name, value in statistics.items()},
    )


def descent(
    name: str,
    loss: Callable[[Params, Batch, Array], tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    statistics: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found,
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A training step of the network `name`; a state's other networks stay as they are.

    `loss(params, batch, key)` returns the loss and further metrics. `statistics` maps a state's
    statistics to those after the step.
    """

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        params, opt_state = state.params[name], state.optimizer[name]
        (value, parts), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        update, opt_state = optimizer.update(gradient, opt_state, params)
        new = State(
            step=state.step + 1,
            params={**state.params, name: optax.apply_updates(params, update)},
            optimizer={**state.optimizer, name: opt_state},
            statistics=statistics(state.statistics),
        )
        return new, {"loss": value, **parts, "gradient_norm": optax.tree.norm(gradient)}

    return step
