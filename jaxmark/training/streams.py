"""The streams of batches for the phases of a method."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmark.config import Experiment, Train
from jaxmark.data.cases import HostBatch, PreparedCase
from jaxmark.data.pipeline import streamed_batches, training_batches
from jaxmark.data.stream import Order, drawing_pool
from jaxmark.methods.method import Phase


class Streams(contextlib.AbstractContextManager["Streams"]):
    """Batches of all phases. Phases with the same `read`, `draw` and batch size share a stream.

    Streams have numbers, in the order in which phases begin them. A stream's batches depend on the
    run's seed and the stream's number; those of the first on the seed alone. Processes draw the
    cases of phases with a `draw`; they end with the context.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        cases: Sequence[PreparedCase],
        experiment: Experiment,
        states: Mapping[str, Any],
    ):
        self._cases, self._settings, self._seed = cases, experiment.train, experiment.seed
        self._stream, self._workers = experiment.stream, experiment.data.workers
        self._processes = contextlib.ExitStack()
        self._kinds = list(dict.fromkeys(self._kind(phase) for phase in phases))
        self._states = dict(states)
        self._name = ""
        self._iterator: Any = None

    def of(self, phase: Phase) -> Iterator[HostBatch]:
        """The phase's batches, from the current position of its stream; other streams wait."""
        number = self._kinds.index(self._kind(phase))
        if str(number) != self._name:
            self._states = self.states()
            self._name = str(number)
            self._iterator = self._begin(phase, _seed(self._seed, number))
            if self._name in self._states:
                self._iterator.set_state(self._states[self._name])
        assert self._iterator is not None
        return self._iterator

    def states(self) -> dict[str, Any]:
        """The position of each stream that was begun, as JSON types."""
        if self._iterator is None:
            return dict(self._states)
        return {**self._states, self._name: self._iterator.get_state()}

    def __exit__(self, *error: object) -> None:
        self._processes.__exit__(*error)  # type: ignore[arg-type]

    def _begin(self, phase: Phase, seed: int) -> Any:
        """A new stream."""
        shared = {
            "batch": batch_size(phase, self._settings),
            "threads": self._settings.loader_threads,
            "prefetch": self._settings.prefetch,
            "process": jax.process_index(),
            "processes": jax.process_count(),
        }
        # End the processes of the stream before.
        self._processes.close()
        if phase.draw is None:
            return training_batches(self._cases, seed=seed, read=phase.read, **shared)
        order = Order(seed, self._stream.window, self._stream.reuse)
        pool = self._processes.enter_context(drawing_pool(self._workers))
        return streamed_batches(phase.draw, order, pool, **shared)

    def _kind(self, phase: Phase) -> tuple[Any, ...]:
        return phase.read, phase.draw, batch_size(phase, self._settings)


def batch_size(phase: Phase, settings: Train) -> int:
    """Cases that a step of the phase takes, over all devices."""
    return phase.batch or settings.batch


def _seed(seed: int, number: int) -> int:
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
