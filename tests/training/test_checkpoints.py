"""Checkpoints on a disk that fails: whatever happens to a file, wrong bits are never used."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmark.methods.method import State
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError
from jaxmark.training.checkpoints import DAMAGED, Checkpoints, DamagedError, Writer, tree_digest


def state(step):
    params = {"net": {"kernel": step + jax.random.normal(jax.random.key(0), (3, 3, 4, 4))}}
    return State(jnp.int32(step), params, {"net": optax.adam(1e-3).init(params)})


def save(workdir, *steps, keep=9, errors=()):
    writer = Writer(workdir, keep=keep)
    for step, error in zip(steps, [*errors, *[None] * len(steps)], strict=False):
        writer.save(state(step), {"next_index": step}, {"of": [step]}, error)
    writer.close()


def newest(workdir):
    """Step, state and iterator of the newest whole checkpoint."""
    checkpoints, mesh = Checkpoints(workdir), data_mesh()
    abstract = jax.eval_shape(lambda: state(0))
    return checkpoints.first_whole(
        reversed(checkpoints.steps()), lambda step: checkpoints.state(step, abstract, mesh)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 2, 4)
    return folder


def truncated(path, rng):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def deleted(path, rng):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, flipped, deleted])
def test_any_damage_to_any_file_gives_the_bits_of_a_checkpoint_or_the_one_before(
    saved, tmp_path, damage, capsys
):
    rng = np.random.default_rng(0)
    files = sorted(p.relative_to(saved) for p in saved.rglob("4/**/*") if p.is_file())
    assert len(files) > 20
    fallen_back = 0
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        damage(workdir / file, rng)
        step, (found, iterator) = newest(workdir)
        assert iterator == {"next_index": step}
        assert tree_digest([found.params, found.optimizer]) == tree_digest(
            [state(step).params, state(step).optimizer]
        ), file
        assert ("is damaged" in capsys.readouterr().err) == (step == 2)
        fallen_back += step == 2
    assert fallen_back >= 5


def test_what_is_damaged_is_set_aside_and_its_step_can_be_saved_again(saved, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(saved, workdir)
    for _ in range(2):
        deleted(workdir / "checkpoints" / "4" / "meta" / "metadata", None)
        Checkpoints(workdir).set_aside_after(2)
        assert Checkpoints(workdir).steps() == [2]
        save(workdir, 4)
        assert newest(workdir)[0] == 4
    assert len(list((workdir / DAMAGED).iterdir())) == 2


def test_a_half_written_folder_is_no_checkpoint_and_is_cleared(saved, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(saved, workdir)
    half = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "4", half)
    assert Checkpoints(workdir).steps() == [2, 4]
    save(workdir, 6)
    assert Checkpoints(workdir).steps() == [2, 4, 6] and not half.exists()


def test_all_damaged_is_an_error_and_nothing_is_lost(saved, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(saved, workdir)
    for step in ("2", "4"):
        truncated(workdir / "checkpoints" / step / "params" / "manifest.ocdbt", None)
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        newest(workdir)
    assert Checkpoints(workdir).steps() == [2, 4]


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path) is None and not list(tmp_path.iterdir())


def test_the_newest_and_the_best_are_kept_over_restarts(tmp_path):
    save(tmp_path, 1, 2, 3, keep=1, errors=[5.0, 1.0, 3.0])
    save(tmp_path, 4, 5, keep=1, errors=[2.0])
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 5]
    assert checkpoints.errors_mm() == {2: 1.0, 5: np.inf}
    # The best one is damaged: the one that was not even validated is what remains.
    deleted(tmp_path / "checkpoints" / "2" / "meta" / "metadata", None)
    assert checkpoints.best_first() == [5, 2]
    with pytest.raises(DamagedError, match=r"2: is damaged: meta cannot be read"):
        checkpoints.meta(2)


def test_a_digest_tells_names_types_shapes_and_bits_apart():
    one = np.ones((2, 3), np.float32)
    nearly = one.copy()
    nearly[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    others = [{"b": one}, {"a": nearly}, {"a": one.T}, {"a": one.astype(np.float64)}, {"a": 1.0}]
    digests = {tree_digest(tree) for tree in [{"a": one}, *others]}
    assert len(digests) == 6 and tree_digest({"a": jnp.asarray(one)}) == tree_digest({"a": one})
