"""Convolutions that are compiled here: against the definition, and what happens without them."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core import conv, native
from jaxmark.system import compiler
from jaxmark.system.devices import local_mesh

needs_compiler = pytest.mark.skipif(
    compiler.compiler_found() is None, reason="needs a C++ compiler"
)
# Volumes and pictures, channels in and out: few planes, planes that 4 does not divide, rows longer
# than registers hold and of one voxel, channels in chunks of 16, 8, 4 and 1.
SHAPES = (
    ((2, 5, 7, 9), 16, 16),
    ((1, 3, 4, 1), 8, 16),
    ((1, 6, 5, 50), 1, 32),
    ((2, 13, 11, 7), 16, 48),
    ((1, 4, 6, 2), 24, 64),
    ((1, 40, 3, 3), 48, 8),
    ((1, 2, 12, 70), 32, 24),
    ((3, 20, 33), 32, 16),
    ((1, 3, 5), 8, 8),
    ((1, 9, 4, 6), 4, 16),
    ((1, 5, 4, 6), 20, 24),
)


@pytest.fixture
def used(monkeypatch):
    """The code is used, for shapes of any size."""
    before = dataclasses.replace(native._native)
    monkeypatch.setattr(native, "LEAST_PRODUCTS", 0)
    native.use(one_device())
    # Programs that were traced before know nothing of it, those from here are not for others.
    jax.clear_caches()
    yield
    native._native.used = before.used
    jax.clear_caches()


def one_device():
    return jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])


def in_float64(function, *arrays):
    with jax.enable_x64(True):
        return np.asarray(function(*(jnp.asarray(array, jnp.float64) for array in arrays)))


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@needs_compiler
@pytest.mark.parametrize("shape, c_in, c_out", SHAPES)
def test_value_and_gradient_are_the_definitions(used, shape, c_in, c_out):
    rng = np.random.default_rng(0)
    size = (3,) * (len(shape) - 1)
    x, dy = (rng.normal(size=(*shape, c)).astype(np.float32) for c in (c_in, c_out))
    kernel = rng.normal(size=(*size, c_in, c_out)).astype(np.float32)
    assert native.suits(jnp.asarray(x), size, c_out)
    value = native.convolve(jnp.asarray(x), jnp.asarray(kernel))
    gradient = native.weight_gradient(jnp.asarray(x), jnp.asarray(dy), size)
    expected = in_float64(lambda x, dy: conv.weight_gradient_direct(x, dy, size), x, dy)
    assert relative(value, in_float64(conv.conv_direct, x, kernel)) < 1e-5
    assert relative(gradient, expected) < 1e-5


@needs_compiler
def test_it_is_what_conv_same_and_its_gradients_run(used):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 5, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 8, 16)), jnp.float32)

    def loss(convolve, x, kernel):
        return (convolve(x, kernel) ** 3).sum()

    def gradients(convolve):
        return jax.jit(jax.grad(lambda *arrays: loss(convolve, *arrays), argnums=(0, 1)))

    program = gradients(conv.conv_same).lower(x, kernel).as_text()
    # The value, the gradient of x and that of the kernel.
    assert program.count("custom_call @jaxmark_") == 3
    found = gradients(conv.conv_same)(x, kernel)
    for mine, true in zip(found, gradients(conv.conv_direct)(x, kernel), strict=True):
        assert relative(mine, np.asarray(true)) < 1e-4
    mapped = jax.vmap(conv.conv_same, (0, None))(x[:, None], kernel)
    assert relative(mapped[:, 0], np.asarray(conv.conv_direct(x, kernel))) < 1e-5


@needs_compiler
def test_a_penalty_on_a_gradient_has_a_gradient(used):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 5, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 8, 16)), jnp.float32)

    def penalty(convolve, x, kernel):
        # All of a step of the discriminator with R1: both gradients are asked for.
        value, pull = jax.vjp(lambda x, kernel: (convolve(x, kernel) ** 3).sum(), x, kernel)
        return value + sum((gradient**2).sum() for gradient in pull(jnp.ones_like(value)))

    def gradients(convolve):
        return jax.jit(jax.grad(lambda *arrays: penalty(convolve, *arrays), argnums=(0, 1)))

    assert "custom_call @jaxmark_" in gradients(conv.conv_same).lower(x, kernel).as_text()
    found = gradients(conv.conv_same)(x, kernel)
    for mine, true in zip(found, gradients(conv.conv_direct)(x, kernel), strict=True):
        assert relative(mine, np.asarray(true)) < 1e-4


@needs_compiler
@pytest.mark.parametrize("what", ("forbidden", "two devices", "float64", "five voxels", "three"))
def test_otherwise_xla_does_it(used, monkeypatch, what):
    shape, kernel_shape, dtype = (1, 8, 6, 5, 8), [3, 3, 3, 8, 16], jnp.float32
    monkeypatch.setattr(native, "_native", dataclasses.replace(native._native))
    if what == "forbidden":
        native.forbid()
        native.use(one_device())
        assert native.state(one_device()) == "off"
    if what == "two devices":
        native.use(local_mesh())
        assert native.state(local_mesh()) == "off (needs one device)"
    if what == "float64":
        dtype = jnp.float64
    if what == "five voxels":
        kernel_shape[0] = 5
    if what == "three":
        kernel_shape[4] = 3
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = jnp.ones(shape, dtype), jnp.ones(kernel_shape, dtype)
        assert "jaxmark_" not in jax.jit(conv.conv_same).lower(x, kernel).as_text()


def fresh(monkeypatch, tmp_path, cxx):
    """As a process that has not tried yet, with an empty cache and this compiler."""
    monkeypatch.setattr(native, "_native", native._Native(used=True))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", cxx)


def test_without_a_compiler(used, monkeypatch, tmp_path):
    fresh(monkeypatch, tmp_path, "no-such-compiler")
    assert native.state(one_device()) == f"off ({compiler.NO_COMPILER})"
    assert not native.suits(jnp.ones((1, 4, 4, 4, 8)), (3, 3, 3), 8)
    assert not list(tmp_path.rglob("*.so"))


def test_on_other_cpus(used, monkeypatch, tmp_path):
    fresh(monkeypatch, tmp_path, "no-such-compiler")
    monkeypatch.setattr(compiler, "cpu", lambda: "flags : fpu sse2")
    assert native.state(one_device()) == "off (needs a CPU with AVX2)"
    monkeypatch.setattr(compiler, "cpu", lambda: "arm64")
    monkeypatch.setattr(compiler.platform, "machine", lambda: "arm64")
    assert native.state(one_device()) == "off (needs a CPU with AVX2)"


@pytest.mark.parametrize(
    "text, says", (("exit 3", "exit code 3"), ("echo x: error: no >&2; exit 1", "x: error: no"))
)
def test_a_compiler_that_fails_is_a_warning(used, monkeypatch, tmp_path, capsys, text, says):
    script = tmp_path / "bad"
    script.write_text(f'#!/bin/sh\ntest "$1" = --version && exit 0\n{text}\n')
    script.chmod(0o755)
    fresh(monkeypatch, tmp_path, str(script))
    x = jnp.ones((1, 4, 4, 4, 8))
    assert not native.suits(x, (3, 3, 3), 8)
    assert capsys.readouterr().err == (
        f"warning: convolutions are not compiled for this CPU: {script}: {says}\n"
    )
    # It is not tried again.
    assert not native.suits(x, (3, 3, 3), 8)
    assert capsys.readouterr().err == ""
    assert native.state(one_device()) == f"off ({script}: {says})"
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_code_with_wrong_sums_is_not_used(used, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(native, "_native", native._Native(used=True))
    monkeypatch.setattr(native, "convolve", lambda x, kernel: jnp.zeros((*x.shape[:-1], 16)))
    assert not native.suits(jnp.ones((1, 4, 4, 4, 8)), (3, 3, 3), 8)
    assert "wrong sums" in capsys.readouterr().err


_PROGRAM = """
import hashlib, json, os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import jax, jax.numpy as jnp, numpy as np
from jaxmark.core import conv, native
from jaxmark.system.devices import local_mesh
native.use(local_mesh())
assert native.state(local_mesh()) == "on"
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(1, 24, 20, 16, 16)), jnp.float32)
kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 16, 32)), jnp.float32)
def gradients(x, kernel):
    y, back = jax.vjp(conv.conv_same, x, kernel)
    return back(y)
program = jax.jit(gradients)
assert "jaxmark_" in program.lower(x, kernel).as_text()
print(json.dumps([hashlib.sha256(np.asarray(a).tobytes()).hexdigest() for a in program(x, kernel)]))
"""


@needs_compiler
def test_bits_do_not_depend_on_threads():
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", _PROGRAM]
    found = [
        json.loads(
            subprocess.run(
                [*command, str(threads)], env=environment, check=True, capture_output=True
            ).stdout.splitlines()[-1]
        )
        for threads in (1, len(os.sched_getaffinity(0)))
    ]
    assert found[0] == found[1]
    assert hashlib.sha256(b"").hexdigest() not in found[0]


@needs_compiler
def test_it_is_compiled_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "nothing.cc"
    source.write_text('extern "C" int seven() { return 7; }\n')
    code, digest = compiler.library(source)
    assert code.seven() == 7
    (built,) = (tmp_path / "jaxmark" / "compiled").iterdir()
    assert built.name == f"nothing-{digest}.so"
    assert "compiling nothing.cc for this CPU, once" in capsys.readouterr().out
    assert compiler.library(source)[1] == digest
    assert capsys.readouterr().out == ""
    source.write_text('extern "C" int seven() { return 8; }\n')
    assert compiler.library(source)[1] != digest


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "jaxmark").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "nothing.cc"
    source.write_text("\n")
    with pytest.raises(compiler.NoLibrary, match="jaxmark"):
        compiler.library(source)
