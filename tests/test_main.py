"""The command line as its users meet it: real processes, real files, real messages."""

import csv
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from running import PROGRAM, ROOT, TINY, free_port, jaxmark, jaxmark_copies

from experiments.dicom_files import single
from jaxmark.core.geometry import apply_affine
from jaxmark.data.landmarks import read_landmarks
from jaxmark.data.scans import read_scan
from jaxmark.system.huge_pages import obstacle


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the whole chain on a tiny phantom cohort."""
    folder = tmp_path_factory.mktemp("run")
    result = jaxmark(
        TINY, f"--workdir={folder / 'work'}", f"--config.data.cache={folder / 'cache'}"
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_one_command_makes_a_model_its_errors_and_a_page(finished):
    folder, result = finished
    work = folder / "work"
    for name in (
        "config.json",
        "calibration.json",
        "logs/metrics.jsonl",
        "preparation/frame.json",
        "preparation/cases.csv",
        "preparation/contact_sheet_1.png",
    ):
        assert (work / name).is_file(), name
    assert {p.name for p in (work / "predictions").glob("*.mrk.json")} == {
        "phantom-004.mrk.json",
        "phantom-005.mrk.json",
    }
    summary = json.loads((work / "evaluation" / "summary.json").read_text())
    points = table(work / "evaluation" / "points.csv")
    assert summary["n_points"] == len(points) == 38
    assert np.isclose(np.mean([float(p["error_mm"]) for p in points]), summary["mre_mm"])
    assert set(summary["floors"]) == {"mean_position"}
    page = (work / "report" / "index.html").read_text(encoding="utf-8")
    assert f"{summary['mre_mm']:.2f}"[:4] in page and page.count("data:image/png") == 2
    for word in ("validation MRE", "floors: mean position", "report: "):
        assert word in result.stdout + result.stderr


def test_a_batch_that_the_memory_cannot_hold_is_one_line_with_the_batch_that_fits(finished):
    folder, _ = finished
    result = jaxmark(
        TINY,
        f"--workdir={folder / 'work'}",
        f"--config.data.cache={folder / 'cache'}",
        "--mode=predict",
        f"--config.predict.batch={10**9}",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(
        r"error: config\.predict\.batch: the arrays of 1,000,000,000 cases are [\d,]+\.\d GB, the "
        r"device has [\d.]+ GB; (\d+) fits \(--config\.predict\.batch=\1\)",
        line,
    )


def test_the_cohort_is_cached_under_the_name_that_earlier_versions_gave_it(finished):
    folder, _ = finished
    (cohort,) = (folder / "cache").glob("phantom-*")
    assert cohort.name == "phantom-60b31c87b305910a41fa"


def test_errors_are_the_distance_to_the_landmark_files_of_the_scans(finished):
    folder, _ = finished
    raw = next((folder / "cache").glob("phantom-*/landmarks"))
    for point in table(folder / "work" / "evaluation" / "points.csv"):
        truth = read_landmarks(raw / f"{point['case']}.mrk.json")[point["landmark"]]
        found = read_landmarks(folder / "work" / "predictions" / f"{point['case']}.mrk.json")
        error = np.linalg.norm(truth - found[point["landmark"]])
        assert np.isclose(error, float(point["error_mm"]))


def test_a_second_start_does_not_train_again(finished):
    folder, _ = finished
    log = (folder / "work" / "logs" / "metrics.jsonl").read_bytes()
    again = jaxmark(TINY, f"--workdir={folder / 'work'}", f"--config.data.cache={folder / 'cache'}")
    assert again.returncode == 0, again.stderr
    assert "training is complete: 6 steps" in again.stdout
    assert "resampling" not in again.stderr
    assert (folder / "work" / "logs" / "metrics.jsonl").read_bytes() == log


def test_raw_scans_are_predicted_as_prepared_cases_are(finished, tmp_path):
    folder, _ = finished
    scan = next((folder / "cache").glob("phantom-*/images/phantom-005.nii.gz"))
    shutil.copy(scan, tmp_path / "never seen.nii.gz")
    # The work dir is enough; overrides work as with an experiment file.
    arguments = (
        f"--checkpoint={folder / 'work'}",
        "--mode=predict",
        f"--input={tmp_path}",
        f"--output={tmp_path / 'out'}",
        "--config.data.workers=1",
    )
    result = jaxmark(*arguments)
    assert result.returncode == 0, result.stderr
    assert "landmarks of 1 scan written to" in result.stdout and "volumes/s" in result.stdout
    found = read_landmarks(tmp_path / "out" / "never seen.mrk.json")
    expected = read_landmarks(folder / "work" / "predictions" / "phantom-005.mrk.json")
    assert found.keys() == expected.keys()
    for name, position in expected.items():
        np.testing.assert_allclose(found[name], position, atol=1e-6)
    # One scan more, which is none: the others stay done, and the exit code says it.
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    again = jaxmark(*arguments)
    assert again.returncode == 2
    lines = [line for line in again.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "broken.nii.gz: " in lines[0]
    assert "1 were done before; 1 failed" in again.stdout


def test_a_model_of_one_dicom_series_predicts_that_and_says_what_it_leaves_out(finished, tmp_path):
    folder, _ = finished
    work = shutil.copytree(folder / "work", tmp_path / "work")
    stored = json.loads((work / "config.json").read_text())
    stored["data"]["series"] = "TOF"
    (work / "config.json").write_text(json.dumps(stored))
    scan = read_scan(next((folder / "cache").glob("phantom-*/images/phantom-005.nii.gz")))
    at = scan.ijk_to_lps
    six = np.concatenate([at[:3, 0], at[:3, 1]]) / np.repeat(scan.spacing_mm[:2], 3)
    for number, (patient, name) in enumerate([("P1", "TOF"), ("P1", "T1"), ("P2", "T2")]):
        (tmp_path / "in" / patient).mkdir(parents=True, exist_ok=True)
        for k in range(scan.voxels.shape[2]):
            content = single(
                np.round(scan.voxels[:, :, k].T).astype(np.int16),
                apply_affine(at, np.array([0, 0, k])),
                six,
                scan.spacing_mm[1::-1],
                uid=f"1.2.826.{number + 1}",
                description=name,
            )
            (tmp_path / "in" / patient / f"{name}{k}.dcm").write_bytes(content)
    arguments = (f"--checkpoint={work}", "--mode=predict", f"--input={tmp_path / 'in'}")
    arguments += (f"--output={tmp_path / 'out'}", "--config.data.workers=1")

    result = jaxmark(*arguments)
    assert result.returncode == 0, result.stderr
    assert [p.name for p in (tmp_path / "out").glob("*.fcsv")] == ["P1-TOF.fcsv"]
    found = read_landmarks(tmp_path / "out" / "P1-TOF.mrk.json")
    expected = read_landmarks(folder / "work" / "predictions" / "phantom-005.mrk.json")
    for name, position in expected.items():
        # Voxels are whole numbers in DICOM.
        np.testing.assert_allclose(found[name], position, atol=0.5)
    slices = scan.voxels.shape[2]
    assert f"P2: 'T2', 1.2.826.3 ({slices} slices)" in result.stderr
    assert "--config.data.series= predicts all" in result.stderr
    assert "look like images" not in result.stdout

    # What the message says to do, does it.
    result = jaxmark(*arguments, "--config.data.series=")
    assert result.returncode == 0, result.stderr
    assert "landmarks of 2 scans" in result.stdout and "1 were done before" in result.stdout
    names = {p.name for p in (tmp_path / "out").glob("*.fcsv")}
    assert names == {"P1-TOF.fcsv", "P1-T1.fcsv", "P2.fcsv"}
    result = jaxmark(*arguments, "--config.data.series=T7")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "holds no DICOM volume that is 'T7'" in line and "'TOF'" in line and "'T2'" in line


def test_help_lists_the_flags_also_of_the_installed_command():
    for program in (["-m", "jaxmark.main"], ["-c", PROGRAM]):
        result = subprocess.run(
            [sys.executable, *program, "-h"], capture_output=True, encoding="utf-8", cwd=ROOT
        )
        assert "Exit codes: 0 done" in result.stdout and result.stderr == ""
        for flag in ("--config", "--workdir", "--mode", "--checkpoint", "--input", "--output"):
            assert f"\n  {flag}: " in result.stdout


def test_two_scans_are_aligned_by_what_the_model_finds(finished, tmp_path):
    folder, _ = finished
    images = next((folder / "cache").glob("phantom-*/images"))
    fixed, moving = (images / f"phantom-00{number}.nii.gz" for number in (4, 5))
    arguments = (
        "--mode=align",
        f"--checkpoint={folder / 'work'}",
        f"--fixed={fixed}",
        f"--moving={moving}",
        f"--output={tmp_path / 'out'}",
    )
    result = jaxmark(*arguments)
    assert result.returncode == 0, result.stderr
    assert "similarity map by " in result.stdout and "finding landmarks" in result.stderr
    tree = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert tree["fixed"] == {"scan": str(fixed), "landmarks": str(folder / "work")}
    moved = read_scan(tmp_path / "out" / "phantom-005_on_phantom-004.nii.gz")
    np.testing.assert_allclose(moved.ijk_to_lps, read_scan(fixed).ijk_to_lps, atol=1e-4)
    # The pairs are the predictions of the two scans.
    row = table(tmp_path / "out" / "residuals.csv")[0]
    expected = read_landmarks(folder / "work" / "predictions" / "phantom-005.mrk.json")
    found = [float(row[f"moving_{axis}_lps_mm"]) for axis in "xyz"]
    np.testing.assert_allclose(found, expected[row["landmark"]], atol=1e-6)

    # An annotated scan instead of a predicted one; with both annotated, no model.
    landmarks = images.parent / "landmarks"
    files = (
        f"--fixed_landmarks={landmarks / 'phantom-004.mrk.json'}",
        f"--moving_landmarks={landmarks / 'phantom-005.mrk.json'}",
    )
    result = jaxmark(*arguments, files[0])
    assert result.returncode == 0, result.stderr
    result = jaxmark(*(a for a in arguments if "checkpoint" not in a), *files)
    assert result.returncode == 0, result.stderr
    assert "finding landmarks" not in result.stderr
    result = jaxmark(*arguments, *files)
    assert result.returncode == 1
    assert "--checkpoint: is of no use: both scans have landmark files" in result.stderr


def test_without_a_preset_the_device_chooses_and_a_cohort_is_written(tmp_path):
    result = jaxmark(
        "--config=experiments/cow.py",
        "--mode=phantom",
        f"--output={tmp_path}",
        "--config.phantom.train=1",
        "--config.phantom.val=0",
        "--config.phantom.test=1",
        "--config.phantom.modality=CTA",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("preset 'small', since the device is a cpu")
    assert f"cow_small: phantom in {tmp_path}, " in result.stdout
    for folder, suffix in (("images", "nii.gz"), ("segmentations", "nii.gz"), ("anatomy", "json")):
        names = {path.name for path in (tmp_path / folder).iterdir()} - {"dataset.json"}
        assert names == {f"phantom-000.{suffix}", f"phantom-001.{suffix}"}
    # The overrides held through the change of preset: HU, air included.
    assert read_scan(tmp_path / "images" / "phantom-000.nii.gz").voxels.min() < -800


def test_a_work_dir_of_another_model_is_left_alone(finished):
    folder, _ = finished
    before = (folder / "work" / "config.json").read_bytes()
    result = jaxmark(
        TINY,
        f"--workdir={folder / 'work'}",
        f"--config.data.cache={folder / 'cache'}",
        "--config.method.sigma_mm=3",
    )
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"error: {folder}/work/config.json: belongs to a run with config.method.sigma_mm = 2.0, "
        "not 3.0; use another --workdir"
    ]
    assert (folder / "work" / "config.json").read_bytes() == before


@pytest.mark.skipif(obstacle() is not None, reason=f"huge pages: {obstacle()}")
@pytest.mark.parametrize(
    ("flag", "state"),
    [("--huge_pages", "on"), ("--nohuge_pages", "off"), ("--huge_pages=false", "off")],
)
def test_huge_pages_are_on_unless_switched_off(flag, state, tmp_path):
    result = jaxmark(TINY, f"--workdir={tmp_path / 'a b'}", "--mode=phantom", flag)
    lines = result.stdout.splitlines()
    assert len(lines) == 3 and str(tmp_path / "a b") in lines[0]
    assert lines[1] == f"huge pages for large buffers (--[no]huge_pages): {state}"
    assert lines[2].startswith("convolutions compiled for this CPU (--[no]native): o")
    assert result.returncode == 1 and "--output: is required" in result.stderr


def test_processes_of_a_cluster_find_each_other():
    def process(number):
        return jaxmark(
            TINY, "--mode=phantom", "--distributed", SLURM_PROCID=number, SLURM_LOCALID=number,
            SLURM_JOB_ID="1", SLURM_STEP_NODELIST="127.0.0.1", SLURM_NTASKS="2",
            JAX_COORDINATOR_PORT=port,
        )  # fmt: skip

    port = str(free_port())
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, "01")
    # The first one alone speaks; the second one says what the first found wrong.
    assert "2 x cpu (cpu)" in first.stdout and "2 x cpu (cpu)" not in second.stdout
    assert (first.returncode, second.returncode) == (1, 1)
    assert "error: process 0: --output: is required" in second.stderr


MISTAKES = {
    "--config=experiments/mouse_ct.py": "config.data.root: is empty; set it to the folder",
    "--config.train.bach=4": "--config.train.bach: no such field; nearest: config.train.batch",
    "--config.mehtod.steps=4": "--config.mehtod.steps: no such field; nearest: config.method",
    "--config.train.batch=four": "--config.train.batch=four: invalid literal for int()",
    "--config.train.batch=0": "config.train.batch: 0 is not a number of at least 1",
    "--config.data.crop=32,32": "config.data.crop: (32, 32) is not three positive whole numbers",
    "--config.data.register=magic": "config.data.register: 'magic' is not one of",
    "--config.data.root=/nowhere": "config.data.root: there is no folder '/nowhere'",
    "--mode=dance": "flag --mode=dance: value should be one of <run|prepare|train|predict",
    "--config=experiments/cow.py:big": "there is no preset 'big', but paper, reverse, small, ",
    "--config=nowhere.py": "nowhere.py: no such experiment file (--config)",
    "--mode=phantom": "--output: is required with --mode=phantom",
    "--config.phantom.modality=PET": "config.phantom.modality: 'PET' is not one of",
    "--distributed": "--distributed: found no cluster that started this process",
    "--checkpoint=somewhere": "--checkpoint: goes with --mode=predict and --input",
    "--input=experiments": "--output: is required with --input",
    "--input=experiments --output=/tmp": "holds no trained model: there is no config.json",
    "--fixed=a": "--fixed: goes with --mode=align",
    "--mode=align --output=c": "--fixed: is required with --mode=align: a scan",
    "--mode=align --fixed=a --moving=b": "--output: is required with --mode=align",
    "--mode=align --fixed=a --moving=b --output=c": "holds no trained model: there is no config",
    "--mode=align --fixed=a --moving=b --output=c --transform=warp": "flag --transform=warp: value",
    "stray": "command line: unexpected argument 'stray'",
    "--config.method.sigma_mm=-1": "config.method.sigma_mm: -1.0 is not positive",
    "--config.predict.split=val --config.phantom.val=0": "the split 'val' has no cases",
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")

    def command(number, mistake):
        named = mistake.startswith("--config=")
        own = [] if named else [TINY, f"--config.data.cache={folder / 'c'}"]
        work = f"--workdir={folder / f'work{number}'}"
        # Without huge pages, for which a process starts itself again.
        return [*own, work, "--mode=predict", "--nohuge_pages", *mistake.split()]

    commands = [command(number, mistake) for number, mistake in enumerate(MISTAKES)]
    return dict(zip(MISTAKES, jaxmark_copies(commands), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_1(mistakes, mistake):
    result = mistakes[mistake]
    assert result.returncode == 1, result.stdout
    # A progress bar may have been there before.
    lines = [line for line in result.stderr.splitlines() if line and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert MISTAKES[mistake] in lines[0]


def test_an_unpaired_cohort_that_cannot_be_read_is_named_before_anything_is_trained(
    finished, tmp_path
):
    folder, _ = finished
    table = tmp_path / "others.csv"
    table.write_text("case,landmark,x_lps_mm,y_lps_mm,z_lps_mm\np1,M1/M2 RR,1,2,3\n")
    arguments = [
        "--config=experiments/cow_table1.py:tiny/D-MRA-CTA",
        f"--workdir={tmp_path / 'work'}",
        f"--config.data.cache={folder / 'cache'}",
    ]
    for path, message in (
        (table, f"error: {table}: case 'p1': landmark 'M1/M2 RR' is not in config.data.landmarks"),
        (
            tmp_path / "none.csv",
            f"error: config.data.unpaired: there is no {tmp_path / 'none.csv'}",
        ),
    ):
        result = jaxmark(*arguments, f"--config.data.unpaired={path}")
        assert result.returncode == 1
        assert result.stderr.strip().splitlines()[-1].startswith(message)
    assert not (tmp_path / "work").exists()
