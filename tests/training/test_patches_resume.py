"""Patches are drawn again alike: a run that stops among them goes on to the same bits."""

import dataclasses
import shutil

import numpy as np
import pytest

from experiments import vessel_cascade
from jaxmark.config import Augment, Data, Experiment, Train
from jaxmark.core.anatomy import scheme_of
from jaxmark.data.cases import PreparedCase, load_case, write_chunked_case
from jaxmark.data.chunks import slab_planes, write_chunks
from jaxmark.methods.method import Task
from jaxmark.system.devices import data_mesh
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.loop import train
from jaxmark.training.records import METRICS

NAMES, SHAPE, SPACING = ("a", "b"), (40, 36, 40), (1.0, 1.0, 1.5)
METHOD = dataclasses.replace(vessel_cascade.tiny().method, steps=1, refine_steps=5, reach_mm=3.0)
EXPERIMENT = Experiment(
    method=METHOD,
    data=Data(crop=SHAPE, margin=0, spacing_mm=SPACING),
    augment=Augment(translation_voxels=0),
    train=Train(batch=2, log_every=1, validate_every=2),
)


@pytest.fixture
def cases(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        folder = tmp_path / f"c{number}"
        folder.mkdir()
        image, planes = rng.normal(size=SHAPE).astype(np.float16), slab_planes(METHOD.factor)
        slabs = (image[x : x + planes] for x in range(0, SHAPE[0], planes))
        points, here = rng.uniform(-3, 39, (2, 3)) * SPACING, np.ones(2, bool)
        case = PreparedCase(
            name=folder.name,
            folder=folder,
            ijk_to_lps=np.diag([*SPACING, 1.0]),
            landmarks_mm=points,
            present=here,
            absent=~here,
            chunks=write_chunks(folder, SHAPE, slabs, METHOD.factor),
        )
        write_chunked_case(case, folder, folder)
        found.append(load_case(folder))
    return found


def run(cases, workdir):
    data, augment = EXPERIMENT.data, EXPERIMENT.augment
    task = Task(scheme_of(NAMES), data.crop, data.margins, data.spacing_mm, augment)
    train(
        METHOD.build(task),
        EXPERIMENT,
        cases=cases,
        validation=[],
        landmarks=NAMES,
        workdir=workdir,
        mesh=data_mesh(),
    )
    return Checkpoints(workdir).meta(6)


def test_a_run_that_stops_among_the_patches_ends_in_the_same_bits(cases, tmp_path):
    whole = run(cases, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    # Of the second phase, both.
    assert Checkpoints(stopped).steps() == [4, 6]
    shutil.rmtree(stopped / "checkpoints" / "6")
    # Its digests are of parameters, optimiser and streams.
    assert run(cases, stopped) == whole
    assert (stopped / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()
