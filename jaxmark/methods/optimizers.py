"""Optimisers and learning rates that methods share."""

from typing import Any

import jax
import optax


def clipped(norm: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser of gradients of at most this norm; 0: of any."""
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
    """The optimiser of a loss to which half the squared norm of all kernels times `decay` is added.

    Biases, scales and what else is learned do not decay.
    """
    return optax.chain(
        optax.add_decayed_weights(decay, mask=kernels) if decay else optax.identity(), optimizer
    )


def kernels(tree: Any) -> Any:
    """True at the kernels of a tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", tree
    )
