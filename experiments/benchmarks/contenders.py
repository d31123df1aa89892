"""The JAX contenders: jaxmark as its training loop runs it, and the same in textbook Flax."""

import math
import re
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from experiments.benchmarks.common import Spec, Weights, example
from jaxmark.config import Augment
from jaxmark.core import native
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.augmentation import centre_crop
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import (
    Batch,
    Method,
    Metrics,
    Params,
    Phase,
    Prediction,
    State,
    Task,
    Variables,
    whole_volume_stage,
)
from jaxmark.models.unet import ResidualUNet
from jaxmark.system.devices import local_mesh
from jaxmark.system.memory import bytes_at_once
from jaxmark.training.sharding import sharded_init


class ResidualBlock(nn.Module):
    """`jaxmark.models.blocks.ResidualBlock` of Flax's own layers."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self._norm(self._conv(x, 3), "Norm_0")
        y = self._norm(self._conv(nn.relu(y), 3), "Norm_1")
        if x.shape[-1] != self.features:
            x = self._conv(x, 1)
        return nn.relu(x + y)

    def _conv(self, x: Array, kernel: int) -> Array:
        return nn.Conv(self.features, (kernel,) * 3, use_bias=False, dtype=self.dtype)(x)

    def _norm(self, x: Array, name: str) -> Array:
        size = math.gcd(8, self.features)
        return nn.GroupNorm(num_groups=None, group_size=size, dtype=self.dtype, name=name)(x)


class NaiveUNet(nn.Module):
    """`jaxmark.models.unet.ResidualUNet` of Flax's own layers; same names, shapes and results."""

    widths: tuple[int, ...]
    out_channels: int
    head: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        skips = []
        for width in self.widths[:-1]:
            x = ResidualBlock(width, self.dtype)(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2, 2), (2, 2, 2))
        x = ResidualBlock(self.widths[-1], self.dtype)(x)
        for number, skip in enumerate(reversed(skips)):
            width = skip.shape[-1]
            up = nn.ConvTranspose(
                width, (2, 2, 2), (2, 2, 2), use_bias=False, dtype=self.dtype, name=f"Up_{number}"
            )
            # jaxmark scales this kernel by sqrt(8). Adam would notice if the weights were scaled.
            x = jnp.concatenate([up(x * math.sqrt(8)), skip], axis=-1)
            x = ResidualBlock(width, self.dtype)(x)
        x = nn.relu(nn.Conv(self.head, (1, 1, 1), dtype=self.dtype)(x))
        return nn.Conv(self.out_channels, (1, 1, 1), dtype=self.dtype)(x).astype(jnp.float32)


def network(name: str, spec: Spec, dtype: DTypeLike) -> ResidualUNet | NaiveUNet:
    """A contender's network: volumes (B, X, Y, Z, 1) -> heatmaps (B, X, Y, Z, K)."""
    kind = {"jaxmark": ResidualUNet, "naive": NaiveUNet}[name]
    return kind(spec.widths, spec.landmarks, spec.head, dtype=dtype)


def task(spec: Spec, dtype: DTypeLike) -> Task:
    """What a method has to find; the crop stays in the middle."""
    return Task(
        scheme=scheme_of([str(k) for k in range(spec.landmarks)]),
        crop=spec.volume,
        margin=spec.margins,
        spacing_mm=spec.spacing_mm,
        augment=Augment(translation_voxels=0),
        platform=spec.platform,
        dtype=dtype,
    )


def own_method(spec: Spec, dtype: DTypeLike) -> Method:
    """jaxmark's, by its public way."""
    names = ("widths", "head", "sigma_mm", "alpha", "learning_rate")
    settings = HeatmapRegression(**{name: getattr(spec, name) for name in names})
    return settings.build(task(spec, dtype))


def gaussians(points: Array, spec: Spec) -> Array:
    """Targets (B, X, Y, Z, K) of points (B, K, 3) in voxels."""
    scaled = points * jnp.asarray(spec.spacing_mm) / spec.sigma_mm
    x, y, z = (
        jnp.exp(
            -0.5 * (jnp.arange(n)[:, None] * mm / spec.sigma_mm - scaled[:, None, :, axis]) ** 2
        )
        for axis, (n, mm) in enumerate(zip(spec.volume, spec.spacing_mm, strict=True))
    )
    return x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]


def naive_method(spec: Spec, dtype: DTypeLike) -> Method:
    """The same training step and prediction with `NaiveUNet` and a target held in memory."""
    net, margin = network("naive", spec, dtype), spec.margins
    optimizer = optax.adam(spec.learning_rate)

    def init(key: Array) -> State:
        params = {"generator": net.init(key, jnp.zeros((1, *spec.volume, 1)))}
        adam = {"generator": optimizer.init(params)}
        return State(step=jnp.zeros((), jnp.int32), params=params, optimizer=adam)

    def loss(params: Params, image: Array, target: Array, present: Array) -> Array:
        heatmaps: Any = net.apply(params["generator"], image)
        error = (spec.alpha**target * (heatmaps - target) ** 2).mean((1, 2, 3))
        return (error * present).sum() / present.sum()

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        del key
        image = centre_crop(batch.image, margin).astype(jnp.float32)
        points = batch.landmarks_ijk - jnp.array(spec.margins)
        # The barrier keeps XLA from fusing the target away, as if a data loader had made it.
        target = lax.optimization_barrier(gaussians(points, spec))
        value, gradient = jax.value_and_grad(loss)(state.params, image, target, batch.present)
        adam = state.optimizer["generator"]
        update, adam = optimizer.update(gradient, adam, state.params)
        params = optax.apply_updates(state.params, update)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        new = State(step=state.step + 1, params=params, optimizer={"generator": adam})
        return new, metrics

    def predict(variables: Variables, image: Array) -> Prediction:
        heatmaps: Any = net.apply(variables.params["generator"], image)
        flat = heatmaps.reshape(len(image), -1, spec.landmarks)
        peak = jnp.stack(jnp.unravel_index(flat.argmax(1), spec.volume), axis=-1)
        return Prediction({"argmax": peak}, score=flat.max(1), evidence=flat.max(1))

    stages = whole_volume_stage(task(spec, dtype), predict)
    return Method(init=init, phases=(Phase("naive", 1, step),), stages=stages)


METHODS = {"jaxmark": own_method, "xla": own_method, "naive": naive_method}


class JaxContender:
    """ "jaxmark", "xla" or "naive" with its state on one device; lives in a `timing.Worker`."""

    phase = 0  # of the method: the one whose step is run

    def __init__(self, spec: Spec, name: str):
        self.spec, self.name = spec, name
        native.forbid(name == "xla")
        native.use(local_mesh())
        self.batch = Batch(**jax.device_put(example(spec)))
        self.key = jax.random.key(1)
        self.shapes = jax.eval_shape(self.method(spec.dtype).init, self.key)
        self.state = self.initial()
        self._programs: dict[tuple[str, str], Any] = {}

    def method(self, dtype: str) -> Method:
        """The contender's, in this arithmetic."""
        return METHODS[self.name](self.spec, jnp.dtype(dtype))

    def initial(self) -> State:
        """As of `Method.init` but with `weights()`: Adam starts with zeros."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.shapes)
        flat = flatten_dict(self.shapes.params, sep="/")
        weights = self._mirror(self.weights())
        params = unflatten_dict({name: jnp.asarray(weights[short(name)]) for name in flat}, sep="/")
        return zeros.replace(params=params)

    def weights(self) -> Weights:
        """The same random ones for all contenders: kernels after He et al. 2015, biases about 0,
        scales about 1 (not exactly, or two of them swapped would not be seen).
        """
        rng = np.random.default_rng(0)
        found = {}
        leaves = {short(k): v for k, v in flatten_dict(self.shapes.params, sep="/").items()}
        for name, leaf in sorted(leaves.items()):
            deviation = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
            noise = np.float32(deviation) * rng.standard_normal(leaf.shape, np.float32)
            found[name] = noise + name.endswith("scale")
        return found

    def program(self, work: str, dtype: str) -> Any:
        """`work`, compiled as `training.loop` and `training.inference` do for one device."""
        if (work, dtype) not in self._programs:
            with self._precision(dtype):
                traced = self.traced(work, dtype, (self.shapes, self.batch, self.key))
                self._programs[work, dtype] = traced.compile()
        return self._programs[work, dtype]

    def traced(self, work: str, dtype: str, data: tuple[State, Batch, Array]) -> Any:
        """`work` on such data (arrays, or their shapes and where they are), not compiled yet."""
        method = self.method(dtype)
        phase = method.phases[self.phase]
        state, batch, key = data

        def train(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
            return phase.step(state, batch, jax.random.fold_in(key, state.step))

        def predict(variables: Variables, image: Array) -> tuple[Any, ...]:
            found = method.stages[0].run(variables, {"image": image})
            # XLA leaves sub-voxel decoding out, as nothing asks for it.
            return found.positions_ijk["argmax"], found.score, found.maps, found.probabilities

        if work == "inference":
            return jax.jit(predict).lower(state.variables, batch.image)
        return jax.jit(train, donate_argnums=0).lower(state, batch, key)

    def prepare(self, work: str) -> float:
        """Seconds to trace and compile what `run` runs."""
        begin = time.perf_counter()
        self.program(work, self.spec.dtype)
        return time.perf_counter() - begin

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` in a row; the device is waited for once, at the end."""
        program = self.program(work, self.spec.dtype)
        state = jax.block_until_ready(self.state)
        result: Any = None
        begin = time.perf_counter()
        for _ in range(count):
            if work == "inference":
                result = program(state.variables, self.batch.image)
            else:
                state, result = program(state, self.batch, self.key)
        jax.block_until_ready((state, result))
        seconds = time.perf_counter() - begin
        self.state = state
        return seconds

    def run_afresh(self) -> None:
        """One step from where the loop starts."""
        self.state = self.afresh()
        self.run("step", 1)

    def afresh(self) -> State:
        """As the method itself initialises it."""
        mesh = Mesh(jax.devices()[:1], ("data",))
        return sharded_init(self.method(self.spec.dtype).init, mesh)(self.key)

    def outcome(self, dtype: str) -> dict[str, Any]:
        """What one step and inference from the same start give; see `step.differences`."""
        state = self.initial()
        image = centre_crop(self.batch.image, self.spec.margins).astype(jnp.float32)
        image = task(self.spec, jnp.dtype(dtype)).squeezed(image)
        with self._precision(dtype):
            heatmaps = np.asarray(self.heatmaps(state, image, dtype))
        found, *_ = self.program("inference", dtype)(state.variables, self.batch.image)
        state, metrics = self.program("step", dtype)(state, self.batch, self.key)
        # After one step Adam's first moment is the gradient times 1 - beta_1.
        moments = {k: optax.tree.get(v, "mu") for k, v in state.optimizer.items()}
        return {
            "heatmaps": heatmaps,
            "argmax_ijk": np.asarray(found),
            "loss": np.asarray(metrics["loss"]),
            "gradient": self._flat(moments),
            "weights": self._flat(state.params),
        }

    def heatmaps(self, state: State, image: Array, dtype: str) -> Array:
        """(B, X, Y, Z, K), or of pictures (B, X, Y, K)."""
        kind = "naive" if self.name == "naive" else "jaxmark"
        apply = jax.jit(network(kind, self.spec, jnp.dtype(dtype)).apply)
        return jnp.asarray(apply(state.params["generator"], image))

    def memory(self, work: str = "step") -> int:
        """Bytes that it needs at once."""
        return bytes_at_once(self.program(work, self.spec.dtype))

    def _precision(self, dtype: str) -> Any:
        """What is timed is left as it is; equality on a GPU is shown without TensorFloat-32."""
        return jax.default_matmul_precision(None if dtype == self.spec.dtype else "highest")

    def _flat(self, tree: Any) -> Weights:
        flat = flatten_dict(tree, sep="/")
        return self._mirror({short(name): np.asarray(leaf) for name, leaf in flat.items()})

    def _mirror(self, weights: Weights) -> Weights:
        """Flax lays a transposed convolution's kernel out backwards; jaxmark and PyTorch don't."""
        if self.name != "naive":
            return weights
        return {k: v[::-1, ::-1, ::-1] if "Up_" in k else v for k, v in weights.items()}


def short(name: str) -> str:
    """Of a parameter, without the levels that only wrap it."""
    levels = "ResidualBlock|Up|Layer|FeatureFilter|Conv|Norm|Strided|Dense"
    kept = rf"\bdiscriminator|(?:{levels})_\d+|kernel|bias|scale"
    return "/".join(re.findall(kept, name))
