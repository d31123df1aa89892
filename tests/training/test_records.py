"""The log of a run."""

import pytest

from jaxmark.system.errors import InputError
from jaxmark.training.records import METRICS, SPEED, Records, read_records


def test_log_may_end_in_half_a_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    whole = b'{"kind": "train", "phase": "p", "step": 1}\n'
    path.write_bytes(whole + b'{"kind": "\xc3')
    assert [record["step"] for record in read_records(path)] == [1]
    for damage in (b'{"kind"\n', b"[1]\n", b'{"kind": "train"}\n'):
        path.write_bytes(whole + damage + whole)
        with pytest.raises(InputError, match="line 2"):
            read_records(path)


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    log = Records(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.write("train", "pretrain", step, loss=0.1 * step)
    log.close()
    path = tmp_path / METRICS
    with path.open("a") as file:
        file.write('{"kind": "train", "pha')
    again = Records(tmp_path, resume_step=2)
    again.write("train", "pretrain", 3, loss=0.5)
    again.close()
    assert [(r["step"], r["loss"]) for r in read_records(path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.5),
    ]


def test_tensorboard_gets_every_value(tmp_path):
    pytest.importorskip("tensorboardX")
    log = Records(tmp_path, resume_step=0, tensorboard=True)
    log.write("train", "pretrain", 1, loss=0.25)
    log.write_speed("pretrain", 1, 2.0)
    log.close()
    assert [r["volumes_per_s"] for r in read_records(tmp_path / SPEED)] == [2.0]
    (events,) = (tmp_path / "logs" / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"speed/volumes_per_s" in events.read_bytes()
