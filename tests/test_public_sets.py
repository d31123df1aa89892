"""Public landmark sets become cohorts that jaxmark reads; the files here are made."""

import json

import numpy as np
import pytest
from pictures import bmp

from experiments.public_sets import main
from jaxmark.config import Data
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.landmarks import read_table
from jaxmark.data.pictures import read_picture
from jaxmark.data.scans import read_scan, write_scan

AFIDS = [f"fiducial {number}" for number in range(1, 33)]


def convert(kind, folder, *flags):
    main([f"--kind={kind}", f"--input={folder / 'in'}", f"--output={folder / 'out'}", *flags])


def cohort(folder):
    return read_cohort(Data(root=str(folder / "out")))


def position(found, case, name):
    return found.cases[case].landmarks_mm[found.names.index(name)].tolist()


def refused(kind, folder, *words):
    with pytest.raises(SystemExit) as stopped:
        convert(kind, folder)
    message = str(stopped.value.code)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (folder / "out").exists()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def scan(path, voxels=None, origin=(-20.0, -20.0, -20.0)):
    """40 mm cubed, LPS -20 to 20."""
    place = np.eye(4)
    place[:3, 3] = origin
    if voxels is None:
        voxels = np.arange(40**3).reshape(40, 40, 40).astype(np.float32)
    write_scan(path, voxels, place)


# TopCoW


def node(*coords, degree=3):
    return [{"id": 7, "degree": degree, "label": 1, "coords": list(coords)}]


def topcow(folder, case="topcow_mr_001", pcom=True, nodes=None):
    """Vessels around LPS (5, 6, 7): the node files are in RAS."""
    data = folder / "in"
    scan(data / "release" / "imagesTr" / f"{case}_0000.nii.gz")
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[24:27, 25:28, 26:29] = 1
    scan(data / "release" / "cow_seg_labelsTr" / f"{case}.nii.gz", labels)
    nodes = nodes or {"1": {"BA bifurcation": node(-5, -6, 7), "BA start": node(0, 0, 0, degree=1)}}
    write(data / "graphs" / "cow_nodes" / f"{case}.json", nodes)
    edges = {
        "anterior": {"L-A1": True, "Acom": True, "3rd-A2": False, "R-A1": True},
        "posterior": {"L-Pcom": 1, "L-P1": 1, "R-P1": 1, "R-Pcom": int(pcom)},
        "fenestration": {},
    }
    write(data / "graphs" / "cow_variants" / f"{case}.json", edges)


def test_topcow_nodes_become_lps_and_missing_segments_absent(tmp_path, capsys):
    topcow(tmp_path, pcom=False)
    topcow(tmp_path, "topcow_ct_001")
    convert("topcow", tmp_path)
    found = cohort(tmp_path)
    assert list(found.cases) == ["topcow_mr_001"]
    assert len(found.names) == 10
    assert position(found, "topcow_mr_001", "BA bifurcation") == [5, 6, 7]
    case = found.cases["topcow_mr_001"]
    check_inside(case, read_scan(case.scan))
    absent = {name for name, yes in zip(found.names, case.absent, strict=True) if yes}
    assert absent == {
        "R-PCA/Pcom bifurcation",
        "R-ICA/Pcom bifurcation",
        "Acom/3rd-A2 bifurcation",
    }
    said = capsys.readouterr().out
    assert "1 cases, 10 landmarks; 1 points, 3 absent" in said
    assert "checked against the label maps of 1 of 1 cases" in said
    assert "of the other modality, left out: 1 (topcow_ct_001)" in said


def test_topcow_nodes_in_another_frame_are_refused(tmp_path):
    topcow(tmp_path, nodes={"1": {"BA bifurcation": node(5, 6, 7)}})
    refused("topcow", tmp_path, "topcow_mr_001.json", "BA bifurcation", "no vessel", "3 mm")


def test_topcow_ends_that_are_called_bifurcations_are_none(tmp_path):
    topcow(tmp_path, nodes={"1": {"BA bifurcation": node(-5, -6, 7, degree=1)}})
    # Of another person it is one: a cohort without any landmark is refused.
    topcow(tmp_path, "topcow_mr_002")
    convert("topcow", tmp_path)
    cases = cohort(tmp_path).cases
    assert not cases["topcow_mr_001"].present.any() and cases["topcow_mr_002"].present.any()


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"1": {"BA bifurcation": [{"degree": 3}]}}, ["'1'.'BA bifurcation'[0].coords"]),
        ({"1": {"BA bifurcation": node(1, 2)}}, ["coords is not a list of three numbers"]),
        ({"1": {"BA bifurcation": node(1, 2, "3")}}, ["coords is not three numbers in mm"]),
        ({"1": {"BA bifurcation": [{"coords": [1, 2, 3]}]}}, ["[0].degree"]),
        ({"1": []}, ["'1' is not a JSON object"]),
        ([], ["is not a JSON object"]),
    ],
)
def test_topcow_node_files_that_are_wrong_are_named_with_their_field(tmp_path, nodes, words):
    topcow(tmp_path)
    write(tmp_path / "in" / "graphs" / "cow_nodes" / "topcow_mr_001.json", nodes)
    refused("topcow", tmp_path, "topcow_mr_001.json", *words)


# AFIDs


def fcsv(names, ras=(1.5, 2.0, 3.0)):
    head = "# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n"
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    x, y, z = ras
    return head + "".join(
        f"vtkMRMLMarkupsFiducialNode_{i},{x + i / 4},{y},{z},0,0,0,1,1,1,0,{i},{name},\n"
        for i, name in enumerate(names, start=1)
    )


def afids(folder, subject, text):
    name = f"{subject}_space-T1w_desc-groundtruth_afids.fcsv"
    write(folder / "in" / "derivatives" / "afids_groundtruth" / subject / "anat" / name, text)


def test_afids_are_named_by_their_descriptions(tmp_path, capsys):
    for subject in ("sub-01", "sub-02", "sub-03"):
        afids(tmp_path, subject, fcsv(AFIDS))
    rater = tmp_path / "in" / "derivatives" / "afids_rater"
    write(rater / "sub-01_space-T1w_desc-rater01_afids.fcsv", fcsv(AFIDS))
    for subject in ("sub-01", "sub-02"):
        scan(tmp_path / "in" / subject / "anat" / f"{subject}_T1w.nii.gz")
    convert("afids", tmp_path)
    found = cohort(tmp_path)
    assert list(found.cases) == ["sub-01", "sub-02"]
    assert list(found.names) == AFIDS
    assert position(found, "sub-01", "fiducial 4") == [-2.5, -2.0, 3.0]
    assert found.cases["sub-01"].scan.is_symlink()
    said = capsys.readouterr().out
    assert "without an image, left out: 1 (sub-03)" in said
    assert "not desc-groundtruth, left out: 1 (sub-01_space-T1w_desc-rater01_afids.fcsv)" in said


def test_afids_without_images_become_a_table(tmp_path, capsys):
    afids(tmp_path, "sub-01", fcsv(AFIDS))
    convert("afids", tmp_path)
    table = read_table(tmp_path / "out" / "landmarks.csv")
    assert table["sub-01"]["fiducial 1"].tolist() == [-1.75, -2.0, 3.0]
    assert "no images: landmarks.csv is all that is written" in capsys.readouterr().out


def test_descriptions_in_quotes_may_have_commas(tmp_path):
    afids(tmp_path, "sub-01", fcsv(['"fiducial 1, of the midline"', *AFIDS[1:]]))
    convert("afids", tmp_path)
    table = read_table(tmp_path / "out" / "landmarks.csv")
    assert list(table["sub-01"])[0] == "fiducial 1, of the midline"


def test_copied_images_are_no_links(tmp_path):
    afids(tmp_path, "sub-01", fcsv(AFIDS))
    scan(tmp_path / "in" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    convert("afids", tmp_path, "--copy")
    assert not cohort(tmp_path).cases["sub-01"].scan.is_symlink()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (fcsv(AFIDS[:31]), ["column label is not 1 to 32", "1 (32)"]),
        (fcsv([*AFIDS[:31], ""]), ["column desc of label 32 is empty"]),
        (fcsv([*AFIDS[:31], AFIDS[0]]), ["column desc has 'fiducial 1' twice"]),
        (fcsv([*AFIDS[:31], "another"]), ["column desc: 'another' is not a name of sub-01_"]),
        (fcsv(AFIDS).replace("# CoordinateSystem = 0\n", ""), ["no coordinate frame"]),
        (fcsv(AFIDS).replace(",label,desc,", ",label,text,"), ["does not name desc"]),
    ],
)
def test_afids_files_that_are_wrong_are_named_with_their_field(tmp_path, text, words):
    afids(tmp_path, "sub-01", fcsv(AFIDS))
    afids(tmp_path, "sub-02", text)
    refused("afids", tmp_path, "sub-02_space-T1w_desc-groundtruth_afids.fcsv", *words)


# ISBI 2015


def lines(x, y, classes=8):
    return "".join(f"{x + i},{y}\n" for i in range(19)) + "1\n" * classes


def isbi(folder, case, senior=None, junior=None):
    for reader, text in (("400_senior", senior), ("400_junior", junior)):
        write(folder / "in" / "AnnotationsByMD" / reader / f"{case}.txt", text or lines(835, 996))


def test_isbi_landmarks_are_the_mean_of_two_readers_in_mm(tmp_path, capsys):
    isbi(tmp_path, "001", lines(835, 996), lines(838, 1000))
    isbi(tmp_path, "151")
    write(tmp_path / "in" / "AnnotationsByMD" / "400_junior" / "152.txt", lines(1, 1))
    convert("isbi2015", tmp_path)
    table = read_table(tmp_path / "out" / "landmarks.csv")
    assert list(table) == ["001", "151"]
    assert len(table["001"]) == 19
    np.testing.assert_allclose(table["001"]["Sella"], [83.65, 99.8, 0], atol=1e-9)
    np.testing.assert_allclose(table["001"]["Nasion"], [83.75, 99.8, 0], atol=1e-9)
    splits = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert splits == {"train": ["001"], "val": [], "test": ["151"]}
    said = capsys.readouterr().out
    assert "--config.data.pixel_size_mm=0.1" in said
    assert "of one reader only, left out: 1 (152)" in said


def test_isbi_pictures_and_points_are_a_cohort(tmp_path):
    pixels = (np.arange(2400)[:, None] + np.arange(1935)).astype(np.uint8)
    for case in ("001", "151"):
        isbi(tmp_path, case)
        (tmp_path / "in" / f"{case}.bmp").write_bytes(bmp(pixels))
    convert("isbi2015", tmp_path)
    data = Data(root=str(tmp_path / "out"), crop=(64, 64, 1), pixel_size_mm=0.1)
    found = read_cohort(data)
    assert found.splits["test"] == ("151",)
    np.testing.assert_allclose(found.cases["001"].landmarks_mm[0], [83.5, 99.6, 0])
    scan = read_picture(found.cases["001"].scan, "mm", 0.1)
    assert scan.voxels.shape == (1935, 2400, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lines(835, 996).replace("836,996", "836;996"), ["line 2", "not x,y"]),
        (lines(835, 996).replace("836,996", "8.3.6,996"), ["line 2", "not x,y"]),
        (lines(835, 2400), ["line 1", "outside of a picture of 1935 x 2400"]),
        ("1,2\n" * 18, ["18 lines x,y, not 19"]),
        ("1,2\n" * 20, ["line 20", "more than 19"]),
    ],
)
def test_isbi_lines_that_are_wrong_are_named(tmp_path, text, words):
    isbi(tmp_path, "001", junior=text)
    refused("isbi2015", tmp_path, "400_junior", "001.txt", *words)


# ALI-CBCT


def markups(points, frame="LPS", status="preview"):
    listed = [
        {"label": label, "position": list(xyz), "positionStatus": status}
        for label, xyz in points.items()
    ]
    return {
        "markups": [{"type": "Fiducial", "coordinateSystem": frame, "controlPoints": listed}],
    }


def test_ali_regions_are_merged_and_preview_is_a_position(tmp_path, capsys):
    data = tmp_path / "in" / "P1"
    write(data / "P1_lm_U.mrk.json", markups({"ANS": (1, 2, 3)}))
    write(data / "P1_lm_L.json", markups({"Me": (4, 5, 6)}, "RAS", "defined"))
    write(data / "P1_lm_Pred_U.mrk.json", markups({"ANS": (9, 9, 9)}))
    scan(data / "P1_scan_sp1.nii.gz")
    scan(data / "P1_scan_sp0-3.nii.gz")
    write(tmp_path / "in" / "P2" / "P2_lm_U.mrk.json", markups({"ANS": (7, 8, 9)}))
    scan(tmp_path / "in" / "P2" / "P2_scan.nrrd")
    convert("ali", tmp_path)
    found = cohort(tmp_path)
    assert set(found.names) == {"ANS", "Me"}
    assert position(found, "P1", "ANS") == [1, 2, 3]
    assert position(found, "P1", "Me") == [-4, -5, 6]
    assert position(found, "P2", "ANS") == [7, 8, 9]
    me = found.names.index("Me")
    assert not found.cases["P2"].present[me]
    assert not found.cases["P2"].absent[me]
    assert found.cases["P1"].scan.resolve().name == "P1_scan_sp0-3.nii.gz"
    said = capsys.readouterr().out
    assert "called preview, read as placed: 2 (P1_lm_U.mrk.json, P2_lm_U.mrk.json)" in said
    assert "predictions, left out: 1 (P1_lm_Pred_U.mrk.json)" in said
    assert "the finest taken: 1 (P1)" in said
    assert "without some landmarks, which are not annotated there: 1 (P2)" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (markups({"ANS": (1, 2, 4)}), ["'ANS' is elsewhere"]),
        (markups({"Me": (1, 2)}), ["markups[0].controlPoints[0].position"]),
        (markups({"Me": (1, 2, 1e400)}), ["controlPoints[0].position"]),
        (markups({"": (1, 2, 3)}), ["controlPoints[0].label"]),
        (markups({"Me": (1, 2, 3)}, "XYZ"), ["markups[0].coordinateSystem"]),
        (markups({"Me": (1, 2, 3)}, status="seen"), ["controlPoints[0].positionStatus"]),
        ({"markups": []}, ["markups is not"]),
        ("{", ["is not JSON"]),
    ],
)
def test_ali_files_that_are_wrong_are_named_with_their_field(tmp_path, content, words):
    write(tmp_path / "in" / "P1_lm_CB.mrk.json", markups({"ANS": (1, 2, 3)}))
    write(tmp_path / "in" / "P1_lm_U.mrk.json", content)
    refused("ali", tmp_path, "P1_lm_U.mrk.json", *words)


# All


@pytest.mark.parametrize("kind", ["topcow", "afids", "isbi2015", "ali"])
def test_a_folder_without_the_set_says_what_was_looked_for(tmp_path, kind):
    (tmp_path / "in").mkdir()
    refused(kind, tmp_path, str(tmp_path / "in"), "has no ")


def test_what_is_there_is_not_overwritten(tmp_path):
    isbi(tmp_path, "001")
    convert("isbi2015", tmp_path)
    with pytest.raises(SystemExit, match="landmarks.csv: is there already"):
        convert("isbi2015", tmp_path)


def test_the_output_is_not_put_into_the_input(tmp_path):
    isbi(tmp_path, "001")
    inside = tmp_path / "in" / "out"
    with pytest.raises(SystemExit, match="is inside of --input"):
        main(["--kind=isbi2015", f"--input={tmp_path / 'in'}", f"--output={inside}"])
    assert not inside.exists()
