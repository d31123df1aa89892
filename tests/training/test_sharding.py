"""Sharding for real: 1, 2, 4 and 8 devices, and two processes, do what one device does.

The number of devices is fixed when JAX starts, so this file is also a program: each run trains a
few steps, predicts, and writes what came out, and the tests compare.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from running import PLAIN, free_port

from jaxmark.config import Augment
from jaxmark.core.anatomy import Segment, scheme_of
from jaxmark.data.cases import Volume
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import (
    BY_SEGMENT,
    LABELS,
    SEGMENTATION,
    SEGMENTS_ABSENT,
    SEGMENTS_PRESENT,
    Batch,
    LandmarkSets,
    Task,
)
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.system.devices import data_mesh, put_batch
from jaxmark.system.processes import done, join
from jaxmark.training.sharding import sharded_init, sharded_step

TARGETS = {SEGMENTS_PRESENT: BY_SEGMENT, SEGMENTS_ABSENT: BY_SEGMENT, SEGMENTATION: LABELS}
# Losses of the generator alone, and the phase with a discriminator.
KINDS = ("weighted_l2", "cross_entropy", "adversarial", "patches", "patches_local", "multitask")
CROP, MARGIN, SPACING_MM, NAMES = (16, 16, 8), 2, (1.0, 1.0, 2.0), ("a", "b", "c")
SEGMENTS = (Segment("ab", ("a", "b"), True), Segment("bc", ("b", "c"), True), Segment("c", ("c",)))
FULL = tuple(n + 2 * MARGIN for n in CROP)
BATCH, STEPS, RATE = 8, 3, 1e-3
# Runs that are compared with one device; each takes seconds to compile, so not all there could be.
MANY = [(2, KINDS[1]), (4, KINDS[0]), (8, KINDS[1]), *((4, kind) for kind in KINDS[2:])]


def main(folder, kinds):
    """Trains and predicts on all devices of all processes; process 0 writes into `folder`."""
    if "SLURM_JOB_ID" in os.environ:
        join()
    mesh = data_mesh()
    for kind in kinds:
        facts, arrays = run(kind, mesh)
        if jax.process_index() == 0:
            (folder / f"{kind}.json").write_text(json.dumps(facts))
            np.savez(folder / kind, **arrays)
    done()


def build(kind, rng):
    """The method, and the number of the phase that is run."""
    # Every kind of random change there is: rotation, shift, contrast, brightness, noise.
    changes = Augment(2, rotation_degrees=10, scale=0.1, contrast=0.2, brightness=0.1, noise=0.1)
    common = {"steps": STEPS, "widths": (4, 8), "head": 8, "sigma_mm": 2.0, "learning_rate": RATE}
    points = rng.uniform(4, 8, (5, len(NAMES), 3)).astype(np.float32)
    unpaired = LandmarkSets(points, rng.random((5, len(NAMES))) < 0.8)
    task = Task(scheme_of(NAMES), CROP, (MARGIN,) * 3, SPACING_MM, changes, unpaired=unpaired)
    if kind == "adversarial":
        settings = Adversarial(
            **common,
            adversarial_steps=STEPS,
            lambda_adv=0.1,
            unpaired_share=0.5,
            discriminator_widths=(4, 8),
            discriminator_hidden=8,
            label_smoothing=0.1,
            r1=0.5,
        )
        return settings.build(task), 1
    if kind.startswith("patches"):
        settings = RegressionClassification(
            steps=STEPS,
            local_steps=STEPS,
            stem=4,
            widths=(4, 8),
            blocks=(1, 1),
            head=8,
            local_widths=(4, 4),
            local_crop=8,
            jitter_voxels=1,
            chunk=8,
            learning_rate=RATE,
            local_learning_rate=RATE,
        )
        return settings.build(task), int(kind == "patches_local")
    if kind == "multitask":
        task = dataclasses.replace(task, scheme=scheme_of(NAMES, SEGMENTS), targets=TARGETS)
        # Yes or no would turn with a bit.
        return Multitask(**common, orientation=0.1, derived="soft", beta1=0.9).build(task), 0
    return HeatmapRegression(**common, loss=kind).build(task), 0


def run(kind, mesh):
    """What can be said of a run, and its numbers."""
    rng = np.random.default_rng(0)
    method, phase = build(kind, np.random.default_rng(1))
    images = rng.normal(size=(STEPS, BATCH, *FULL, 1)).astype(np.float16)
    points = rng.uniform(4, 8, (STEPS, BATCH, len(NAMES), 3)).astype(np.float32)
    state_of = rng.random((STEPS, BATCH, len(NAMES)))
    present, absent = state_of < 0.7, state_of > 0.85
    targets = {}
    if kind == "multitask":
        labels = rng.integers(0, 4, (STEPS, BATCH, *FULL), np.uint8)
        values = (present, absent, labels)
        targets = dict(zip(TARGETS, values, strict=True))

    def batch(step):
        share = BATCH // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        local = (images[step, mine], points[step, mine], present[step, mine])
        local += (absent[step, mine], {name: t[step, mine] for name, t in targets.items()})
        return Batch(*put_batch(mesh, local))

    key = jax.random.key(0)
    state = sharded_init(method.init, mesh)(key)
    step = sharded_step(method.phases[phase].step, mesh).lower(state, batch(0), key).compile()
    metrics, donated = [], []
    for i in range(STEPS):
        before, data = state, batch(i)
        state, values = step(state, data, key)
        donated += [leaf.is_deleted() for leaf in jax.tree.leaves(before)]
        # Those of both networks; a share of right answers may turn with a bit.
        metrics.append([float(values[n]) for n in sorted(values) if "accuracy" not in n])

    arrays = {"metrics": np.array(metrics)}
    volumes = (
        Volume(str(i), partial(np.asarray, image[..., 0]), np.eye(4))
        for i, image in enumerate(images[0])
    )
    found = list(Predictor(method, BATCH, mesh)(state.variables, volumes))
    arrays["score"] = np.stack([result.prediction.score for result in found])
    for decoder in ("argmax", "subvoxel"):
        arrays[decoder] = np.stack([result.prediction.positions_ijk[decoder] for result in found])
    text = step.as_text()
    facts = {
        "devices": mesh.size,
        "shards": sorted({shard.data.shape for shard in data.image.addressable_shards}),
        "entry": next(line for line in text.splitlines() if line.startswith("ENTRY")),
        "collectives": sorted(set(re.findall(r"(all-\w+|collective-\w+|reduce-scatter)\(", text))),
        "reduced": sorted(
            math.prod(int(n) for n in sides.split(",") if n)
            for shapes in re.findall(r"= (.*?) all-reduce\(", text)
            for sides in re.findall(r"\w+\[([\d,]*)\]", shapes)
        ),
        "parameters": sorted(leaf.size for leaf in jax.tree.leaves(state.params)),
        "donated": all(donated),
        "copies_differ": [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree.leaves_with_path(state)
            if any(
                np.any(np.asarray(shard.data) != np.asarray(leaf.addressable_data(0)))
                for shard in leaf.addressable_shards
            )
        ],
    }
    for part in ("params", "optimizer"):
        for path, leaf in jax.tree.leaves_with_path(getattr(state, part)):
            arrays[part + jax.tree_util.keystr(path)] = np.asarray(leaf.addressable_data(0))
    return facts, arrays


def start(folder, devices, kinds, **environment):
    """This file as a program on so many CPU devices."""
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, __file__, str(folder), *kinds],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {PLAIN}",
            **environment,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def results(folder, kinds):
    """Kind -> facts and arrays, as `main` wrote them."""
    return {
        kind: (
            json.loads((folder / f"{kind}.json").read_text()),
            dict(np.load(folder / f"{kind}.npz")),
        )
        for kind in kinds
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Number of devices -> kind -> facts and arrays."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {1: KINDS, **{n: [b for a, b in MANY if a == n] for n, _ in MANY}}
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(start, folder / str(n), n, kinds[n]) for n in kinds]
    for job in jobs:
        job.result()
    return {n: results(folder / str(n), kinds[n]) for n in kinds}


def assert_same_training(found, expected):
    """Equal but for rounding (6e-8 in float32): sums over the batch are taken in another order.

    Loss, gradient and Adam's moments are held to some of these. Adam divides the gradient by its
    own size, so a parameter whose gradient is nothing but rounding moves as far as any, and in
    whatever direction: the last bias, say, which shifts all voxels of a softmax. So parameters are
    compared where gradients stand out from that, to a hundredth of the way they can have gone.
    """
    np.testing.assert_allclose(found["metrics"], expected["metrics"], rtol=1e-5)
    for name, value in expected.items():
        parts = re.fullmatch(r"params(\['\w+'\])(.*)", name)
        if parts is None:
            continue
        network, leaf = parts.groups()
        if network == "['refine']":
            # No optimiser's: it says whether the local networks are trained.
            np.testing.assert_array_equal(found[name], value)
            continue
        # Adam's running means of the gradient and of its square.
        moments = [f"optimizer{network}[0].{mean}" for mean in ("mu", "nu")]
        norm = max(np.sqrt(v).max() for n, v in expected.items() if n.startswith(moments[1]))
        for power, moment in enumerate(moments, start=1):
            np.testing.assert_allclose(
                found[moment + leaf],
                expected[moment + leaf],
                atol=3e-5 * norm**power,
                err_msg=moment + leaf,
            )
        felt = np.sqrt(expected[moments[1] + leaf]) > 1e-3 * norm
        np.testing.assert_allclose(
            found[name][felt], value[felt], atol=1e-2 * STEPS * RATE, err_msg=name
        )


def assert_same_predictions(found, expected):
    """The same brightest voxels, and what follows from them but for rounding."""
    # Half a voxel is rounded either way.
    sure = np.abs(expected["subvoxel"] % 1 - 0.5) > 1e-3
    np.testing.assert_array_equal(found["argmax"][sure], expected["argmax"][sure])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)
    np.testing.assert_allclose(found["subvoxel"], expected["subvoxel"], atol=1e-3)


@pytest.mark.parametrize(("devices", "kind"), MANY)
def test_many_devices_train_and_predict_what_one_does(runs, devices, kind):
    _, one = runs[1][kind]
    facts, many = runs[devices][kind]
    assert facts["devices"] == devices
    # Random changes, noise in every voxel among them, are those of one device, or these differed.
    assert_same_training(many, one)
    assert_same_predictions(many, one)


@pytest.mark.parametrize(("devices", "kind"), [(1, "weighted_l2"), *MANY])
def test_each_device_computes_its_share_and_holds_the_whole_state(runs, devices, kind):
    facts, arrays = runs[devices][kind]
    share = [BATCH // devices, *FULL, 1]
    assert facts["shards"] == [share]
    assert f"f16[{','.join(map(str, share))}]" in facts["entry"]
    # Gradients are summed; no volume or activation travels from device to device.
    assert facts["collectives"] == (["all-reduce"] if devices > 1 else [])
    # Of the size of a parameter or of a small part of one; with a stem of 7^3 of its blocks.
    others = set(facts["reduced"]) - set(facts["parameters"])
    assert max(others, default=0) <= (4000 if kind.startswith("patches") else 128)
    assert facts["donated"]
    assert facts["copies_differ"] == []
    assert all(np.isfinite(value).all() for value in arrays.values())


def test_two_processes_train_and_predict_what_one_does_with_two_devices(runs, tmp_path):
    kind = "cross_entropy"
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(start, tmp_path, 1, [kind], SLURM_PROCID=i, SLURM_LOCALID=i, **slurm)
            for i in "01"
        ]
    for job in jobs:
        job.result()
    facts, arrays = results(tmp_path, [kind])[kind]
    assert facts["devices"] == 2
    assert facts["shards"] == [[BATCH // 2, *FULL, 1]]
    assert facts["collectives"] == ["all-reduce"]
    assert_same_training(arrays, runs[2][kind][1])
    assert_same_predictions(arrays, runs[2][kind][1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
