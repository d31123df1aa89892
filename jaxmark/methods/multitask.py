"""Landmarks, artery segments and anatomical variants from one network (Tan et al., ISBI 2022).

Four branches share a residual U-Net: heatmaps, a segmentation into the scheme's segments and
background, and two classifications: which segments exist, and at which landmarks arteries fork.
Where a segment is missing, arteries do not fork at its ends; so the two classifications must agree,
which is the loss of Eq. 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmark.bounds import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Problem,
    check,
    divisible,
    either,
    positive_numbers,
    setting,
    volumes_only,
)
from jaxmark.core.heatmaps import decode
from jaxmark.core.losses import (
    attribute_loss,
    balanced_heatmap_loss,
    heatmap_cross_entropy,
    orientation_loss,
    segmentation_cross_entropy,
    segmentation_sums,
    self_consistency_loss,
    weighted_dice_loss,
)
from jaxmark.core.orientation import vessel_axes
from jaxmark.core.slabs import join_slabs, map_slabs
from jaxmark.data.cases import read_case_and_attributes, read_segmented_case
from jaxmark.methods.method import (
    FORKS,
    GRADIENT,
    LABEL_MAPS,
    LOSS,
    SEGMENTATION,
    SEGMENTS,
    SEGMENTS_ABSENT,
    SEGMENTS_PRESENT,
    Batch,
    Method,
    Metrics,
    Params,
    Phase,
    Prediction,
    State,
    Task,
    whole_volume_stage,
)
from jaxmark.methods.optimizers import clipped, cosine_at_the_end, descent
from jaxmark.methods.views import augmented
from jaxmark.models.blocks import append_coordinates
from jaxmark.models.multitask import MultitaskUNet


@dataclasses.dataclass
class Multitask:
    """Settings. The paper states the tasks and their losses, Adam, its rate and betas, 150 epochs.

    Weights of the tasks, widths and sigma are ours; comments name what else is. A task of weight 0
    has no branch, and its annotations are not read.
    """

    steps: int = setting(7_500, POSITIVE)  # 150 epochs of the paper's 50 scans
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), positive_numbers("and head need positive numbers of channels")
    )
    # Channels of a 1^3 layer before the last layer of each branch with voxels; 0: none.
    head: int = setting(64, NOT_NEGATIVE)
    # Give the network each voxel's place in the volume: for registered cohorts. Paper: no.
    coordinates: bool = False
    # Keep fewer activations for the gradient and compute them twice.
    remat: bool = False
    sigma_mm: float = setting(1.5, POSITIVE)
    # "balanced_l2" (the paper's) or "cross_entropy" (of a softmax over all voxels; ours).
    heatmap_loss: str = setting("balanced_l2", either("balanced_l2", "cross_entropy"))
    # Squared error, Dice and the cross-entropy of labels are weighted by the ratio of background to
    # foreground voxels to this power; the paper: 1. 0: all voxels alike.
    balance: float = setting(1.0, NOT_NEGATIVE)
    # Weights of the tasks in the sum of losses; the heatmaps' is 1.
    segmentation: float = setting(1.0, NOT_NEGATIVE)
    fork_attributes: float = setting(0.1, NOT_NEGATIVE)
    segment_attributes: float = setting(0.1, NOT_NEGATIVE)
    consistency: float = setting(0.1, NOT_NEGATIVE)
    # Regression of the vessels' axes, the method that the paper compares with. The paper's own: 0.
    orientation: float = setting(0.0, NOT_NEGATIVE)
    # Cross-entropy added to Dice; the paper: 0.
    label_cross_entropy: float = setting(0.0, NOT_NEGATIVE)
    # Input of the classifications: "features" (four parallel branches, the paper's), or "labels":
    # the features and how much of each segment the segmentation finds (ours).
    attributes_from: str = setting("features", either("features", "labels"))
    # Weight of a missing segment, and of a landmark without a fork, in the cross-entropies; the
    # paper states none: 1.
    rare: float = setting(1.0, POSITIVE)
    # How Eq. 1 derives forks from segments: "hard" (yes or no, no gradient) or "soft"
    # (probabilities).
    derived: str = setting("hard", either("hard", "soft"))
    learning_rate: float = setting(1e-4, POSITIVE)
    beta1: float = setting(0.5, SHARE)
    # Last share of the steps, over which the rate falls to zero along a cosine; the paper: 0.
    decay: float = setting(0.0, SHARE)
    # Gradients are clipped to this norm; 0: not, as in the paper.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    decoders: ClassVar[tuple[str, ...]] = ("argmax", "subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "heatmap_loss": LOSS,
        "dice_loss": LOSS,
        "label_cross_entropy": LOSS,
        "orientation_loss": LOSS,
        "fork_loss": LOSS,
        "segment_loss": LOSS,
        "consistency_loss": LOSS,
        "gradient_norm": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[str]:
        """See `Settings`."""
        if self.segmentation or self.orientation:
            return frozenset({SEGMENTS, LABEL_MAPS})
        attributes = self.fork_attributes or self.segment_attributes
        return frozenset({SEGMENTS} if attributes else ())

    @property
    def tells(self) -> frozenset[str]:
        """See `Method`."""
        branches = {
            SEGMENTATION: self.segmentation,
            SEGMENTS_PRESENT: self.segment_attributes,
            FORKS: self.fork_attributes,
        }
        return frozenset(name for name, weight in branches.items() if weight)

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        if self.consistency and not (self.fork_attributes and self.segment_attributes):
            yield (
                "consistency",
                "compares fork_attributes with segment_attributes; one is 0",
            )
        if self.label_cross_entropy and not self.segmentation:
            yield (
                "label_cross_entropy",
                "is added to the loss of segmentation, which is 0",
            )
        if self.attributes_from == "labels" and not self.segmentation:
            yield "attributes_from", "'labels' needs the segmentation, whose weight is 0"

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        yield from volumes_only(task.crop)
        levels = len(self.widths)
        why = f"{levels} levels (config.method.widths) need"
        yield from divisible(task.crop, 2 ** (levels - 1), why)
        scheme = task.scheme
        if self.needs and not scheme.segments:
            yield "config.method", "learns from segments, and these landmarks have none"
        elif self.fork_attributes and not scheme.may_change.any():
            yield (
                "config.method.fork_attributes",
                "needs segments that may be missing and end at landmarks: state ends and "
                "may_be_missing in the label table, or set fork_attributes and consistency to 0",
            )

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides 2^(levels - 1) must divide."""
        check(self, "config.method", task)
        network = Network(self, task)
        rate = cosine_at_the_end(self.learning_rate, self.steps, self.decay)
        optimizer = clipped(self.clip_norm, optax.adam(rate, b1=self.beta1, b2=0.999))

        def init(key: Array) -> State:
            params = network.init(key)
            return State(
                step=jnp.zeros((), jnp.int32),
                params={"network": params},
                optimizer={"network": optimizer.init(params)},
            )

        def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            return network.loss(params, augmented(task, batch, key))

        phase = Phase("train", self.steps, descent("network", loss, optimizer))
        if self.needs:
            maps = LABEL_MAPS in self.needs
            read = read_segmented_case if maps else read_case_and_attributes
            phase = dataclasses.replace(phase, read=read)
        return Method(
            init=init,
            phases=(phase,),
            stages=whole_volume_stage(
                task, lambda variables, image: network.predict(variables.params["network"], image)
            ),
            tells=self.tells,
        )


class Network:
    """The network, the sum of its losses and its predictions, as functions of its parameters."""

    def __init__(self, settings: Multitask, task: Task):
        self.settings, self.task = settings, task
        scheme = task.scheme
        classified = settings.segmentation > 0
        self._net = MultitaskUNet(
            widths=settings.widths,
            landmarks=len(scheme.landmarks),
            classes=1 + len(scheme.segments) if classified else 0,
            orientation=settings.orientation > 0,
            fork_attributes=len(scheme.landmarks) if settings.fork_attributes else 0,
            segment_attributes=len(scheme.segments) if settings.segment_attributes else 0,
            evidence=2 if settings.attributes_from == "labels" else 0,
            head=settings.head,
            dtype=task.dtype,
            remat=settings.remat,
        )

    def init(self, key: Array) -> Params:
        """Parameters of the body and of every branch that has a weight."""
        channels = 4 if self.settings.coordinates else 1
        return self._net.init(key, jnp.zeros((1, *self.task.crop, channels)))

    def _branch(self, params: Params, name: str) -> Callable[..., Array]:
        return lambda *args: jnp.asarray(self._net.apply(params, *args, method=name))

    def features(self, params: Params, image: Array) -> Array:
        """Volumes (B, X, Y, Z, 1) -> the features that all branches share."""
        image = append_coordinates(image) if self.settings.coordinates else image
        return self._branch(params, "features")(image)

    def loss(self, params: Params, view: Batch) -> tuple[Array, Metrics]:
        """The weighted sum of all tasks' losses (section 2.2), and each by itself."""
        settings = self.settings
        features = self.features(params, view.image)
        losses = {"heatmap_loss": (1.0, self.heatmap_loss(params, features, view))}
        found = None
        if settings.segmentation:
            sums = segmentation_sums(
                features,
                view.targets[SEGMENTATION],
                head=self._branch(params, "labels"),
                slab_voxels=self.task.slab_voxels,
            )
            dice = weighted_dice_loss(sums, balance=settings.balance)
            losses["dice_loss"] = settings.segmentation, dice
            if settings.label_cross_entropy:
                entropy = segmentation_cross_entropy(sums, balance=settings.balance)
                losses["label_cross_entropy"] = settings.label_cross_entropy, entropy
            found = self.evidence(sums.peak, sums.predicted)
        if settings.orientation:
            axes = self.orientation_loss(params, features, view.targets[SEGMENTATION])
            losses["orientation_loss"] = settings.orientation, axes
        losses |= self.attribute_losses(params, features, found, view)
        total = sum((weight * value for weight, value in losses.values()), jnp.zeros(()))
        return total, {name: value for name, (_, value) in losses.items()}

    def heatmap_loss(self, params: Params, features: Array, view: Batch) -> Array:
        """Squared error to the Gaussians of Eq. 2, weighted by background to foreground voxels.

        The settings may choose the cross-entropy instead.
        """
        settings, task = self.settings, self.task
        loss: Callable[..., Array] = functools.partial(
            balanced_heatmap_loss, balance=settings.balance
        )
        if settings.heatmap_loss == "cross_entropy":
            loss = functools.partial(heatmap_cross_entropy, presence=task.presence)
        return loss(
            features,
            view.landmarks_ijk,
            view.present,
            absent=view.absent,
            head=self._branch(params, "heatmaps"),
            spacing_mm=task.spacing_mm,
            sigma_mm=settings.sigma_mm,
            slab_voxels=task.slab_voxels,
        )

    def evidence(self, peak: Array, predicted: Array) -> tuple[Array, Array] | None:
        """How much of each segment the segmentation found: for forks (B, K, 2), segments (B, S, 2).

        A segment has two numbers: the logarithms of its largest probability and of its expected
        volume in voxels. A landmark gets the least of these over the segments that meet it and may
        be missing. `peak` and `predicted` (B, 1 + S) are those of `SegmentationSums`.
        """
        if self.settings.attributes_from != "labels":
            return None
        scheme = self.task.scheme
        segments = jnp.stack([jnp.log(peak[:, 1:] + 1e-6), jnp.log1p(predicted[:, 1:])], axis=-1)
        meets = scheme.incidence & scheme.may_be_missing[:, None]
        least = jnp.where(meets[..., None], segments[:, :, None], jnp.inf).min(1)
        # 0 where every segment that meets the landmark always exists.
        return jnp.where(meets.any(0)[:, None], least, 0.0), segments

    def attributes(
        self, params: Params, features: Array, found: tuple[Array, Array] | None
    ) -> tuple[Array | None, Array | None]:
        """Logits of forks (B, K) and of segments (B, S); None for a task without a weight."""
        settings = self.settings
        for_forks, for_segments = found or (None, None)
        forks, segments = self._branch(params, "forks"), self._branch(params, "segments")
        return (
            forks(features, for_forks) if settings.fork_attributes else None,
            segments(features, for_segments) if settings.segment_attributes else None,
        )

    def attribute_losses(
        self,
        params: Params,
        features: Array,
        found: tuple[Array, Array] | None,
        view: Batch,
    ) -> dict[str, tuple[float, Array]]:
        """Weight and cross-entropy of the two classifications, and of their agreement (Eq. 1)."""
        settings, scheme = self.settings, self.task.scheme
        losses: dict[str, tuple[float, Array]] = {}
        entropy = functools.partial(attribute_loss, rare=settings.rare)
        forks, segments = self.attributes(params, features, found)
        if segments is not None:
            loss = entropy(segments, view.targets[SEGMENTS_PRESENT], view.targets[SEGMENTS_ABSENT])
            losses["segment_loss"] = settings.segment_attributes, loss
        if forks is not None:
            known = view.targets[SEGMENTS_PRESENT], view.targets[SEGMENTS_ABSENT]
            loss = entropy(forks, *scheme.forks(*known))
            losses["fork_loss"] = settings.fork_attributes, loss
        if settings.consistency and forks is not None and segments is not None:
            derived = self.derived_forks(segments)
            loss = self_consistency_loss(forks, derived, jnp.asarray(scheme.may_change))
            losses["consistency_loss"] = settings.consistency, loss
        return losses

    def derived_forks(self, segment_logits: Array) -> Array:
        """y~_l of Eq. 1, (B, K) in [0, 1]: 1 where all segments that meet the landmark exist."""
        scheme = self.task.scheme
        if self.settings.derived == "hard":
            # Segments that cannot be missing exist, even if the network predicts otherwise.
            there = (segment_logits > 0) | ~scheme.may_be_missing
            return scheme.forks(there, ~there)[0].astype(jnp.float32)
        meets = jnp.asarray(scheme.incidence & scheme.may_be_missing[:, None], jnp.float32)
        # The product of the segments' probabilities, as if they were independent.
        return jnp.exp(jax.nn.log_sigmoid(segment_logits) @ meets)

    def orientation_loss(self, params: Params, features: Array, labels: Array) -> Array:
        """1 - cos^2 of the angle to the vessels' axes: the method that the paper compares with."""
        inside = labels > 0
        return orientation_loss(
            features,
            vessel_axes(inside, self.task.spacing_mm),
            inside,
            head=self._branch(params, "axes"),
            slab_voxels=self.task.slab_voxels,
        )

    def predict(self, params: Params, image: Array) -> Prediction:
        """Volumes (B, X, Y, Z, 1) -> landmarks, labels, and probabilities of the attributes."""
        settings, task = self.settings, self.task
        features = self.features(params, image)
        peak, fine, score, evidence, spread_mm = decode(
            features,
            self._branch(params, "heatmaps"),
            spacing_mm=task.spacing_mm,
            sigma_mm=settings.sigma_mm,
            softmax=settings.heatmap_loss == "cross_entropy",
            slab_voxels=task.slab_voxels,
        )
        maps: dict[str, Any] = {}
        found = None
        if settings.segmentation:
            slabs, highest, sums = map_slabs(
                lambda slab, _: _labels_and_classes(self._branch(params, "labels")(slab)),
                features,
                voxels=task.slab_voxels,
            )
            maps[SEGMENTATION] = join_slabs(slabs)
            found = self.evidence(highest.max(0), sums.sum(0))
        forks, segments = self.attributes(params, features, found)
        logits = {FORKS: forks, SEGMENTS_PRESENT: segments}
        probabilities = {name: jax.nn.sigmoid(x) for name, x in logits.items() if x is not None}
        positions = {"argmax": peak, "subvoxel": fine}
        return Prediction(positions, score, evidence, maps, probabilities, spread_mm)


def _labels_and_classes(logits: Array) -> tuple[Array, Array, Array]:
    """A slab's labels (B, X, Y, Z); the maximum and sum of each class's probability (B, C)."""
    probability = jax.nn.softmax(logits)
    labels = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
    return labels, probability.max((1, 2, 3)), probability.sum((1, 2, 3))
