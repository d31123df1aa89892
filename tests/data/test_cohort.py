import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data
from jaxmark.data.cohort import RawCase, check_inside, read_cohort
from jaxmark.data.landmarks import Landmarks, write_fcsv, write_mrk_json, write_table
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.system.errors import InputError

AFFINE = np.array([[2.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)
A, B, C = (
    np.array([12.0, 22.0, -27.0]),
    np.array([14.0, 24.0, -24.0]),
    np.array([11.0, 23.0, -30.0]),
)


def make(root: Path, cases: dict[str, Landmarks | None], splits: object = None) -> Data:
    """A cohort on disk; a case with None has no landmark file."""
    for name, landmarks in cases.items():
        (root / "images").mkdir(exist_ok=True)
        # Scans are not read here: an empty file will do.
        (root / "images" / f"{name}.nii.gz").touch()
        if landmarks is not None:
            write_mrk_json(root / "landmarks" / f"{name}.mrk.json", landmarks)
    if splits is not None:
        (root / "splits.json").write_text(json.dumps(splits))
    return Data(root=str(root))


def two(root: Path, splits: object = None) -> Data:
    return make(root, {"one": {"a": A, "b": B}, "two": {"b": B, "a": None}, "bare": None}, splits)


def states(case: RawCase) -> str:
    """A letter a landmark: p(resent), a(bsent), u(nknown)."""
    assert not (case.present & case.absent).any()
    assert case.present.dtype == case.absent.dtype == bool
    assert (np.isfinite(case.landmarks_mm).all(-1) == case.present).all()
    assert (np.isnan(case.landmarks_mm).all(-1) == ~case.present).all()
    pairs = zip(case.present, case.absent, strict=True)
    return "".join("p" if present else "a" if absent else "u" for present, absent in pairs)


def test_a_folder_of_landmark_files(tmp_path: Path) -> None:
    cohort = read_cohort(two(tmp_path, {"train": ["two"], "val": ["one"], "test": ["bare"]}))
    assert cohort.names == ("a", "b")
    assert cohort.splits == {"train": ("two",), "val": ("one",), "test": ("bare",)}
    assert list(cohort.cases) == ["bare", "one", "two"]
    case = cohort.cases["two"]
    assert case.name == "two" and case.landmark_names == ("a", "b")
    assert case.scan == tmp_path / "images" / "two.nii.gz"
    assert case.landmark_file == tmp_path / "landmarks" / "two.mrk.json"
    np.testing.assert_array_equal(case.landmarks_mm, [[np.nan] * 3, B])
    assert states(case) == "ap" and states(cohort.cases["one"]) == "pp"
    bare = cohort.cases["bare"]
    assert bare.landmark_file is None and states(bare) == "uu"
    assert bare.landmarks_mm.shape == (2, 3) and np.isnan(bare.landmarks_mm).all()


def test_one_table_for_all(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": None, "two": None})
    write_table(tmp_path / "landmarks.csv", {"two": {"a": A}, "one": {"a": B}})
    cohort = read_cohort(data)
    np.testing.assert_array_equal(cohort.cases["two"].landmarks_mm, [A])
    assert cohort.cases["one"].landmark_file == tmp_path / "landmarks.csv"


def test_all_formats_in_one_folder(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": {"a": A}, "two": None, "three": None})
    (tmp_path / "landmarks" / "two.csv").write_text("landmark,x_ras,y_ras,z_ras\na,-1,-2,3\n")
    (tmp_path / "landmarks" / "three.fcsv").write_text(
        "# CoordinateSystem = 0\n# columns = id,x,y,z,label\n1,-1,-2,3,a\n"
    )
    (tmp_path / "landmarks" / "README.md").write_text("who placed them")
    cases = read_cohort(data).cases
    np.testing.assert_array_equal(cases["two"].landmarks_mm, [[1, 2, 3]])
    np.testing.assert_array_equal(cases["three"].landmarks_mm, [[1, 2, 3]])


def test_the_frame_is_passed_on(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": None})
    (tmp_path / "landmarks.csv").write_text("case,landmark,x,y,z\none,a,1,2,3\n")
    refused(lambda: read_cohort(data), tmp_path / "landmarks.csv", "--config.data.frame")
    data = dataclasses.replace(data, frame="RAS")
    np.testing.assert_array_equal(read_cohort(data).cases["one"].landmarks_mm, [[-1, -2, 3]])


# Names


def test_the_first_case_in_natural_order_gives_the_order(tmp_path: Path) -> None:
    cases: dict[str, Landmarks | None] = {"c10": {"a": A, "b": B}, "c9": {"b": B, "a": A}}
    assert read_cohort(make(tmp_path, cases)).names == ("b", "a")


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert read_cohort(make(tmp_path, {"c": {"10": A, "2": B, "1": C}})).names == ("1", "2", "10")


def test_chosen_names_set_the_order_and_may_be_lacking(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": {"a": A, "b": B}, "two": {"c": C}})
    cohort = read_cohort(dataclasses.replace(data, landmarks=("c", "b", "a")))
    assert cohort.names == ("c", "b", "a")
    assert cohort.cases["one"].present.tolist() == [False, True, True]
    np.testing.assert_array_equal(cohort.cases["two"].landmarks_mm[0], C)
    # What a file leaves out was not annotated, which is not the same as absent.
    assert states(cohort.cases["one"]) == "upp" and states(cohort.cases["two"]) == "puu"


@pytest.mark.parametrize("extension", [".mrk.json", ".fcsv", ".csv"])
def test_three_states(tmp_path: Path, extension: str) -> None:
    landmarks: Landmarks = {"a": A, "b": None, "c": np.full(3, np.nan)}
    data = dataclasses.replace(make(tmp_path, {"one": None}), landmarks=("d", "c", "b", "a"))
    file = tmp_path / "landmarks" / f"one{extension}"
    if extension == ".csv":
        write_table(file, {"one": landmarks})
    else:
        (write_fcsv if extension == ".fcsv" else write_mrk_json)(file, landmarks)
    case = read_cohort(data).cases["one"]
    assert states(case) == "uuap" and case.landmark_file == file
    check_inside(case, scan())


@pytest.mark.parametrize("seed", range(3))
def test_both_frames_of_every_format_are_the_same_to_the_last_bit(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 100, (6, 3))
    points[0, 0], points[1] = -0.0, [0.1 + 0.2, 1e-17, 5e-324]
    labels = [f"p{i}" for i in range(len(points))]
    found = {}
    for frame, signs in (("LPS", [1, 1, 1]), ("RAS", [-1, -1, 1])):
        numbers = (points * signs).tolist()
        rows = [(n, *map(repr, xyz)) for n, xyz in zip(labels, numbers, strict=True)]
        control = [{"label": n, "position": [float(v) for v in xyz]} for n, *xyz in rows]
        node = {"type": "Fiducial", "coordinateSystem": frame, "controlPoints": control}
        files = {
            ".mrk.json": json.dumps({"markups": [node]}),
            ".fcsv": f"# CoordinateSystem = {frame}\n# columns = id,x,y,z,label\n"
            + "".join(f"1,{x},{y},{z},{n}\n" for n, x, y, z in rows),
            ".csv": "label,"
            + ",".join(f"{axis}_{frame}_mm" for axis in "xyz")
            + "\n"
            + "".join(",".join(row) + "\n" for row in rows),
        }
        for extension, text in files.items():
            root = tmp_path / frame / extension
            (root / "images").mkdir(parents=True)
            (root / "images" / "one.nii.gz").touch()
            (root / "landmarks").mkdir()
            (root / "landmarks" / f"one{extension}").write_text(text)
            case = read_cohort(Data(root=str(root), landmarks=(*labels, "unseen"))).cases["one"]
            assert states(case) == "ppppppu"
            found[frame, extension] = case.landmarks_mm.tobytes()
    assert len(found) == 6 and len(set(found.values())) == 1
    assert points.tobytes() == found["RAS", ".fcsv"][: points.nbytes]


def test_names_at_odds(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": {"a": A, "b": B}, "two": {"a": A, "c": C}})
    file = tmp_path / "landmarks" / "two.mrk.json"
    refused(
        lambda: read_cohort(data),
        f"{file}: case 'two' lacks 'b' and also has 'c', unlike case 'one'",
        "--config.data.landmarks",
    )
    chosen = dataclasses.replace(data, landmarks=("a", "b", "cc"))
    refused(
        lambda: read_cohort(chosen),
        f"{file}: case 'two': landmark 'c' is not in config.data.landmarks",
        "the nearest name is 'cc'",
    )
    doubled = dataclasses.replace(data, landmarks=("a", "b", "a"))
    refused(lambda: read_cohort(doubled), "config.data.landmarks: names 'a' 2 times")


# Splits


def names(count: int) -> dict[str, Landmarks | None]:
    return {f"case-{i}": {"a": A} for i in range(count)}


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 1, 0)), (20, (14, 3, 3))]
)
def test_drawn_splits_have_every_case_once(
    tmp_path: Path, count: int, sizes: tuple[int, int, int]
) -> None:
    data = make(tmp_path, {**names(count), "bare": None})
    splits = read_cohort(data).splits
    assert tuple(len(splits[split]) for split in ("train", "val", "test")) == sizes
    assert sorted(sum(splits.values(), ())) == sorted(names(count))
    assert read_cohort(data).splits == splits


def test_drawn_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    data = make(tmp_path, names(20))
    first = read_cohort(data).splits
    assert first["train"] == tuple(sorted(first["train"], key=lambda n: int(n[5:])))
    assert read_cohort(dataclasses.replace(data, split_seed=1)).splits != first
    other = tmp_path / "other"
    other.mkdir()
    reversed_names = dict(reversed(names(20).items()))
    assert read_cohort(make(other, reversed_names)).splits == first


@pytest.mark.parametrize("fractions", [(0.5, 0.49), (0.0, 0.9)])
def test_training_keeps_a_case(tmp_path: Path, fractions: tuple[float, float]) -> None:
    data = make(tmp_path, names(3))
    data = dataclasses.replace(data, val_fraction=fractions[0], test_fraction=fractions[1])
    splits = read_cohort(data).splits
    assert splits["train"] and splits["val"]


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_impossible_fractions(tmp_path: Path, fractions: tuple[float, float]) -> None:
    data = make(tmp_path, names(3))
    data = dataclasses.replace(data, val_fraction=fractions[0], test_fraction=fractions[1])
    refused(lambda: read_cohort(data), "config.data: val_fraction and test_fraction")


def test_splits_may_leave_out_keys_and_cases(tmp_path: Path) -> None:
    splits = read_cohort(two(tmp_path, {"train": ["two"]})).splits
    assert splits == {"train": ("two",), "val": (), "test": ()}


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ([], "is not an object"),
        ({"train": "one"}, "train is not a list of case names"),
        ({"train": [1]}, "train is not a list of case names"),
        ({"training": ["one"]}, "'training' is not one of train, val, test"),
        ({"train": []}, "names no cases"),
        ({"train": ["one", "two", "one"]}, "case 'one' is in train and again in train"),
        ({"train": ["one"], "test": ["one"]}, "case 'one' is in train and again in test"),
        ({"val": ["oen"]}, "val: case 'oen' has no image; the nearest name is 'one'"),
        ({"train": ["bare"]}, "train: case 'bare' has no landmarks"),
        ({"val": ["bare"]}, "val: case 'bare' has no landmarks"),
    ],
)
def test_wrong_splits(tmp_path: Path, splits: object, problem: str) -> None:
    data = two(tmp_path, splits)
    refused(lambda: read_cohort(data), f"{tmp_path / 'splits.json'}: {problem}")


@pytest.mark.parametrize("content", [b'{"train": ', b"\xff\xfe\xfd"])
def test_splits_that_are_not_json(tmp_path: Path, content: bytes) -> None:
    data = two(tmp_path)
    (tmp_path / "splits.json").write_bytes(content)
    refused(lambda: read_cohort(data), tmp_path / "splits.json", "is not JSON")


def test_splits_of_millions_of_names(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    for splits, problem in (
        ({"train": ["one"] * 10**6}, "case 'one' is in train and again in train"),
        ({"train": ["x" * 10**7]}, "train: case 'xxx"),
        ({"x" * 10**7: []}, "'xxx"),
        ({"train": ["one"], "val": [str(n) for n in range(10**6)]}, "val: case '0' has no image"),
    ):
        data = two(tmp_path, splits)
        refused(lambda data=data: read_cohort(data), f"{file}: {problem}")
        with pytest.raises(InputError) as caught:
            read_cohort(data)
        assert len(str(caught.value)) < 500 + len(str(file))


def test_a_name_that_is_coded_otherwise_is_pointed_out(tmp_path: Path) -> None:
    # As on a Mac and elsewhere: they look alike.
    data = make(tmp_path, {"caf\u00e9": {"a": A}}, {"train": ["cafe\u0301"]})
    refused(lambda: read_cohort(data), "has no image", "'caf\u00e9', coded 'caf\\xe9'")


# Folders


def test_folders_at_odds(tmp_path: Path) -> None:
    refused(lambda: read_cohort(Data()), "config.data.root: there is no folder ''")
    absent = Data(root=str(tmp_path / "absent"))
    refused(lambda: read_cohort(absent), "config.data.root", tmp_path / "absent")
    data = Data(root=str(tmp_path))
    refused(lambda: read_cohort(data), f"{tmp_path}: has no folder images/")
    (tmp_path / "images").mkdir()
    refused(lambda: read_cohort(data), tmp_path / "images", "holds no scans", ".nii.gz")
    (tmp_path / "images" / "one.nii").touch()
    refused(lambda: read_cohort(data), f"{tmp_path}: has no landmarks")
    chosen = dataclasses.replace(data, landmarks=("a",))
    refused(lambda: read_cohort(chosen), "config.data.root", "no case", "has landmarks")
    write_mrk_json(tmp_path / "landmarks" / "one.mrk.json", {"a": A})
    assert read_cohort(data).splits["train"] == ("one",)
    write_table(tmp_path / "landmarks.csv", {"one": {"a": A}})
    refused(lambda: read_cohort(data), tmp_path, "two places, landmarks and landmarks.csv")
    with_suffix = dataclasses.replace(data, suffix="T1w")
    refused(lambda: read_cohort(with_suffix), "config.data.suffix: 'T1w'", tmp_path / "images")


def test_landmark_files_at_odds(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": {"a": A}})
    stray = tmp_path / "landmarks" / "onne.mrk.json"
    write_mrk_json(stray, {"a": A})
    refused(
        lambda: read_cohort(data),
        f"{stray}: case 'onne' has landmarks but no image; the nearest name is 'one'",
    )
    stray.unlink()
    (tmp_path / "landmarks" / "one.csv").write_text("landmark,x_lps,y_lps,z_lps\na,1,2,3\n")
    refused(lambda: read_cohort(data), "one.mrk.json", "case 'one' has a second file, one.csv")


def test_a_table_with_a_case_without_image(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": None})
    write_table(tmp_path / "landmarks.csv", {"one": {"a": A}, "uno": {"a": A}})
    refused(lambda: read_cohort(data), tmp_path / "landmarks.csv", "case 'uno'", "no image")


def test_only_prediction(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": None}, {"test": ["one"]})
    cohort = read_cohort(dataclasses.replace(data, landmarks=("a", "b")))
    assert cohort.splits["test"] == ("one",)
    assert cohort.cases["one"].landmarks_mm.shape == (2, 3)


# Landmarks and volumes


def case(xyz: list[float], present: bool = True) -> RawCase:
    positions = np.array([[12.0, 22.0, -27.0], xyz])
    here = np.array([True, present])
    return RawCase("one", Path("one.nii"), positions, here, ~here, Path("one.csv"), ("a", "b"))


def scan() -> Scan:
    return Scan(np.zeros(SHAPE, np.float32), AFFINE)


def at(index: list[float]) -> list[float]:
    return (AFFINE[:3, :3] @ index + AFFINE[:3, 3]).tolist()


@pytest.mark.parametrize("index", [[-0.5, -0.5, -0.5], [5.5, 4.5, 3.5], [2, 2, 2]])
def test_landmarks_in_the_outermost_voxels_are_inside(index: list[float]) -> None:
    check_inside(case(at(index)), scan())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("high", [False, True])
def test_landmarks_beyond_them_are_outside(axis: int, high: bool) -> None:
    index = [2.0, 2.0, 2.0]
    index[axis] = SHAPE[axis] - 0.49 if high else -0.51
    refused(lambda: check_inside(case(at(index)), scan()), "one.csv: case 'one': landmark 'b'")
    check_inside(case(at(index), present=False), scan())


def test_the_message_says_where_and_how_far() -> None:
    problem = (
        "one.csv: case 'one': landmark 'b' at LPS (30.0, 22.0, -27.0) mm is outside of its scan, "
        "which extends over x 9.0 to 21.0, y 19.0 to 29.0, z -31.5 to -19.5 mm"
    )
    with pytest.raises(InputError) as caught:
        check_inside(case([30.0, 22.0, -27.0]), scan())
    assert str(caught.value) == problem


def test_a_mirrored_landmark_gets_a_hint() -> None:
    refused(
        lambda: check_inside(case([-12.0, -22.0, -27.0]), scan()),
        "landmark 'b'",
        "with x and y negated it is inside",
        "RAS",
    )


def test_an_oblique_scan_read_from_disk(tmp_path: Path) -> None:
    turned = AFFINE.copy()
    c, s = np.cos(0.5), np.sin(0.5)
    turned[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    write_scan(tmp_path / "one.nii.gz", voxels, turned)
    volume = read_scan(tmp_path / "one.nii.gz")
    corner = turned[:3, :3] @ [5.5, 4.5, 3.5] + turned[:3, 3]
    centre = turned[:3, :3] @ [2, 2, 2] + turned[:3, 3]
    check_inside(
        dataclasses.replace(case([0, 0, 0]), landmarks_mm=np.array([centre, corner])), volume
    )
    # In the box around the volume, but beside the volume.
    beside = turned[:3, :3] @ [5.5, -1.0, 2] + turned[:3, 3]
    wrong = dataclasses.replace(case([0, 0, 0]), landmarks_mm=np.array([centre, beside]))
    refused(lambda: check_inside(wrong, volume), "landmark 'b'")


@pytest.mark.parametrize("name", [" one", "one ", "a\\b"])
def test_case_names_become_file_names(tmp_path: Path, name: str) -> None:
    data = make(tmp_path, {name: None, "two": {"a": A}})
    refused(lambda: read_cohort(data), tmp_path / "images", "the case's name is")


@pytest.mark.real_data
def test_real_cohort(real_data: Path) -> None:
    cohort = read_cohort(Data(root=str(real_data / "mouse_ct")))
    assert len(cohort.names) == 45 and list(cohort.names) == sorted(cohort.names, key=int)
    assert {split: len(cases) for split, cases in cohort.splits.items()} == {
        "train": 16,
        "val": 4,
        "test": 0,
    }
    first = cohort.cases[cohort.splits["train"][0]]
    check_inside(first, read_scan(first.scan))
