"""The three layouts of a cohort's folder: where images, landmarks and label maps are.

jaxmark's layout has a folder `images/`. Pictures are read from this layout only:

```
root/images/<case>.nii.gz            or another format of `scans`, or a folder of DICOM slices; of
                                     `pictures` <case>.png, .dcm ..., or a folder with a cine
root/landmarks/<case>.mrk.json       or .fcsv or .csv; or all cases in one root/landmarks.csv, or in
                                     voxels in nnLandmark's root/all_landmarks_voxel.json
                                     or, with pictures named in them, in the text files of a
                                     challenge (`landmark_files.stacom`): root/landmarks.txt, or
                                     root/landmarks/<any name>.txt
root/segmentations/<case>.nii.gz     label maps, or another format; for methods that learn from them
```

nnU-Net's raw data has `imagesTr/` or `imagesTs/`. Landmarks and label maps are as above, or in
`labels*/`:

```
root/dataset.json                    names of channels, ending of files; optional
root/imagesTr/<case>_0000.nii.gz     the digits are the channel; imagesTs/ too
root/labelsTr/<case>.mrk.json        labelsTs/ too
root/labelsTr/<case>.nii.gz
```

BIDS has `dataset_description.json` or folders `sub-*`. Landmarks and label maps are as above, or
anywhere in `derivatives/`, landmarks also beside the image; these files' names begin with the
case's:

```
root/sub-01/anat/sub-01_T1w.nii.gz                    case sub-01
root/sub-02/ses-1/anat/sub-02_ses-1_angio.nii.gz      case sub-02_ses-1
root/derivatives/afids/sub-01/sub-01_desc-groundtruth_afids.fcsv
root/derivatives/arteries/sub-01/sub-01_dseg.nii.gz
```
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxmark.data.formats.dicom_series import chosen_series
from jaxmark.data.landmark_files import markups, stacom
from jaxmark.data.landmark_files.several import choose
from jaxmark.data.landmarks import check_case, extension_of, is_prediction_table
from jaxmark.data.notes import Note, first_few
from jaxmark.data.pictures import EXTENSIONS as PICTURES
from jaxmark.data.pictures import find_pictures
from jaxmark.data.scans import (
    EXTENSIONS,
    LATER_EXTENSIONS,
    case_name,
    find_scans,
    passed_over,
)
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json

# Where all landmarks may be; a folder may have one of these places.
_PLACES = (
    *("landmarks", "landmarks.csv", "landmarks.tsv", "all_landmarks_voxel.json"),
    "landmarks.txt",
)
_NO_SCANS = f"holds no scans ({', '.join(EXTENSIONS)} or DICOM)"


# A message names this many folders and counts the others.
_MAX_NAMED = 5


@dataclass(frozen=True)
class Layout:
    """The images and landmark files in a folder; they are found, not read."""

    # Case -> image file, or folder of DICOM slices; sorted by name.
    images: dict[str, Path]
    # A table of all cases, a folder with one file for each case, or case -> landmark file.
    labels: Path | dict[str, Path]
    # Cases that the layout keeps for testing.
    test: frozenset[str] = frozenset()
    # What was guessed about landmark files.
    notes: tuple[Note, ...] = ()
    # Lines about files that look like images and are not read.
    passed_over: tuple[str, ...] = ()


class _Image(NamedTuple):
    case: str
    # The file's name without extension; the part after the last "_" says which image it is.
    name: str
    path: Path


def find_layout(root: Path, suffix: str = "", series: str = "", *, planar: bool = False) -> Layout:
    """Finds the images and landmark files in a cohort's folder.

    Args:
      root: the folder; `images/` decides, then `imagesTr/` or `imagesTs/`, then the marks of BIDS.
      suffix: the end of the names of images to read: nnU-Net's channel ("0000"), or a BIDS suffix
        ("T1w", or more of the name: "run-1_T1w"); "" where each case has one image.
      series: the DICOM series to read from folders that hold several: its description, number or
        UID; "" where each folder holds one volume.
      planar: the images are pictures, see `pictures`: only jaxmark's layout is read.

    Raises:
      InputError: the folder has no such layout, or no images; a case has two images, two landmark
        files or two places of landmarks; no image has the suffix; a name does not fit the layout,
        or `check_case` refuses it; `dataset.json` is not as nnU-Net's.
    """
    if planar:
        return _of_pictures(root, suffix, series)
    if (root / "images").is_dir():
        layout = _own(root, suffix)
    elif (root / "imagesTr").is_dir() or (root / "imagesTs").is_dir():
        layout = _nnunet(root, suffix)
    elif (root / "dataset_description.json").exists() or any(_bids_folders(root)):
        layout = _bids(root, suffix)
    else:
        raise InputError(root, _no_layout(root))
    for case, image in layout.images.items():
        check_case(image, case)
    return dataclasses.replace(layout, images=_of_series(root, layout.images, series))


def _no_layout(root: Path) -> str:
    """What is missing, what is there instead, and what to do."""
    missing = "has no folder images/, imagesTr/ (nnU-Net) or sub-*/anat/ (BIDS)"
    held = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    for path in held:
        if any((path / name).is_dir() for name in ("images", "imagesTr", "imagesTs")):
            return f"{missing}; {path} has one"
    names = first_few(path.name + "/" * path.is_dir() for path in held) or "nothing"
    return (
        f"{missing}; it holds {names}: move them to images/<case>.nii.gz, landmarks/<case>.mrk.json"
    )


def find_label_maps(root: Path, cases: Collection[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Case -> path of its label map; and lines about files that look like one and are not read.

    Args:
      cases: the cases with images: they decide which case a BIDS file name means.

    Raises:
      InputError: a case has two label maps, or two places hold some; see also `find_scans`.
    """
    places: list[dict[str, Path]] = []
    over: tuple[str, ...] = ()
    for names in (("segmentations",), ("labelsTr", "labelsTs")):
        maps: dict[str, Path] = {}
        folders = {root / name: find_scans(root / name) for name in names if (root / name).is_dir()}
        for scans in folders.values():
            for case, path in scans.items():
                _add(maps, case, path, "label map")
        over += _passed_over({folder: list(scans.values()) for folder, scans in folders.items()})
        places.append(maps)
    maps = {}
    for path in sorted(root.glob("derivatives/**/sub-*_dseg.*")):
        if (name := case_name(path)).endswith("_dseg"):
            _add(maps, _bids_case(name.removesuffix("_dseg"), cases), path, "label map")
    found = [maps for maps in (*places, maps) if maps]
    if len(found) > 1:
        first, second = (next(iter(maps.values())).relative_to(root) for maps in found[:2])
        raise InputError(root, f"has label maps in two places, {first} and {second}; keep one")
    return found[0] if found else {}, over


def _of_series(root: Path, images: dict[str, Path], series: str) -> dict[str, Path]:
    """The images, with the chosen series in place of each DICOM folder."""
    if not series:
        return images
    folders = {case: path for case, path in images.items() if path.is_dir()}
    if not folders:
        problem = f"{series!r} chooses among DICOM series, but no image of {root} is a DICOM folder"
        raise InputError("config.data.series", problem)
    return images | {case: chosen_series(path, series) for case, path in folders.items()}


class LandmarkFiles(NamedTuple):
    """The content of a folder of landmark files."""

    # Case -> the file to read.
    files: dict[str, Path]
    # Notes on the file taken, where a case has several.
    chosen: list[Note]
    # Notes on the other files in the folder.
    unread: list[Note]


def landmark_files(folder: Path, *, planar: bool = False) -> LandmarkFiles:
    """Case -> landmark file `<case>.<extension>`; hidden files are ignored.

    `planar`: the files hold points on pictures. A text file of `landmark_files.stacom` holds many
    cases; here its name stands for the case's.

    A `.json` file counts if it holds markups of 3D Slicer. Of files of one case with the same
    content one is taken; the other files that prediction writes beside `<case>.mrk.json` are not
    needed.

    Raises:
      InputError: a case has two files that differ, or a name that `check_case` refuses.
    """
    found: dict[str, list[Path]] = {}
    unread = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        name, problem = _landmark_name(file)
        if not name:
            where = f"{file.name} ({problem})" if problem else file.name
            unread.append(Note(where, f"not read in {folder.name}/"))
            continue
        check_case(file, name)
        found.setdefault(name, []).append(file)
    files, chosen = {}, []
    for name, some in found.items():
        files[name], notes = choose(some, name, planar=planar)
        chosen += notes
    return LandmarkFiles(files, chosen, unread)


def _own(root: Path, suffix: str) -> Layout:
    folder = root / "images"
    _check_no_suffix(suffix, folder)
    images = find_scans(folder)
    over = _passed_over({folder: list(images.values())})
    if not images:
        lines = [_NO_SCANS, *over]
        if find_pictures(folder):
            lines.append("pictures are read where config.data.crop has Z = 1")
        raise InputError(folder, "; ".join(lines))
    return Layout(images, _labels(root, {}), passed_over=over)


def _check_no_suffix(suffix: str, folder: Path) -> None:
    if suffix:
        problem = f"{suffix!r} chooses among several images a case, but {folder} has one"
        raise InputError("config.data.suffix", problem)


def _of_pictures(root: Path, suffix: str, series: str) -> Layout:
    """jaxmark's layout with pictures."""
    folder = root / "images"
    if not folder.is_dir():
        raise InputError(root, "has no folder images/, where pictures are looked for")
    _check_no_suffix(suffix, folder)
    images = find_pictures(folder, series)
    # Frames of a file, and the files of a cine, lie below these.
    inside = [*images.values(), *(path.parent for path in images.values())]
    over = passed_over(folder, inside, readable_ones=PICTURES)
    if not images:
        problem = f"holds no pictures ({', '.join(PICTURES)} or DICOM)"
        raise InputError(folder, "; ".join(filter(None, [problem, over])))
    for case, image in images.items():
        check_case(image, case)
    return Layout(images, _labels(root, {}), passed_over=(f"{folder}: {over}",) if over else ())


def _nnunet(root: Path, suffix: str) -> Layout:
    names, ending = _read_dataset(root / "dataset.json")
    images = []
    labels: dict[str, Path] = {}
    folders = list(filter(Path.is_dir, (root / "imagesTr", root / "imagesTs")))
    for folder in folders:
        for name, path in find_scans(folder).items():
            fits = path.name.endswith(ending) and re.fullmatch(".+_[0-9]{4}", name)
            if path.name.lower().endswith(LATER_EXTENSIONS) and not fits:
                continue
            if not path.name.endswith(ending):
                problem = f"does not end in {ending!r}, the file_ending of dataset.json"
                raise InputError(path, problem)
            if not re.fullmatch(".+_[0-9]{4}", name):
                problem = "its name does not end in a channel, as in <case>_0000.nii.gz"
                raise InputError(path, problem)
            images.append(_Image(name[: -len("_0000")], name, path))
    notes: list[Note] = []
    for folder in filter(Path.is_dir, (root / "labelsTr", root / "labelsTs")):
        # The other files there are nnU-Net's label maps, so notes on unread files are dropped.
        found = landmark_files(folder)
        notes += found.chosen
        for case, file in found.files.items():
            _add(labels, case, file, "file")
    chosen = _choose(root, images, suffix, names)
    test = frozenset(case for case, path in chosen.items() if path.parent.name == "imagesTs")
    over = _passed_over(
        {folder: [i.path for i in images if i.path.parent == folder] for folder in folders}
    )
    return Layout(chosen, _labels(root, labels), test, tuple(notes), over)


def _passed_over(scans: Mapping[Path, list[Path]]) -> tuple[str, ...]:
    """Lines about files that look like images and are not among the folder's scans.

    The first folders have a line each; the others are counted.
    """
    said = {folder: line for folder in scans if (line := passed_over(folder, scans[folder]))}
    lines = [f"{folder}: {line}" for folder, line in list(said.items())[:_MAX_NAMED]]
    if len(said) > _MAX_NAMED:
        lines.append(f"{len(said) - _MAX_NAMED} more folders hold such files")
    return tuple(lines)


def _read_dataset(file: Path) -> tuple[dict[str, str], str]:
    """Channel -> name, as "0000" -> "CT", and the image files' ending; both empty without file."""
    if not file.exists():
        return {}, ""
    tree = read_json(file)
    # The first version of nnU-Net calls the key modality, and states no ending.
    key = "channel_names" if "channel_names" in tree else "modality"
    names, ending = tree.get(key, {}), tree.get("file_ending", "")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(file, f'{key} is not an object like {{"0": "CT"}}')
    if not isinstance(ending, str) or (ending and ending not in EXTENSIONS):
        listed = ", ".join(EXTENSIONS)
        raise InputError(file, f"file_ending is {ending!r}; jaxmark reads {listed}")
    return {channel.zfill(4): name for channel, name in names.items()}, ending


def _bids(root: Path, suffix: str) -> Layout:
    images = []
    files = []
    for case, folder in _bids_folders(root):
        for path in sorted(folder.iterdir()):
            files.append(path)
            # BIDS allows NIfTI only, but formats that the first version read are still read.
            name_of_file = path.name.lower()
            is_image = not path.is_dir() and name_of_file.endswith(EXTENSIONS)
            later = name_of_file.endswith(LATER_EXTENSIONS)
            if is_image and not later and (name := case_name(path)):
                if not name.startswith(f"{case}_"):
                    problem = f"its name does not begin with {case}_, as its folders do"
                    raise InputError(path, problem)
                images.append(_Image(case, name, path))
    files += sorted(root.glob("derivatives/**/sub-*"))
    chosen = _choose(root, images, suffix, {})
    known = {image.case for image in images}
    found: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        # The standard's table of the labels of a label map.
        if file.name.endswith("dseg.tsv"):
            continue
        if file.name.startswith("sub-") and (name := _landmark_name(file)[0]):
            found.setdefault((file.parent, name), []).append(file)
    labels: dict[str, Path] = {}
    notes: list[Note] = []
    for (_, name), some in found.items():
        case = _bids_case(name, known)
        file, said = choose(some, case, "landmark file")
        _add(labels, case, file, "landmark file")
        notes += said
    paths = [image.path for image in images]
    over = _passed_over({folder: paths for _, folder in _bids_folders(root)})
    return Layout(chosen, _labels(root, labels), notes=tuple(notes), passed_over=over)


def _bids_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Cases and their folders of anatomical images."""
    for folder in sorted([*root.glob("sub-*/anat"), *root.glob("sub-*/ses-*/anat")]):
        if folder.is_dir():
            yield "_".join(folder.relative_to(root).parts[:-1]), folder


def _bids_case(name: str, known: Collection[str]) -> str:
    """The case that a file's name means: a known case, or the one that the name states."""
    parts = name.split("_")
    session = len(parts) > 1 and parts[1].startswith("ses-")
    stated = "_".join(parts[: 2 if session else 1])
    # The file names a session, but the person's image is in no session.
    return parts[0] if parts[0] in known and stated not in known else stated


def _choose(
    root: Path, images: list[_Image], suffix: str, names: Mapping[str, str]
) -> dict[str, Path]:
    """Case -> the image with this suffix; `names` explain the images' endings in messages."""
    if not images:
        raise InputError(root, _NO_SCANS)
    endings = sorted({image.name.rpartition("_")[2] for image in images})
    listed = ", ".join(f"{e} ({names[e]})" if e in names else e for e in endings)
    if not suffix and len(endings) > 1:
        raise InputError(
            root,
            f"holds the images {listed}; one a case is read: choose with "
            f"--config.data.suffix={endings[0]}",
        )
    chosen: dict[str, Path] = {}
    for case, name, path in sorted(images):
        if not suffix or name.endswith(f"_{suffix}"):
            _add(chosen, case, path, "image")
    if not chosen:
        raise InputError(
            "config.data.suffix", f"no image's name ends in {suffix!r}; {root} holds {listed}"
        )
    return chosen


def _labels(root: Path, others: dict[str, Path]) -> Path | dict[str, Path]:
    """The place of the landmarks; InputError where there are two."""
    places = [path for path in (root / place for place in _PLACES) if path.exists()]
    found = [*places, *list(others.values())[:1]]
    if len(found) > 1:
        first, second = (path.relative_to(root) for path in found[:2])
        raise InputError(root, f"has landmarks in two places, {first} and {second}; keep one")
    return places[0] if places else others


def _add(files: dict[str, Path], case: str, file: Path, kind: str) -> None:
    if case in files:
        # The name is enough where both are in one folder.
        other = files[case].name if files[case].parent == file.parent else files[case]
        raise InputError(file, f"case {case!r} has a second {kind}, {other}")
    files[case] = file


def _landmark_name(file: Path) -> tuple[str, str]:
    """A landmark file's name without extension, and ""; or "" and why it is no landmark file."""
    extension = extension_of(file)
    if file.name.startswith(".") or not extension:
        return "", ""
    problem = ""
    # Many other files end in .json.
    if extension == ".json" and not file.is_dir():
        problem = markups.why_not(file)
    if extension == stacom.EXTENSION and not stacom.is_one(file):
        return "", ""
    if extension == ".csv" and is_prediction_table(file):
        problem = "a table of predictions"
    return ("", problem) if problem else (file.name[: -len(extension)], "")
