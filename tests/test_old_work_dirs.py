"""Work dirs that earlier code left half trained: today's code continues and predicts them.

`work_dirs/*.tar.xz` were made by commit d426b3d with `cow.py:tiny` and the rows D-MRA-CTA-dagger
and Noothout of `cow_table1.py:tiny`, stopped by SIGTERM after step 4 or 5 of 6. In each is the log
that the same code wrote when it went on, `expected_metrics.jsonl`.
"""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from running import TINY, jaxmark

from jaxmark.training.records import METRICS, read_records
from jaxmark.workflow import load_model, pack

ROWS = "--config=experiments/cow_table1.py:tiny"
CONFIGS = {
    "heatmap": TINY,
    "adversarial": f"{ROWS}/D-MRA-CTA-dagger",
    # Its flag "refine" lay among the parameters.
    "noothout": f"{ROWS}/Noothout",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_half_trained_run_of_earlier_code_is_continued_and_predicted(
    name, tmp_path, cache, monkeypatch
):
    with tarfile.open(Path(__file__).parent / "work_dirs" / f"{name}.tar.xz") as archive:
        # Python 3.11.2 has no filters, later ones ask for one.
        kind = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **kind)
    work = tmp_path / name
    # Written before there was a phantom to choose from, and before images could be mirrored.
    stored = json.loads((work / "config.json").read_text())
    assert "class" not in stored["phantom"] and "flip" not in stored["augment"]
    (half,) = (work / "checkpoints").iterdir()

    arguments = (CONFIGS[name], f"--workdir={work}", f"--config.data.cache={cache}")
    result = jaxmark(*arguments, "--nohuge_pages")
    assert result.returncode == 0, result.stderr
    assert f"continuing at step {half.name} of 6" in result.stdout

    found, expected = (read_records(work / path) for path in (METRICS, "expected_metrics.jsonl"))
    assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
    # To the last bit where it was written; another processor rounds otherwise.
    for ours, theirs in zip(found, expected, strict=True):
        if ours["kind"] == "train":
            np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-2)
    assert (work / "predictions" / "landmarks_subvoxel.csv").exists()
    assert "mre_mm" in json.loads((work / "evaluation" / "summary.json").read_text())

    # A scan never seen, by a model that is named by its work dir alone.
    scan = next(cache.glob("phantom-*/images/phantom-000.nii.gz"))
    out = tmp_path / "out"
    flags = (f"--checkpoint={work}", f"--input={scan}", f"--output={out}", "--nohuge_pages")
    result = jaxmark("--mode=predict", *flags)
    assert result.returncode == 0, result.stderr
    assert (out / "phantom-000.mrk.json").exists()
    if name == "heatmap":
        # The same model as one file, which names no case.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "packed"))
        pack(work, tmp_path / "model.zip")
        found = load_model(tmp_path / "model.zip").predict(scan)
        with (out / "phantom-000.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        expected = [[float(row[f"{axis}_lps_mm"]) for axis in "xyz"] for row in rows]
        np.testing.assert_allclose(found.positions_mm, expected, atol=1e-3)
        (unpacked,) = (tmp_path / "packed" / "jaxmark" / "models").iterdir()
        texts = [p.read_bytes() for p in unpacked.rglob("*") if p.is_file()]
        assert not any(b"phantom-0" in text for text in texts)
