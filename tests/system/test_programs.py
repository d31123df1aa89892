"""Compiled programs that commands keep: used again, whole or not at all."""

import json
import os
import time

import jax
import pytest
from running import TINY, jaxmark

from jaxmark.system import programs

TRAIN = (TINY, "--mode=train", "--config.method.steps=2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's; JAX's own configuration comes back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def keep():
    """As a command begins; nothing is configured yet."""
    jax.config.update("jax_compilation_cache_dir", None)
    return programs.keep()


def test_a_second_run_compiles_nothing_and_gives_the_same_bytes(tmp_path):
    cache = tmp_path / "cache"
    environment = {"JAX_COMPILATION_CACHE_DIR": None, "XDG_CACHE_HOME": str(cache)}
    logs, kept = [], []
    for number in range(2):
        work = tmp_path / f"work{number}"
        data = f"--config.data.cache={tmp_path / 'data'}"
        result = jaxmark(*TRAIN, data, f"--workdir={work}", **environment)
        assert result.returncode == 0 and result.stderr.count("rror") == 0, result.stderr
        logs.append((work / "logs" / "metrics.jsonl").read_bytes())
        (folder,) = (cache / "jaxmark" / "programs").iterdir()
        kept.append({path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")})
    assert logs[0] == logs[1]
    # What was kept is not made again. On a busy machine one more may take long enough to be kept.
    assert kept[0].items() <= kept[1].items() and len(kept[0]) >= 1
    signed = json.loads((folder / "signatures.json").read_text())
    assert sorted(signed["programs"]) == sorted(kept[1])


def test_only_what_was_signed_and_is_whole_and_young_stays(cache):
    folder = keep()
    assert folder is not None and cache in folder.parents
    assert jax.config.jax_compilation_cache_dir == str(folder)
    for name in ("whole", "damaged", "old"):
        (folder / f"{name}-cache").write_bytes(b"program " * 100)
    programs.sign(folder)
    (folder / "unsigned-cache").write_bytes(b"program")
    (folder / "damaged-cache").write_bytes(b"program " * 99)
    long_ago = time.time() - 61 * 86400
    os.utime(folder / "old-cache", (long_ago, long_ago))
    (folder / "other file").write_text("")
    assert keep() == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        *("other file", "signatures.json", "whole-cache")
    ]
    for spoilt in ("", "[1]", "{", '{"schema_version": 1}', '{"schema_version": 1, "programs": 2}'):
        (folder / "signatures.json").write_text(spoilt)
        (folder / "whole-cache").write_bytes(b"program")
        assert keep() == folder and not list(folder.glob("*-cache"))


def test_another_folder_that_was_chosen_stays_chosen(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert programs.keep() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not cache.exists()
    programs.sign(None)


def test_where_no_folder_can_be_nothing_is_kept(cache, tmp_path):
    cache.write_text("a file")
    assert keep() is None and jax.config.jax_compilation_cache_dir is None
