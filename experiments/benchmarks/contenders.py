"""The JAX contenders: jaxmark as its training loop runs it, and the same in textbook Flax."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import Spec, Weights, example
from jax import Array, lax
from jax.sharding import AxisType
from jax.typing import DTypeLike

from jaxmark.config import Augment
from jaxmark.core.augmentation import augment, centre_crop
from jaxmark.core.heatmaps import decode_argmax, gaussians
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Batch, Method, Metrics, Params, Phase, Prediction, State, Task
from jaxmark.models.unet import ResidualUNet
from jaxmark.training.sharding import put_batch, replicated, split



class ResidualBlock(nn.Module):
    """`jaxmark.models.blocks.ResidualBlock` of Flax's own layers."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        group = math.gcd(8, self.features)
        y = nn.Conv(self.features, (3, 3, 3), use_bias=False, dtype=self.dtype)(x)
        y = nn.GroupNorm(None, group, dtype=self.dtype, name="Norm_0")(y)
        y = nn.Conv(self.features, (3, 3, 3), use_bias=False, dtype=self.dtype)(nn.relu(y))
        y = nn.GroupNorm(None, group, dtype=self.dtype, name="Norm_1")(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1, 1), use_bias=False, dtype=self.dtype)(x)
        return nn.relu(x + y)


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
        if self.head:
            x = nn.relu(nn.Conv(self.head, (1, 1, 1), dtype=self.dtype)(x))
        return nn.Conv(self.out_channels, (1, 1, 1), dtype=self.dtype)(x).astype(jnp.float32)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"jaxmark": ResidualUNet, "naive": NaiveUNet}


def network(name: str, spec: Spec, dtype: str) -> nn.Module:
    """The network of a contender."""
    return NETWORKS[name](spec.widths, spec.landmarks, spec.head, dtype=jnp.dtype(dtype))


def own_method(spec: Spec, task: Task) -> Method:
    """jaxmark's, by its public way."""
    return HeatmapRegression(
        widths=spec.widths,
        head=spec.head,
        sigma_mm=spec.sigma_mm,
        alpha=spec.alpha,
        learning_rate=spec.learning_rate,
    ).build(task)


def naive_method(spec: Spec, task: Task) -> Method:
    """The same training step and prediction with `NaiveUNet` and a target held in memory."""
    net = network("naive", spec, jnp.dtype(task.dtype).name)
    optimizer = optax.adam(spec.learning_rate)
    heatmaps: Callable[[Params, Array], Array] = net.apply  # type: ignore[assignment]

    def init(key: Array) -> State:
        params = net.init(key, jnp.zeros((1, *spec.volume, 1)))
        adam = optimizer.init(params)
        return State(jnp.zeros((), jnp.int32), {"generator": params}, {"generator": adam})

    def loss(params: Params, image: Array, target: Array, present: Array) -> Array:
        error = spec.alpha**target * (heatmaps(params, image) - target) ** 2
        return (error.mean((1, 2, 3)) * present).sum() / present.sum()

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        image, points = augment(
            key,
            batch.image,
            batch.landmarks_ijk,
            margin=spec.margin,
            spacing_mm=spec.spacing_mm,
            **vars(task.augment),
        )
        # The barrier keeps XLA from fusing the target away, as if a data loader had made it.
        target = lax.optimization_barrier(
            gaussians(points, spec.volume, spec.spacing_mm, spec.sigma_mm)
        )
        params, adam = state.params["generator"], state.optimizer["generator"]
        value, gradient = jax.value_and_grad(loss)(params, image, target, batch.present)
        update, adam = optimizer.update(gradient, adam, params)
        params = optax.apply_updates(params, update)
        new = State(state.step + 1, {"generator": params}, {"generator": adam})
        return new, {"loss": value, "gradient_norm": optax.tree.norm(gradient)}

    def predict(params: Params, image: Array) -> Prediction:
        peak, score = decode_argmax(heatmaps(params["generator"], image))
        return Prediction(argmax_ijk=peak, subvoxel_ijk=peak, score=score)

    return Method(init=init, phases=(Phase("naive", 1, step),), predict=predict)


METHODS = {"jaxmark": own_method, "naive": naive_method}


class JaxContender:
    """A method with its state on one device; lives in a `common.Worker`."""

    def __init__(self, spec: Spec, name: str):
        self.spec, self.name = spec, name
        self.mesh = jax.make_mesh(
            (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
        )
        self.batch = Batch(**put_batch(self.mesh, example(spec)))
        self.key = jax.random.key(1)
        # Of the step and prediction, by the work and the arithmetic.
        self._compiled: dict[tuple[str, str], Any] = {}
        self._state: State | None = None

    def method(self, work: str = "step", dtype: str | None = None) -> Method:
        """The method whose `work` is measured: "step", "step+translation" or "inference"."""
        voxels = self.spec.translation if work == "step+translation" else 0
        task = Task(
            landmarks=tuple(map(str, range(self.spec.landmarks))),
            crop=self.spec.volume,
            margin=self.spec.margin,
            spacing_mm=self.spec.spacing_mm,
            augment=Augment(translation_voxels=voxels),
            dtype=jnp.dtype(dtype or self.spec.dtype),
        )
        return METHODS[self.name](self.spec, task)

    def weights(self) -> Weights:
        """The same random ones for all contenders; no bias is 0 and no scale 1, to be told apart.

        Drawn by numpy: XLA takes longer to compile the initialisation than the step.
        """
        rng = np.random.default_rng(0)
        flat, _ = jax.tree_util.tree_flatten_with_path(self._shapes().params)
        shapes = {_name(path): leaf.shape for path, leaf in flat}
        return {name: draw(name, shapes[name], rng) for name in sorted(shapes)}

    def _shapes(self) -> State:
        return jax.eval_shape(self.method().init, self.key)

    def _initial(self) -> State:
        """As of `Method.init`, but for the weights: Adam starts with zeros."""
        weights = self.weights()
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._shapes())
        params = jax.tree_util.tree_map_with_path(
            lambda path, _: self._mirror(_name(path), weights[_name(path)]), state.params
        )
        return jax.device_put(state.replace(params=params), replicated(self.mesh))

    def state(self) -> State:
        """What training has come to."""
        self._state = self._state or self._initial()
        return self._state

    def compiled(self, work: str, dtype: str | None = None) -> Any:
        """The program of `work`, made as `training.loop` and `training.inference` make theirs."""
        at = (work, dtype or self.spec.dtype)
        if at not in self._compiled:
            method = self.method(*at)
            state = self._shapes()
            everywhere, shared = replicated(self.mesh), split(self.mesh)
            # float32 is for showing equality: no TensorFloat-32 then.
            exact = jax.default_matmul_precision("highest" if at[1] == "float32" else "default")
            with exact:
                if work == "inference":
                    program = jax.jit(
                        functools.partial(predict_argmax, method, self.spec.margin),
                        in_shardings=(everywhere, shared),
                        out_shardings=everywhere,
                    ).lower(state.params, self.batch.image)
                else:
                    program = jax.jit(
                        functools.partial(folded_step, method),
                        donate_argnums=0,
                        in_shardings=(everywhere, shared, everywhere),
                        out_shardings=everywhere,
                    ).lower(state, self.batch, self.key)
                self._compiled[at] = program.compile()
        return self._compiled[at]

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` in a row; the device is waited for once, at the end."""
        state, program = self.state(), self.compiled(work)
        jax.block_until_ready(state)
        result: Any = None
        begin = time.perf_counter()
        for _ in range(count):
            if work == "inference":
                result = program(state.params, self.batch.image)
            else:
                state, result = program(state, self.batch, self.key)
        jax.block_until_ready((state, result))
        seconds = time.perf_counter() - begin
        self._state = state
        return seconds

    def run_afresh(self) -> None:
        """One step from where the loop starts: with the method's own initialisation."""
        init = jax.jit(self.method().init, out_shardings=replicated(self.mesh))
        self._state = init(self.key)
        self.run("step", 1)

    def outcome(self) -> dict[str, Any]:
        """What one float32 step from the start gives; see `step.differences`."""
        state = self._initial()
        net = network(self.name, self.spec, "float32")
        image = centre_crop(self.batch.image, self.spec.margin).astype(jnp.float32)
        with jax.default_matmul_precision("highest"):
            heatmaps = np.asarray(jax.jit(net.apply)(state.params["generator"], image))
        found, _ = self.compiled("inference", "float32")(state.params, self.batch.image)
        state, metrics = self.compiled("step", "float32")(state, self.batch, self.key)
        # After one step Adam's first moment is the gradient times 1 - beta_1.
        moment = state.optimizer["generator"][0].mu
        return {
            "heatmaps": heatmaps,
            "argmax_ijk": np.asarray(found),
            "loss": np.asarray(metrics["loss"]),
            "gradient": self._flat(moment),
            "weights": self._flat(state.params["generator"]),
        }

    def memory(self, work: str) -> dict[str, int]:
        """Bytes of the compiled program: temporaries, and all that it needs at once."""
        sizes = self.compiled(work).memory_analysis()
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        temporary = sizes.temp_size_in_bytes
        return {"temp": temporary, "all": temporary + held - sizes.alias_size_in_bytes}

    def peak_bytes(self) -> int | None:
        """Most that the device has held; None where it does not say (CPU)."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def _flat(self, tree: Any) -> Weights:
        flat, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {_name(path): self._mirror(_name(path), np.asarray(leaf)) for path, leaf in flat}

    def _mirror(self, name: str, value: np.ndarray) -> np.ndarray:
        """Flax lays a transposed convolution's kernel out backwards, jaxmark and PyTorch don't."""
        backwards = self.name == "naive" and name.startswith("Up_")
        return value[::-1, ::-1, ::-1] if backwards else value


def _name(path: Any) -> str:
    """Path of a parameter, without levels that are only wrapping."""
    keys = (str(part.key) for part in path)
    return "/".join(key for key in keys if key not in ("generator", "params", "GroupNorm_0"))


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal values: kernels after He et al. 2015, biases about 0, scales about 1."""
    scale = math.sqrt(2 / math.prod(shape[:-1])) if len(shape) > 1 else 0.1
    noise = np.float32(scale) * rng.standard_normal(shape, np.float32)
    return 1 + noise if name.endswith("scale") else noise


def folded_step(
    method: Method, state: State, batch: Batch, key: Array
) -> tuple[State, dict[str, Array]]:
    """The step as `training.loop` calls it."""
    return method.phases[0].step(state, batch, jax.random.fold_in(key, state.step))


def predict_argmax(
    method: Method, margin: int, params: Params, image: Array
) -> tuple[Array, Array]:
    """Positions (B, K, 3) and scores (B, K); XLA leaves sub-voxel decoding out, as no one asks."""
    prediction = method.predict(params, centre_crop(image, margin).astype(jnp.float32))
    return prediction.argmax_ijk, prediction.score
