"""The training stream: order, resumption, shares of processes."""

import numpy as np
import pytest

from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.data.pipeline import training_batches


@pytest.fixture
def cases(tmp_path):
    found = []
    for i in range(5):
        points = np.full((2, 3), float(i))
        points[1] = np.nan
        present = np.array([True, False])
        case = PreparedCase(f"c{i}", tmp_path / f"c{i}", np.eye(4), points, present, ~present)
        save_case(case, np.full((4, 4, 4), float(i)), tmp_path)
        found.append(load_case(case.folder))
    return found


def stream(cases, **changes):
    settings = {"batch": 2, "seed": 3, "threads": 2, "prefetch": 2, **changes}
    return training_batches(cases, **settings)


def ids(batch):
    return batch["image"][:, 0, 0, 0, 0].astype(int).tolist()


def test_batches_hold_volumes_landmarks_and_presence(cases):
    batch = next(stream(cases))
    assert batch["image"].shape == (2, 4, 4, 4, 1) and batch["image"].dtype == np.float16
    assert batch["landmarks_ijk"].dtype == np.float32
    np.testing.assert_array_equal(batch["present"], [[True, False]] * 2)
    np.testing.assert_array_equal(batch["landmarks_ijk"][:, 0, 0], ids(batch))
    # An absent landmark is zero, never NaN, which would poison a masked sum.
    np.testing.assert_array_equal(batch["landmarks_ijk"][:, 1], 0)


def test_every_epoch_has_every_case_once_in_a_new_order(cases):
    seen = [i for batch, _ in zip(stream(cases), range(10), strict=False) for i in ids(batch)]
    epochs = [seen[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_is_a_function_of_the_seed_not_of_the_threads(cases):
    def order(**changes):
        return [ids(b) for b, _ in zip(stream(cases, **changes), range(8), strict=False)]

    assert order() == order(threads=4, prefetch=5)
    assert order() != order(seed=4)


def test_a_restored_iterator_continues_with_the_next_batch(cases):
    first = stream(cases)
    for _ in range(3):
        next(first)
    state = first.get_state()
    expected = [ids(next(first)) for _ in range(6)]
    second = stream(cases)
    second.set_state(state)
    assert [ids(next(second)) for _ in range(6)] == expected


def together(cases, processes, batches, state=None):
    """The batches that some processes have together, and the state of each one's iterator."""
    shares = [stream(cases, batch=4, process=p, processes=processes) for p in range(processes)]
    for share in shares:
        if state is not None:
            share.set_state(state)
    found = [[i for share in shares for i in ids(next(share))] for _ in range(batches)]
    return found, [share.get_state() for share in shares]


def test_any_number_of_processes_has_the_same_batches(cases):
    expected, _ = together(cases, 1, 10)
    assert together(cases, 2, 10)[0] == together(cases, 4, 10)[0] == expected


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 1)])
def test_another_number_of_processes_continues_with_the_next_batch(cases, before, after):
    expected, _ = together(cases, 1, 8)
    first, states = together(cases, before, 3)
    # Any process' state is that of all: the primary's is saved.
    assert all(state == states[0] for state in states)
    rest, _ = together(cases, after, 5, states[0])
    assert first + rest == expected
