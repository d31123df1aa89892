"""The script for GPUs, on a CPU: parts, their time limit, the table and the archive."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from running import QUICK, ROOT

from experiments import gpu, rows


def test_parts_name_benchmarks() -> None:
    # In a process of its own: it defines flags.
    program = "from experiments.benchmarks.run import PARTS; print(*PARTS)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    for arguments, _ in gpu.PARTS.values():
        named = arguments.split()[0].removeprefix("--parts=").split(",")
        assert set(named) <= set(ran.stdout.split()), ran.stderr


def test_rows_end_with_the_code_of_the_first_that_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; print(*sys.argv[1:]); sys.exit(7)"
    monkeypatch.setattr(rows, "JAXMARK", ("-S", "-c", program))
    home = tmp_path / "rows" / "Payer-0"
    end = time.monotonic() + 60
    assert gpu.train(tmp_path, "paper", ["Payer", "Noothout"], end) == 7
    flags = f"--workdir={home} --config=experiments/cow_table1.py:paper/Payer --config.seed=0"
    said = f"{flags}\nPayer: failed, 0.0 minutes\nrun this again to continue\n"
    assert capfd.readouterr().out == said
    for name in ("evaluation/summary.json", "report/index.html"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("{}")
    assert gpu.train(tmp_path, "paper", ["Payer"], end) == 0
    assert capfd.readouterr().out == "all rows are done\n"


def test_table_and_archive(tmp_path: Path) -> None:
    step = {"volume": "16x16x16", "batch": 1, "K": 2, "work": "step", "jaxmark_ms": 2.0}
    bound = {**step, "floor_ms": 1.0, "measured_ms": 2.0, "floor/measured": 0.5}
    del bound["jaxmark_ms"]
    parts = {
        "step": {"rows": [{**step, "torch/jaxmark": 3.0, "jaxmark_MB": 7.0}]},
        "roofline": {"rows": [bound]},
        "convolutions": {"rows": [{"form": "direct"}]},
    }
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "program").write_text("large")
    (tmp_path / "speed.json").write_text(json.dumps({"parts": parts}))
    first, second = gpu.benchmark_rows(tmp_path)
    assert (first["what"], first["ms"], first["torch/jaxmark"], first["MB"]) == ("step", 2, 3, 7)
    assert (second["what"], second["ms"], second["floor/measured"]) == ("roofline", 2, 0.5)

    home = tmp_path / "rows" / "Baseline-0"
    for folder in ("logs", "evaluation", "checkpoints/2"):
        (home / folder).mkdir(parents=True)
    assert list(gpu.trained_rows(tmp_path)) == []
    (home / "config.json").write_text(json.dumps({"train": {"batch": 2}}))
    speeds = [{"step": 30, "volumes_per_s": 2.0}, {"step": 60, "volumes_per_s": 1.0}]
    (home / "logs" / "speed.jsonl").write_text("".join(json.dumps(s) + "\n" for s in speeds))
    (row,) = gpu.trained_rows(tmp_path)
    assert (row["steps"], row["minutes_of_steps"], row["MRE_mm"]) == (60, 1.5, None)
    (home / "evaluation" / "summary.json").write_text('{"mre_mm": 1.25}')
    (home / "checkpoints" / "2" / "weights").write_text("large")
    (row,) = gpu.trained_rows(tmp_path)
    assert row["MRE_mm"] == 1.25

    for _ in range(2):  # once more with the archive there
        gpu.pack(tmp_path)
    with tarfile.open(tmp_path / gpu.ARCHIVE) as archive:
        names = archive.getnames()
    assert "speed.json" in names and "rows/Baseline-0/evaluation/summary.json" in names
    left = ("checkpoints", "compiled", gpu.ARCHIVE)
    assert not any(part in name for name in names for part in left)


@pytest.mark.slow
def test_rows_are_trained_call_by_call(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.gpu", "--part=train", "--preset=tiny"]
    command += ["--rows=Baseline", f"--out={tmp_path}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}

    def run(minutes: float) -> subprocess.CompletedProcess[str]:
        arguments = [*command, f"--minutes={minutes}"]
        return subprocess.run(arguments, cwd=ROOT, env=env, text=True, capture_output=True)

    # Six seconds are too few.
    cut = run((6 + rows.GRACE_S) / 60)
    assert cut.returncode == 3 and "Baseline: cut off" in cut.stdout, cut.stdout + cut.stderr
    done = run(5)
    assert done.returncode == 0 and "all rows are done" in done.stdout, done.stdout + done.stderr
    assert "Baseline-0" in done.stdout.split("== trained")[1]
