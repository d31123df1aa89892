"""What there is of memory, what programs need of it, and which batch fits."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxmark.system import memory
from jaxmark.system.devices import local_mesh
from jaxmark.system.errors import InputError
from jaxmark.system.memory import (
    Demand,
    bytes_at_once,
    device_bytes,
    gigabytes,
    largest_batch,
    machine_bytes,
    ran_out,
)


def looked_at(function, limit, most):
    """The batch that was found, and how many were looked at."""
    batches = []

    def bytes_of(batch):
        batches.append(batch)
        return int(function(batch))

    return largest_batch(bytes_of, limit, most), batches


@pytest.mark.parametrize(
    ("limit", "most", "found"),
    [(99, 10, 0), (110, 10, 1), (159, 10, 5), (160, 10, 6), (1e6, 10, 10), (1e6, 1, 1)],
)
def test_of_linear_memory_the_largest_batch_takes_three_programs(limit, most, found):
    assert 100 + 10 * found <= limit or not found
    largest, batches = looked_at(lambda batch: 100 + 10 * batch, limit, most)
    assert largest == found and len(batches) <= 3


@pytest.mark.parametrize(
    "function",
    [
        lambda batch: batch**2,
        lambda batch: 100 * math.sqrt(batch),
        lambda batch: 50 + 8 * batch + 60 * (batch > 5),
        lambda batch: 2 ** (4 * batch),
        lambda batch: 5 * batch if batch < 60 else 10**18,
    ],
)
def test_of_other_memory_a_batch_is_found_that_fits_and_is_nearly_the_largest(function):
    limit = 500
    largest, batches = looked_at(function, limit, 200)
    true = max(batch for batch in range(1, 201) if function(batch) <= limit)
    assert function(largest) <= limit and 0.8 * true <= largest <= true
    assert len(batches) <= 8


def test_the_machine_s_memory_is_no_more_than_its_container_may_use(tmp_path):
    whole = machine_bytes(())
    assert whole > 1e8
    limit, none = tmp_path / "memory.max", tmp_path / "none.max"
    limit.write_text("50000000\n")
    none.write_text("max\n")
    assert machine_bytes((limit, none, tmp_path / "absent")) == 50_000_000
    assert machine_bytes((none,)) == whole
    assert device_bytes(local_mesh()) == machine_bytes() // len(jax.local_devices())


def test_figures_are_readable():
    assert [gigabytes(n) for n in (72_842_000_000_000, 41_300_000_000, 2_000_000)] == [
        "72,842.0 GB",
        "41.3 GB",
        "0.002 GB",
    ]


@pytest.fixture
def demand():
    """A program that sorts 4096^B numbers for a batch of B: over a petabyte for four."""

    @jax.jit
    def program(batch):
        values = jnp.arange(2 ** (12 * len(batch)), dtype=jnp.float32) * batch.sum()
        return jnp.sort(values)[::2]

    return lambda batch: Demand(
        field="config.train.batch",
        batch=batch,
        what="a step",
        case=lambda: jnp.zeros((), jnp.float32),
        program=program.lower,
        mesh=local_mesh(),
        less="a smaller config.data.crop needs less",
    )


def test_bytes_are_the_compiler_s_and_of_shapes_alone(demand):
    one, two, four = (demand(1).bytes_of(batch) for batch in (1, 2, 4))
    assert one < two < four
    assert two >= 4 * 2**24 and four >= 4 * 2**48


@pytest.fixture
def ten_gigabytes(monkeypatch):
    """Of each device."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: len(jax.local_devices()) * 10**10)


def test_running_out_of_memory_names_the_batch_that_fits(demand, ten_gigabytes):
    program = demand(4).program(jnp.ones(4)).compile()
    with pytest.raises(InputError) as caught, demand(4).watched():
        jax.block_until_ready(program(jnp.ones(4)))
    # No imitation: XLA asked the system for a petabyte.
    assert ran_out(caught.value.__cause__)
    needs = gigabytes(bytes_at_once(program))
    assert str(caught.value) == (
        f"config.train.batch: a step needs {needs}, the device has 10.0 GB; 2 fits "
        "(--config.train.batch=2)"
    )


def test_where_no_batch_fits_other_settings_are_named(demand, monkeypatch):
    # A step on one case takes more, since it sorts 4096 numbers.
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1000)
    with pytest.raises(
        InputError, match=r"not even \d fits; a smaller config\.data\.crop"
    ) as caught:
        demand(400).check_arrays()
    assert "the arrays of 400 cases are" in str(caught.value)


def test_where_the_count_says_that_a_batch_fits_half_of_it_is_proposed(demand, monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10**18 * len(jax.local_devices()))
    with pytest.raises(InputError, match=r"not all of it free; .*\(--config\.train\.batch=2\)"):
        with demand(4).watched():
            raise MemoryError
    with pytest.raises(RuntimeError, match="another"), demand(4).watched():
        raise RuntimeError("another error")


def test_before_the_first_step_a_cpu_warns_and_an_accelerator_refuses(
    demand, ten_gigabytes, capsys, monkeypatch
):
    fits, too_large = (demand(n).program(jnp.ones(n)).compile() for n in (2, 4))
    demand(4).check(too_large)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: config.train.batch: a step needs 1,")
    assert "the machine has 10.0 GB" in warning
    monkeypatch.setattr(memory, "platform", lambda mesh: "gpu")
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: 10**10)
    with pytest.raises(InputError, match=r"2 fits \(--config\.train\.batch=2\)"):
        demand(4).check(too_large)
    demand(2).check(fits)
    assert not capsys.readouterr().err
