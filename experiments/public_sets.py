"""Public landmark sets, which users download themselves, as cohorts that jaxmark reads.

    python -m experiments.public_sets --kind=KIND --input=FOLDER --output=FOLDER

`--input` is a folder that holds the unpacked set, at any depth; docs/public_sets.md lists the sets,
their terms and the checks. All files are read before the first is written. The output has `images/`
(links, or copies with `--copy`), `landmarks/<case>.mrk.json` in LPS millimetres, and `splits.json`
if the set has splits. Without images it has only `landmarks.csv`, which a three-dimensional set can
use as `--config.data.unpaired`.
"""

import argparse
import csv
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.data.landmarks import (
    Landmarks,
    check_case,
    read_landmarks,
    write_mrk_json,
    write_table,
)
from jaxmark.data.pictures import EXTENSIONS as PICTURES
from jaxmark.data.scans import EXTENSIONS, case_name, read_scan
from jaxmark.system.errors import InputError, about
from jaxmark.system.files import read_bytes, read_json, replacing, write_json

SHOWN = 5
# Positions farther from a scan's origin are refused.
FARTHEST_MM = 1e7
TO_LPS = {"LPS": np.array([1.0, 1.0, 1.0]), "RAS": np.array([-1.0, -1.0, 1.0])}

# ISBI 2015: size of a pixel as the challenge states it, and size of all pictures.
ISBI_PIXEL_MM = 0.1
ISBI_SIZE = (1935, 2400)
ISBI_PICTURES = (".bmp", ".png", ".jpg")
ISBI_READERS = ("400_senior", "400_junior")
ISBI_TRAIN = range(1, 151)
ISBI_NAMES = (
    "Sella",
    "Nasion",
    "Orbitale",
    "Porion",
    "Subspinale",
    "Supramentale",
    "Pogonion",
    "Menton",
    "Gnathion",
    "Gonion",
    "Lower incisal incision",
    "Upper incisal incision",
    "Upper lip",
    "Lower lip",
    "Subnasale",
    "Soft tissue pogonion",
    "Posterior nasal spine",
    "Anterior nasal spine",
    "Articulare",
)
AFIDS_COUNT = 32
# (label of TopCoW, node) -> name, and the segments of the variant file that it needs.
TOPCOW_NODES: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("1", "BA bifurcation"): ("BA bifurcation", ("R-P1", "L-P1")),
    ("2", "Pcom bifurcation"): ("R-PCA/Pcom bifurcation", ("R-P1", "R-Pcom")),
    ("3", "Pcom bifurcation"): ("L-PCA/Pcom bifurcation", ("L-P1", "L-Pcom")),
    ("4", "Pcom bifurcation"): ("R-ICA/Pcom bifurcation", ("R-Pcom",)),
    ("4", "ICA bifurcation"): ("R-ICA bifurcation", ("R-A1",)),
    ("6", "Pcom bifurcation"): ("L-ICA/Pcom bifurcation", ("L-Pcom",)),
    ("6", "ICA bifurcation"): ("L-ICA bifurcation", ("L-A1",)),
    ("10", "3rd-A2 bifurcation"): ("Acom/3rd-A2 bifurcation", ("3rd-A2",)),
    ("11", "Acom bifurcation"): ("R-ACA/Acom bifurcation", ("R-A1", "Acom")),
    ("12", "Acom bifurcation"): ("L-ACA/Acom bifurcation", ("L-A1", "Acom")),
}
# A node lies on its vessel's centreline; in a mirrored frame it would be far from all vessels.
TOPCOW_NEAR_MM = 3.0
# A node with fewer edges is an end, even if the file calls it a bifurcation.
TOPCOW_DEGREE = 3


@dataclass(frozen=True)
class PublicSet:
    """The content of a set; nothing is written yet."""

    # Case -> landmarks in LPS mm (for a 2-D set: column, row and 0 in mm).
    cases: dict[str, Landmarks]
    # Case -> image file; a case may lack one.
    images: dict[str, Path]
    # As in splits.json; empty if the set has no splits.
    splits: dict[str, list[str]] = field(default_factory=dict)
    # Lines that say what was left out or guessed.
    notes: tuple[str, ...] = ()


def read_topcow(folder: Path, modality: str) -> PublicSet:
    """Bifurcations of the Circle of Willis, from the graphs made of TopCoW's label maps.

    `cow_nodes/<case>.json` is {label: {node: [{"id", "degree", "label", "coords"}]}}, as
    fmusio/CoW_Centerline_Extraction writes it (postprocess_graph/node_extraction.py,
    sanity_check_graphs_and_nodes.py). The file states no frame: coords are RAS mm, as the affine
    of the NIfTI label map says; where `cow_seg_labelsTr/` is there, this is checked. Images are
    TopCoW's `imagesTr/<case>_0000.nii.gz`.

    A bifurcation that the file lacks is absent if `cow_variants/<case>.json` lists one of its
    segments as missing; else it was not annotated.

    Args:
      folder: holds both releases, unpacked.
      modality: "mr" or "ct"; the two scans of a person must not come apart in splits.

    Raises:
      InputError: no node files; a file, field or position is not as described.
    """
    found = files_below(folder)
    nodes = {
        path.stem: path
        for path in found
        if path.parent.name == "cow_nodes" and path.suffix == ".json"
    }
    if not nodes:
        raise InputError(folder, "has no cow_nodes/<case>.json (CoW_Centerline_Data)")
    chosen = {case: path for case, path in nodes.items() if case.startswith(f"topcow_{modality}_")}
    if not chosen:
        raise InputError(folder, f"has no cow_nodes/topcow_{modality}_*.json; see --modality")
    variants = by_case(found, "cow_variants", ".json")
    label_maps = by_case(found, "cow_seg_labelsTr", ".nii.gz")
    cases = {}
    unclear: list[str] = []
    for case, path in chosen.items():
        landmarks, several = topcow_landmarks(path, variants.get(case))
        unclear += [f"{case} {name}" for name in several]
        if case in label_maps:
            check_on_vessels(path, landmarks, label_maps[case])
        cases[case] = landmarks
    notes = [
        "node files state no frame; read as RAS, as the label maps' affine is; "
        f"checked against the label maps of {len(chosen.keys() & label_maps.keys())} of "
        f"{len(chosen)} cases"
    ]
    notes += said("without cow_variants, so that nothing is absent", chosen.keys() - variants)
    notes += said("several nodes of one name, taken as not annotated", unclear)
    notes += said("of the other modality, left out", nodes.keys() - chosen)
    images = by_case(found, "imagesTr", "_0000.nii.gz")
    return PublicSet(cases, images, notes=tuple(notes))


def topcow_landmarks(path: Path, variant: Path | None) -> tuple[Landmarks, list[str]]:
    """The bifurcations of one node file in LPS mm, and the names that occur several times."""
    tree = read_json(path)
    missing = set() if variant is None else missing_segments(variant)
    landmarks: Landmarks = {}
    several = []
    for (label, node), (name, needs) in TOPCOW_NODES.items():
        segment = tree.get(label, {})
        if not isinstance(segment, dict):
            raise InputError(path, f"{label!r} is not a JSON object")
        entries = segment.get(node, [])
        where = f"{label!r}.{node!r}"
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise InputError(path, f"{where} is not a list of nodes")
        entries = [e for i, e in enumerate(entries) if degree(path, e, f"{where}[{i}]")]
        if len(entries) > 1:
            several.append(name)
        if len(entries) == 1:
            position = three_numbers(path, entries[0].get("coords"), f"{where}[0].coords")
            landmarks[name] = position * TO_LPS["RAS"]
        elif not entries and missing.intersection(needs):
            landmarks[name] = None
        else:
            landmarks[name] = np.full(3, np.nan)
    return landmarks, several


def degree(path: Path, entry: Mapping[str, Any], where: str) -> bool:
    """Whether enough edges meet at a node for a bifurcation."""
    edges = entry.get("degree")
    if not isinstance(edges, int) or isinstance(edges, bool):
        raise InputError(path, f"{where}.degree is not a whole number")
    return edges >= TOPCOW_DEGREE


def missing_segments(path: Path) -> set[str]:
    """Segments that are missing in this person, by a variant file.

    It is {"anterior": {"L-A1": true, ...}, "posterior": {...}}, with 0 and 1 in TopCoW's own files
    (CoWBenchmark/TopCoW_Eval_Metrics, test_assets/edg_metrics/topcow_ct_003.yml).
    """
    tree = read_json(path)
    missing = set()
    for part in ("anterior", "posterior"):
        segments = tree.get(part)
        if not isinstance(segments, dict):
            raise InputError(path, f"{part} is not a JSON object")
        for name, there in segments.items():
            if there not in (0, 1):
                raise InputError(path, f"{part}.{name} is not true, false, 0 or 1")
            missing |= set() if there else {name}
    return missing


def check_on_vessels(path: Path, landmarks: Landmarks, label_map: Path) -> None:
    """InputError for a landmark that is not within 3 mm of a labelled voxel."""
    scan = read_scan(label_map)
    reach = np.ceil(TOPCOW_NEAR_MM / scan.spacing_mm).astype(int)
    for name, xyz in landmarks.items():
        if xyz is None or not np.isfinite(xyz).all():
            continue
        ijk = np.linalg.solve(scan.ijk_to_lps[:3, :3], xyz - scan.ijk_to_lps[:3, 3])
        low = np.clip(np.round(ijk).astype(int) - reach, 0, scan.voxels.shape)
        high = np.clip(np.round(ijk).astype(int) + reach + 1, 0, scan.voxels.shape)
        box = scan.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if not (box > 0).any():
            raise InputError(
                path,
                f"{name}: no vessel of {label_map} is within {TOPCOW_NEAR_MM:g} mm of its coords, "
                "read as RAS; files of another release?",
            )


def read_afids(folder: Path, desc: str) -> PublicSet:
    """The 32 anatomical fiducials (AFIDs) of a BIDS derivative, named by their descriptions.

    `sub-*_desc-<desc>_afids.fcsv` (and `tpl-*`, of templates) are 3D Slicer's files whose labels
    are numbers from 1 to 32 and whose descriptions are the names; so in afids/afids-data, whose
    subjects have an image `sub-*/anat/sub-*_T1w.nii.gz`. Frames are stated in the files.

    Raises:
      InputError: no such files; a case has two files or images; a file is no .fcsv file, its
        labels are not 1 to 32, or its names not those of the first.
    """
    found = files_below(folder)
    ending = f"_desc-{desc}_afids.fcsv"
    cases: dict[str, Landmarks] = {}
    sources: dict[str, Path] = {}
    for path in found:
        if path.name.startswith(("sub-", "tpl-")) and path.name.endswith(ending):
            case = bids_case(path)
            add_once(sources, case, path, "file of fiducials")
            cases[case] = afids_landmarks(path)
    if not cases:
        raise InputError(folder, f"has no sub-*{ending} (see --desc)")
    first, *others = cases
    for case in others:
        if list(cases[case]) != list(cases[first]):
            name = next(n for n in cases[case] if n not in cases[first])
            problem = f"column desc: {name!r} is not a name of {sources[first].name}"
            raise InputError(sources[case], problem)
    images: dict[str, Path] = {}
    for path in found:
        name = case_name(path) if is_image(path) else ""
        if name.endswith("_T1w") and bids_case(path) in cases and "_space-" not in name:
            add_once(images, bids_case(path), path, "T1w image")
    unused = [path.name for path in found if path.name.endswith("_afids.fcsv")]
    return PublicSet(
        cases,
        images,
        notes=tuple(
            said(f"not desc-{desc}, left out", set(unused) - {p.name for p in sources.values()})
        ),
    )


def afids_landmarks(path: Path) -> Landmarks:
    """Fiducials of one file in LPS mm, in the order of their numbers."""
    numbered = read_landmarks(path)
    numbers = [str(number) for number in range(1, AFIDS_COUNT + 1)]
    if set(numbered) != set(numbers):
        odd = sorted(set(numbered) ^ set(numbers))
        raise InputError(path, f"column label is not 1 to {AFIDS_COUNT}: see {listed(odd)}")
    names = descriptions(path)
    landmarks: Landmarks = {}
    for number in numbers:
        name = names.get(number, "")
        if not name:
            raise InputError(path, f"column desc of label {number} is empty; it is the name")
        if name in landmarks:
            raise InputError(path, f"column desc has {name!r} twice")
        landmarks[name] = numbered[number]
    return landmarks


def descriptions(path: Path) -> dict[str, str]:
    """Label -> description of a .fcsv file that `read_landmarks` has accepted."""
    lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig").splitlines()]
    stated = [re.fullmatch("# *columns *[=:](.*)", line, re.IGNORECASE) for line in lines]
    columns = [c.strip() for match in stated if match for c in match[1].split(",")]
    if "desc" not in columns:
        raise InputError(path, "line '# columns =' does not name desc")
    label, desc = columns.index("label"), columns.index("desc")
    rows = list(csv.reader(line for line in lines if line and not line.startswith("#")))
    return {row[label].strip(): row[desc].strip() for row in rows if desc < len(row)}


def bids_case(path: Path) -> str:
    """The subject of a BIDS file, with its session if it has one."""
    parts = path.name.split("_")
    return "_".join(parts[: 2 if len(parts) > 1 and parts[1].startswith("ses-") else 1])


def read_isbi2015(folder: Path) -> PublicSet:
    """19 landmarks on lateral cephalograms, 2-D pictures: the mean of two readers, in mm.

    `400_senior/001.txt` and `400_junior/001.txt` hold a line "x,y" in pixels a landmark, then
    classes of the malocclusion, a number a line, which are not read (folders as described in
    jfm15/ContourHuggingHeatmaps, README.md). x is the picture's column and y its row from the top,
    the first pixel's centre being 0.

    Pictures are `<picture>.bmp` in any folder below; 1 to 150 are for training, the others
    (Test1Data, Test2Data) for testing.

    Raises:
      InputError: no such files; a line is not two numbers inside of the picture.
    """
    found = files_below(folder)
    readers = [by_case(found, reader, ".txt") for reader in ISBI_READERS]
    cases: dict[str, Landmarks] = {}
    for case in sorted(readers[0].keys() & readers[1].keys()):
        mean = np.mean([isbi_pixels(reader[case]) for reader in readers], axis=0)
        points = np.column_stack([mean * ISBI_PIXEL_MM, np.zeros(len(mean))])
        cases[case] = dict(zip(ISBI_NAMES, points, strict=True))
    if not cases:
        wanted = " and ".join(f"{reader}/<picture>.txt" for reader in ISBI_READERS)
        raise InputError(folder, f"has no {wanted}")
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for case in cases:
        trained = case.isdecimal() and int(case) in ISBI_TRAIN
        splits["train" if trained else "test"].append(case)
    pictures: dict[str, Path] = {}
    for path in found:
        if path.suffix.lower() in ISBI_PICTURES:
            add_once(pictures, path.stem, path, "picture")
    notes = [
        "x is the column and y the row in mm, z is 0; the pictures do not state the size of their "
        f"pixels: --config.data.pixel_size_mm={ISBI_PIXEL_MM:g}",
        *said("of one reader only, left out", readers[0].keys() ^ readers[1].keys()),
    ]
    return PublicSet(cases, pictures, splits, tuple(notes))


def isbi_pixels(path: Path) -> np.ndarray:
    """(19, 2) float64: column and row of each landmark in one reader's file."""
    try:
        lines = read_bytes(path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not plain text (byte {error.start})") from None
    rows = [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
    points = []
    for number, text in rows[: len(ISBI_NAMES)]:
        match = re.fullmatch(r"([0-9.]{1,12})\s*,\s*([0-9.]{1,12})", text)
        try:
            xy = [float(value) for value in match.groups()] if match else []
        except ValueError:
            xy = []
        if not xy:
            raise InputError(path, f"line {number} is {text[:40]!r}, not x,y in pixels")
        if not all(value <= size - 1 for value, size in zip(xy, ISBI_SIZE, strict=True)):
            width, height = ISBI_SIZE
            problem = f"line {number}: {text} is outside of a picture of {width} x {height} pixels"
            raise InputError(path, problem)
        points.append(xy)
    if len(points) < len(ISBI_NAMES):
        raise InputError(path, f"has {len(points)} lines x,y, not {len(ISBI_NAMES)}")
    for number, text in rows[len(ISBI_NAMES) :]:
        if "," in text:
            raise InputError(path, f"line {number} is a landmark more than {len(ISBI_NAMES)}")
    return np.array(points)


def read_ali(folder: Path) -> PublicSet:
    """Landmarks on cone-beam CT of the head in files of ALI-CBCT: one a patient and region.

    `<patient>_lm_<region>.mrk.json` are 3D Slicer's markups, which state their frame, and
    `<patient>_scan_<spacing>.nii.gz` (or another format) the scans, `sp0-3` for 0.3 mm; names and
    regions as in Maxlo24/ALI_CBCT (src/AGENT/utils.py, GlobalVar.py). Its own files call every
    point "preview", with a position: such points are read as placed. Files of predictions,
    `_lm_Pred_`, are left out.

    Raises:
      InputError: no such files; a file is not such JSON; two files give a landmark two positions;
        a patient has several scans whose names do not say which is the finest.
    """
    found = files_below(folder)
    cases: dict[str, Landmarks] = {}
    previews: list[str] = []
    predicted: list[str] = []
    for path in found:
        if "_lm_" not in path.name or not path.name.endswith((".json", ".fcsv")):
            continue
        case, _, region = path.name.partition("_lm_")
        if region.startswith("Pred"):
            predicted.append(path.name)
            continue
        if path.suffix == ".fcsv":
            landmarks = read_landmarks(path)
        else:
            landmarks, guessed = markup_points(path)
            previews += [path.name] * bool(guessed)
        merge(cases.setdefault(case, {}), landmarks, path)
    if not cases:
        raise InputError(folder, "has no <patient>_lm_<region>.mrk.json")
    images, chosen = ali_images(found, cases)
    notes = [
        *said("with points that are called preview, read as placed", previews),
        *said("predictions, left out", predicted),
        *said("with scans of several spacings, the finest taken", chosen),
    ]
    return PublicSet(cases, images, notes=tuple(notes))


def markup_points(path: Path) -> tuple[Landmarks, int]:
    """Points of a Slicer markups file in LPS mm, and how many are called "preview"."""
    tree = read_json(path)
    markups = tree.get("markups")
    if not isinstance(markups, list) or not markups:
        raise InputError(path, "markups is not a list of point lists")
    landmarks: Landmarks = {}
    previews = 0
    for i, markup in enumerate(markups):
        if not isinstance(markup, dict) or not isinstance(markup.get("controlPoints"), list):
            raise InputError(path, f"markups[{i}].controlPoints is not a list")
        frame = {"0": "RAS", "1": "LPS"}.get(str(markup.get("coordinateSystem")))
        frame = frame or str(markup.get("coordinateSystem", "")).upper()
        if frame not in TO_LPS:
            raise InputError(path, f"markups[{i}].coordinateSystem is not LPS or RAS")
        unit = markup.get("coordinateUnits", "mm")
        if unit != "mm" and not (isinstance(unit, list) and unit[:1] == ["mm"]):
            raise InputError(path, f"markups[{i}].coordinateUnits is not mm")
        for j, point in enumerate(markup["controlPoints"]):
            where = f"markups[{i}].controlPoints[{j}]"
            if not isinstance(point, dict):
                raise InputError(path, f"{where} is not a JSON object")
            label = point.get("label")
            if not isinstance(label, str) or not label.strip() or not label.isprintable():
                raise InputError(path, f"{where}.label is not a name")
            if label.strip() in landmarks:
                raise InputError(path, f"{where}.label {label.strip()!r} comes a second time")
            status = point.get("positionStatus", "defined")
            if status not in ("defined", "preview", "undefined", "missing"):
                raise InputError(path, f"{where}.positionStatus is not one of 3D Slicer's")
            if status == "missing":
                landmarks[label.strip()] = None
                continue
            if status == "undefined" or (status == "preview" and "position" not in point):
                landmarks[label.strip()] = np.full(3, np.nan)
                continue
            previews += status == "preview"
            position = three_numbers(path, point.get("position"), f"{where}.position")
            landmarks[label.strip()] = position * TO_LPS[frame]
    return landmarks, previews


def merge(into: Landmarks, landmarks: Landmarks, path: Path) -> None:
    """Add the landmarks of one file to those of the patient's other files."""
    for name, xyz in landmarks.items():
        known = into.get(name, xyz)
        same = (known is None) == (xyz is None) and (
            known is None or xyz is None or np.allclose(known, xyz, atol=1e-3, equal_nan=True)
        )
        if not same:
            raise InputError(path, f"landmark {name!r} is elsewhere in another file of the patient")
        into[name] = xyz


def ali_images(
    found: Iterable[Path], cases: Mapping[str, Landmarks]
) -> tuple[dict[str, Path], list[str]]:
    """Patient -> the scan of the finest spacing; and patients whose other scans were left out."""
    scans: dict[str, dict[float, Path]] = {}
    for path in found:
        name = case_name(path) if is_image(path) else ""
        case, _, spacing = name.partition("_scan")
        if not name or case not in cases:
            continue
        match = re.fullmatch("_sp([0-9]+)-?([0-9]*)", spacing)
        spacing_mm = float(f"{match[1]}.{match[2] or 0}") if match else 0.0
        others = scans.setdefault(case, {})
        if spacing_mm in others or (others and 0.0 in (spacing_mm, *others)):
            other = next(iter(others.values()))
            raise InputError(path, f"patient {case!r} has a second scan, {other.name}; keep one")
        others[spacing_mm] = path
    images = {case: choices[min(choices)] for case, choices in scans.items()}
    return images, [case for case, choices in scans.items() if len(choices) > 1]


def write_cohort(given: PublicSet, output: Path, copy: bool = False) -> list[str]:
    """Write a cohort for jaxmark; return lines that say what was written and left out.

    A landmark that only some cases have is written in the others as not annotated, so that
    `read_cohort` finds the same names everywhere. If no case has an image, only `landmarks.csv` and
    the splits are written. Else cases without an image are left out, since the cohort would be
    refused.

    Raises:
      InputError: the folder holds a cohort already; a case or landmark has a name that cannot be
        written.
      OSError: a file cannot be written.
    """
    for name in ("images", "landmarks", "landmarks.csv", "splits.json"):
        if os.path.lexists(output / name):
            raise InputError(output / name, "is there already; choose another --output")
    for case in given.cases:
        check_case(output, case, "--input")
    names = list(dict.fromkeys(name for case in given.cases.values() for name in case))
    filled = {
        case: {name: landmarks.get(name, np.full(3, np.nan)) for name in names}
        for case, landmarks in given.cases.items()
    }
    lines = said(
        "without some landmarks, which are not annotated there",
        [case for case, landmarks in given.cases.items() if len(landmarks) < len(names)],
    )
    written = {case: filled[case] for case in filled if case in given.images} or filled
    if not given.images.keys() & filled.keys():
        with about(output / "landmarks.csv"):
            write_table(output / "landmarks.csv", filled)
        lines.append("no images: landmarks.csv is all that is written")
    else:
        for case, landmarks in written.items():
            target = output / "landmarks" / f"{case}.mrk.json"
            with about(target):
                write_mrk_json(target, landmarks)
            place(given.images[case], output / "images", case, copy)
        lines += said("without an image, left out", filled.keys() - written)
    splits = {name: [c for c in part if c in written] for name, part in given.splits.items()}
    if splits:
        write_json(output / "splits.json", splits)
    points = sum(np.isfinite(xyz).all() for case in written.values() for xyz in numbers_of(case))
    absent = sum(xyz is None for case in written.values() for xyz in case.values())
    return [
        f"{output}: {len(written)} cases, {len(names)} landmarks; {points} points"
        + f", {absent} absent" * bool(absent),
        *lines,
    ]


def numbers_of(landmarks: Landmarks) -> Iterator[np.ndarray]:
    """Positions of landmarks that are not absent."""
    return (xyz for xyz in landmarks.values() if xyz is not None)


def place(image: Path, folder: Path, case: str, copy: bool) -> None:
    """Put the image into `folder` under the case's name, as a link or a copy."""
    known = sorted((*EXTENSIONS, *PICTURES), key=len)[::-1]
    extension = next(e for e in known if image.name.lower().endswith(e))
    target = folder / f"{case}{extension}"
    if copy:
        with replacing(target) as temporary:
            shutil.copyfile(image, temporary)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        target.symlink_to(image.resolve())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder in a stable order; hidden ones and links to folders are left out."""
    if not folder.is_dir():
        raise InputError(folder, "is not a folder")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
    return found


def by_case(found: Iterable[Path], folder: str, ending: str) -> dict[str, Path]:
    """Case -> its file `<folder>/<case><ending>`, at any depth.

    Raises:
      InputError: two such folders have the same case.
    """
    files: dict[str, Path] = {}
    for path in found:
        if path.parent.name == folder and path.name.endswith(ending):
            add_once(files, path.name[: -len(ending)], path, "file")
    return files


def add_once(files: dict[str, Path], case: str, path: Path, kind: str) -> None:
    """Add a case's file; InputError for a second one."""
    if case in files:
        raise InputError(path, f"case {case!r} has a second {kind}, {files[case]}")
    files[case] = path


def is_image(path: Path) -> bool:
    """Whether the name is that of a scan in one file."""
    return path.name.lower().endswith(EXTENSIONS)


def three_numbers(path: Path, values: Any, where: str) -> np.ndarray:
    """(3,) float64 mm of a JSON list; InputError about `where` for anything else."""
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(path, f"{where} is not a list of three numbers")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not -FARTHEST_MM < value < FARTHEST_MM or math.isnan(value):
            raise InputError(path, f"{where} is not three numbers in mm")
    return np.array(values, np.float64)


def said(what: str, names: Iterable[str]) -> list[str]:
    """A line about these names, or no line if there are none."""
    return [f"{what}: {listed(sorted(names))}"] if (names := list(names)) else []


def listed(names: list[str]) -> str:
    """The number of names, and the first five."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"


def main(argv: list[str] | None = None) -> None:
    """Convert one set and print a summary; bad input ends with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", required=True, choices=["topcow", "afids", "isbi2015", "ali"])
    parser.add_argument("--input", type=Path, required=True, help="folder with the unpacked set")
    parser.add_argument("--output", type=Path, required=True, help="folder for the cohort")
    parser.add_argument("--modality", choices=["mr", "ct"], default="mr", help="of topcow")
    parser.add_argument("--desc", default="groundtruth", help="of afids: which desc- to read")
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking them")
    given = parser.parse_args(argv)
    readers: dict[str, Callable[[], PublicSet]] = {
        "topcow": lambda: read_topcow(given.input, given.modality),
        "afids": lambda: read_afids(given.input, given.desc),
        "isbi2015": lambda: read_isbi2015(given.input),
        "ali": lambda: read_ali(given.input),
    }
    try:
        if given.input.resolve() in (given.output.resolve(), *given.output.resolve().parents):
            raise InputError(given.output, f"is inside of --input, {given.input}; choose another")
        found = readers[given.kind]()
        lines = write_cohort(found, given.output, given.copy)
    except InputError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    print("\n".join([*lines, *found.notes]))


if __name__ == "__main__":
    main()
