"""Data that was moved is the same data; what really changes a model is refused, field by field."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import SimpleITK as sitk
from conftest import refused

from jaxmark.config import Augment, Data, Experiment, check_same, moved, to_json
from jaxmark.core.geometry import compose_affine
from jaxmark.data.landmarks import read_landmarks, write_mrk_json
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, write_cohort
from jaxmark.data.scans import read_scan, write_scan
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import LandmarkSets, State
from jaxmark.system.errors import InputError
from jaxmark.training.checkpoints import Writer
from jaxmark.training.provenance import check_moved, image_levels, provenance
from jaxmark.workflow import prepare

# Fields of `Data`, each with another value: those that bind a model by what they say, ...
BINDING = {
    "suffix": "T1w",
    "series": "TOF",
    "frame": "RAS",
    "units": "voxels",
    "unpaired_align": "rigid",
    "landmarks": ("a",),
    "segments": ("a",),
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "split_seed": 1,
    "train_fraction": 0.5,
    "folds": 2,
    "fold": 1,
    "register": "rigid",
    "metric": "mutual_information",
    "search_degrees": 30.0,
    "spacing_mm": (1.0, 1.0, 1.0),
    "crop": (16, 16, 16),
    "margin": 4,
    "grid": "native",
    "unit": "px",
    "pixel_size_mm": 0.5,
    "intensity": "window",
    "intensity_percentiles": (1.0, 99.0),
    "intensity_window": (0.0, 500.0),
}
# ... by what is in the files that they name, ...
BY_CONTENT = ("root", "unpaired", "template", "template_transform", "template_mask", "shared_mask")
# ... and not at all.
FREE = {"cache": "elsewhere", "workers": 3, "all_sheets": True}


def test_every_field_of_the_data_has_its_place():
    names = {field.name for field in dataclasses.fields(Data)}
    assert names == {*BINDING, *BY_CONTENT, *FREE}


def experiment(**changes):
    return Experiment(method=HeatmapRegression(), data=Data(**changes))


@pytest.mark.parametrize("name", BINDING)
def test_a_field_that_changes_the_model_is_refused_by_name(name):
    other = experiment(**{name: BINDING[name]})
    saved = to_json(experiment())
    refused(
        lambda: check_same(saved, other, Path("work")),
        f"work: belongs to a run with config.data.{name} = ",
        "use another --workdir",
    )
    assert moved(saved, other) == []


@pytest.mark.parametrize("name", BY_CONTENT)
def test_a_path_is_no_difference_but_is_told(name):
    other = experiment(**{name: "there"})
    saved = to_json(experiment(**{name: "here"}))
    check_same(saved, other, Path("work"))
    assert moved(saved, other) == [f"config.data.{name} = 'here', not 'there'"]
    # A version that knew no such field stored none.
    del saved["data"][name]
    assert moved(saved, other) == [f"config.data.{name} = '', not 'there'"]


def test_what_is_no_part_of_the_data_binds_as_before():
    # `unpaired` of the phantom is a number of people, not a path.
    ours = dataclasses.replace(experiment(), phantom=CirclePhantom(unpaired=5))
    theirs = dataclasses.replace(ours, phantom=CirclePhantom(unpaired=6))
    refused(lambda: check_same(to_json(ours), theirs, Path("work")), "config.phantom.unpaired = 5")


# On disk


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    shape = (44, 36, 36)
    write_cohort(folder, CirclePhantom(3, 1, 1, 4, spacing_mm=(2.5,) * 3, shape=shape, unpaired=0))
    return folder


@pytest.fixture
def here(cohort_folder, tmp_path, monkeypatch):
    """A folder with a cohort, `plain`; paths are relative to it."""
    shutil.copytree(cohort_folder, tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(root, **changes):
    data = Data(root=str(root), cache="cache", spacing_mm=(2.5,) * 3, crop=(24, 24, 16), margin=2)
    data = dataclasses.replace(data, workers=1, **changes)
    augment = Augment(translation_voxels=2)
    return Experiment(method=HeatmapRegression(steps=2), data=data, augment=augment)


def trained(ours, **lacking):
    """A work dir as training leaves it, without the training."""
    run = prepare(ours, "work")
    params = {"kernel": jnp.zeros(3)}
    state = State(jnp.int32(2), params, {"net": optax.adam(1e-3).init(params)})
    cases, landmarks = run.prepared.split("train"), run.prepared.landmarks
    meta = provenance(ours, landmarks, cases, run.unpaired)
    writer = Writer(Path("work"), keep=1)
    writer.save(state, {}, {k: v for k, v in meta.items() if k not in lacking}, None)
    writer.close()
    return run


def test_the_same_data_elsewhere_is_the_same_data(here, capsys):
    trained(of("plain"))
    for root in ("plain/", "./plain", here / "plain"):
        prepare(of(root), "work")
        line = f"note: config.data.root = 'plain', not '{root}': the training data is the same"
        assert line in capsys.readouterr().out.splitlines()
        # Now it is called so.
        prepare(of(root), "work")
        assert "config.data.root" not in capsys.readouterr().out
        prepare(of("plain"), "work")
        capsys.readouterr()
    (here / "plain").rename(here / "moved")
    prepare(of("moved"), "work")
    assert "the training data is the same" in capsys.readouterr().out


def test_an_older_checkpoint_tells_by_landmarks_alone(here, capsys):
    trained(of("plain"), images=True)
    prepare(of("plain/"), "work")
    assert "earlier versions kept nothing of images" in capsys.readouterr().out


def changed_landmark(root):
    path = sorted((root / "landmarks").glob("*.mrk.json"))[0]
    points = read_landmarks(path)
    write_mrk_json(path, {name: xyz + 0.5 for name, xyz in points.items()})


def changed_image(root):
    first, second, *_ = sorted((root / "images").glob("*.nii.gz"))
    scan = read_scan(first)
    write_scan(first, read_scan(second).voxels[::-1].copy(), scan.ijk_to_lps)


def case_left_out(root):
    for folder in ("images", "landmarks"):
        sorted((root / folder).iterdir())[0].unlink()
    (root / "splits.json").write_text('{"train": ["phantom-001", "phantom-002"]}')


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed_landmark, "work: is of other training cases (config.data.root = 'plain', not "),
        (changed_image, "work: is of another image of training case 'phantom-000' (config.data."),
        (case_left_out, "work: is of other training cases (config.data.root = 'plain', not "),
    ],
)
def test_other_data_elsewhere_is_refused_and_the_work_dir_left_alone(here, change, problem):
    trained(of("plain"))
    before = {path: path.read_bytes() for path in Path("work").rglob("*") if path.is_file()}
    shutil.copytree("plain", "other")
    change(here / "other")
    refused(lambda: prepare(of("other"), "work"), problem, "'other')", "use another --workdir")
    assert {p: p.read_bytes() for p in Path("work").rglob("*") if p.is_file()} == before


def test_another_validation_case_is_no_other_model(here):
    trained(of("plain"))
    shutil.copytree("plain", "other")
    for path in (here / "other" / "landmarks").glob("phantom-003*"):
        write_mrk_json(path, {name: xyz + 0.5 for name, xyz in read_landmarks(path).items()})
    prepare(of("other"), "work")


def test_a_template_binds_by_what_it_is(here, capsys):
    shutil.copy("plain/images/phantom-001.nii.gz", "template.nii.gz")

    def registered(template):
        return of("plain", register="rigid", template=template, search_degrees=15.0)

    trained(registered("phantom-001"))
    prepare(registered("template.nii.gz"), "work")
    assert "config.data.template = 'phantom-001', not" in capsys.readouterr().out
    problem = "is of other training cases (config.data.template = "
    refused(lambda: prepare(registered("phantom-002"), "work"), problem)


def test_a_template_that_only_moves_everything_changes_nothing(here):
    # The grid goes along: no case is cut or seen otherwise.
    trained(of("plain", register="center", template="phantom-001"))
    prepare(of("plain", register="center", template="phantom-002"), "work")


def write_turn(path, degrees):
    transform = sitk.Euler3DTransform()
    transform.SetRotation(0, 0, np.deg2rad(degrees))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(transform.GetMatrix())
    sitk.WriteTransform(affine, str(path))


def test_a_template_s_transform_binds_by_what_it_does(here):
    write_turn(here / "one.tfm", 10)
    shutil.copy("one.tfm", "same.tfm")
    write_turn(here / "other.tfm", 20)

    def registered(name):
        return of("plain", register="center", template="phantom-001", template_transform=name)

    trained(registered("one.tfm"))
    prepare(registered("same.tfm"), "work")
    problem = "is of other training cases (config.data.template_transform = "
    refused(lambda: prepare(registered("other.tfm"), "work"), problem)


def test_masks_bind_by_what_they_are(here):
    scan = read_scan(Path("plain/images/phantom-001.nii.gz"))
    mask = (scan.voxels > np.percentile(scan.voxels, 90)).astype(np.uint8)
    turn = compose_affine(np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]), np.zeros(3))
    write_scan(here / "own.nii.gz", mask, scan.ijk_to_lps)
    write_scan(here / "shared.nii.gz", mask, turn @ scan.ijk_to_lps)
    write_scan(here / "turned.nii.gz", mask, turn @ turn @ scan.ijk_to_lps)

    def registered(own, shared):
        masks = {"template_mask": own, "shared_mask": shared, "search_degrees": 90.0}
        return of("plain", register="center", template="phantom-001", **masks)

    trained(registered("own.nii.gz", "shared.nii.gz"))
    prepare(registered("./own.nii.gz", "./shared.nii.gz"), "work")
    problem = "is of other training cases (config.data.shared_mask = "
    refused(lambda: prepare(registered("./own.nii.gz", "turned.nii.gz"), "work"), problem)


def test_unpaired_landmarks_bind_by_what_they_are(here):
    run = trained(of("plain"))
    cases, landmarks = run.prepared.split("train"), run.prepared.landmarks
    sets = LandmarkSets(np.ones((2, 2, 3), np.float32), np.ones((2, 2), bool))
    with pytest.raises(InputError, match=r"is of other unpaired landmarks \(config.data.unpaired"):
        check_moved(Path("work"), landmarks, cases, sets, ["config.data.unpaired = 'a', not 'b'"])
    with pytest.raises(InputError, match="is of other landmarks"):
        check_moved(Path("work"), landmarks[1:], cases, None, ["config.data.root"])


def test_levels_of_an_image_bear_rounding_and_tell_images_apart(here):
    first, second, *_ = trained(of("plain")).prepared.split("train")
    (a,), (b,) = image_levels([first]), image_levels([second])
    assert len(a) == 9 and not np.allclose(a, b, atol=0.01)
    image = first.image().astype(np.float32)
    np.testing.assert_allclose(a[-1], image.std(), atol=1e-3)
    np.testing.assert_allclose(np.mean(a[:8]), image.mean(), atol=1e-3)
