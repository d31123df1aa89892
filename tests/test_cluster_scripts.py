"""The scripts for SLURM, with an srun and a scontrol that only write down how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import HOME

SCRIPTS = HOME / "experiments" / "cluster"
TRAINING = ("train.sbatch", "crossval.sbatch")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(script: str, folder: Path, code: int, **variables: str) -> tuple[int, list[str], list[str]]:
    """Its exit code, what srun was called with, and what scontrol."""
    for program in ("srun", "scontrol"):
        file = folder / program
        ends = f"exit {code}" if program == "srun" else ""
        file.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{folder}/{program}.txt"\n{ends}\n')
        file.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), "--config=a b.py:tiny", "--workdir=W"],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", **variables},
        check=False,
    )
    called = [folder / "srun.txt", folder / "scontrol.txt"]
    words = [file.read_text("utf-8").splitlines() if file.exists() else [] for file in called]
    return done.returncode, words[0], words[1]


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("train.sbatch", "--distributed"),
        ("predict.sbatch", "--mode=predict"),
        ("crossval.sbatch", "--mode=crossval"),
    ],
)
def test_flags_reach_the_program_as_they_were_given(tmp_path, script, mode):
    code, called, requeued = run(script, tmp_path, 0, SLURM_CPUS_PER_TASK="8")
    assert (code, requeued) == (0, [])
    assert "jaxmark.main" in called and mode in called
    assert {"--config=a b.py:tiny", "--workdir=W", "--config.data.workers=8"} <= set(called)


@pytest.mark.parametrize("script", TRAINING)
def test_a_stopped_training_is_queued_again_and_a_failed_one_is_not(tmp_path, script):
    assert run(script, tmp_path, 3)[::2] == (3, ["requeue", "42"])
    (tmp_path / "scontrol.txt").unlink()
    assert run(script, tmp_path, 1)[::2] == (1, [])
    assert run(script, tmp_path, 3, SLURM_RESTART_COUNT="50")[::2] == (3, [])
