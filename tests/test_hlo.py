"""Bytes counted from compiled programs against bytes counted by hand."""

# ruff: noqa: E501

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks.hlo import by_kind, kernels

# As XLA writes it for GPUs, shortened: a convolution by cuDNN, a plane of 6 that is taken out,
# squared and put back in place, asynchronously, five times; and a choice.
TEXT = """HloModule jit_f, is_scheduled=true

%fused_square (param_0: f32[6,32], param_1: s32[]) -> f32[6,32] {
  %param_0 = f32[6,32]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,32]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,32}
  %square = f32[1,32]{1,0} multiply(%row, %row)
  ROOT %put = f32[6,32]{1,0} dynamic-update-slice(%param_0, %square, %param_1, %zero)
}

%fused_pair (param_0.1: bf16[8,2]) -> (f32[8,2], bf16[4,4]) {
  %param_0.1 = bf16[8,2]{1,0} parameter(0)
  %wide = f32[8,2]{1,0} convert(%param_0.1)
  %other = bf16[4,4]{1,0} bitcast(%param_0.1)
  %turned = bf16[4,4]{1,0} transpose(%other), dimensions={1,0}
  ROOT %both = (f32[8,2]{1,0}, bf16[4,4]{1,0}) tuple(%wide, %turned)
}

%body (state: (s32[], f32[6,32])) -> (s32[], f32[6,32]) {
  %state = (s32[], f32[6,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[6,32]{1,0} get-tuple-element(%state), index=1
  %square-start = ((f32[6,32]{1,0}, s32[]), f32[6,32]{1,0}, u32[]) fusion-start(%x, %i), kind=kLoop, calls=%fused_square, metadata={op_name="jit(f)/while/body/square"}
  %square-done = f32[6,32]{1,0} fusion-done(%square-start)
  ROOT %next = (s32[], f32[6,32]{1,0}) tuple(%i, %square-done)
}

%condition (state.1: (s32[], f32[6,32])) -> pred[] {
  %state.1 = (s32[], f32[6,32]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%little (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %copied = f32[4]{0} copy(%a)
}

%much (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  %once = f32[4]{0} copy(%b)
  ROOT %twice = f32[4]{0} negate(%once)
}

ENTRY %main (p: bf16[1,4,4,4,8], k: bf16[8,3,3,3,8], x.0: f32[6,32], which: s32[], v: f32[4]) -> f32[4] {
  %p = bf16[1,4,4,4,8]{4,3,2,1,0} parameter(0)
  %k = bf16[8,3,3,3,8]{4,3,2,1,0} parameter(1)
  %x.0 = f32[6,32]{1,0} parameter(2)
  %which = s32[] parameter(3)
  %v = f32[4]{0} parameter(4)
  %conv = (bf16[1,4,4,4,8]{4,3,2,1,0}, u8[0]{0}) custom-call(%p, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convForward"
  %start = (s32[], f32[6,32]{1,0}) tuple(%which, %x.0)
  %loop = (s32[], f32[6,32]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %pair = (f32[8,2]{1,0}, bf16[4,4]{1,0}) fusion(%p), kind=kInput, calls=%fused_pair
  ROOT %choice = f32[4]{0} conditional(%which, %v, /*index=2*/%v), branch_computations={%little, %much}
}
"""


def test_a_program_by_hand() -> None:
    found = {kernel.name: kernel for kernel in kernels(TEXT)}
    assert list(found) == ["conv", "square-start", "pair", "once", "twice"]
    moved = {name: (k.kind, k.read, k.written, k.repeats) for name, k in found.items()}
    volume, taps = 2 * 4**3 * 8, 2 * 27 * 64
    assert moved == {
        "conv": ("convolution", volume + taps, volume, 1),
        # A row and its number are read, the row is written; the others stay.
        "square-start": ("elementwise", 4 * 32 + 4, 4 * 32, 5),
        "pair": ("copy", 2 * 16, 4 * 16 + 2 * 16, 1),
        # The branch that moves more.
        "once": ("copy", 16, 16, 1),
        "twice": ("elementwise", 16, 16, 1),
    }
    assert found["square-start"].source == "jit(f)/while/body/square"
    assert by_kind(list(found.values())) == {
        "convolution": 2 * volume + taps,
        "product": 0,
        "reduction": 0,
        "copy": 32 + 96 + 32,
        "elementwise": 5 * (4 * 32 + 4 + 4 * 32) + 32,
    }


def test_a_program_of_this_machine() -> None:
    def function(x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
        rows = x * 2 + y
        total, _ = jax.lax.scan(
            lambda c, row: (c + jnp.tanh(row @ w).sum(0), None), jnp.zeros(64), rows
        )
        return total

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 32, 48), (6, 32, 48), (48, 64))]
    moved = by_kind(kernels(jax.jit(function).lower(*shapes).compile().as_text()))
    row, hidden, weights = 4 * 32 * 48, 4 * 32 * 64, 4 * 48 * 64
    # Some bytes more are the loop's counters.
    assert moved["product"] == 6 * (row + weights + hidden)
    assert moved["reduction"] == 6 * (hidden + 2 * 4 * 64)
    assert 3 * 6 * row <= moved["elementwise"] <= 3 * 6 * row + 200
    assert 6 * 2 * row <= moved["copy"] <= 6 * 2 * row + 4 * 64 + 200


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        kernels("HloModule jit_f\n")
    endless = TEXT.replace('"known_trip_count":{"n":"5"}', "")
    with pytest.raises(ValueError, match="loop: a loop of unknown length"):
        kernels(endless)
