"""The DICOM files of a folder: which series are volumes, and what the other files are.

Archives export a scan with its localizers, other series, reports, presentation states and more. The
heads of the files tell them apart. Reading a series checks whether it is complete and even.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmark.data.formats.dicom_elements import DataSet, read_head
from jaxmark.data.formats.safeguards import MIN_VOXELS, entries, named, readable
from jaxmark.system.errors import InputError
from jaxmark.system.fingerprints import PART_OF_FOLDER

SOP_CLASS, FRAMES = (0x8, 0x16), (0x28, 0x8)
_IMAGE_TYPE, MODALITY, _DESCRIPTION = (0x8, 0x8), (0x8, 0x60), (0x8, 0x103E)
_UID, _NUMBER, _POSITION = (0x20, 0xE), (0x20, 0x11), (0x20, 0x32)
_ORIENTATION, _SAMPLES, _ROWS = (0x20, 0x37), (0x28, 0x2), (0x28, 0x10)
_RECORDS = (0x4, 0x1220)
_HEAD = frozenset(
    (
        *(SOP_CLASS, FRAMES, _IMAGE_TYPE, MODALITY, _DESCRIPTION, _UID, _NUMBER, _POSITION),
        *(_ORIENTATION, _SAMPLES, _ROWS, _RECORDS),
    )
)

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Multi-frame classes whose frames are slices with positions.
VOLUMES = {_STORAGE + end for end in "2.1 2.2 4.1 4.4 13.1.1 13.1.2 13.1.3 128.1 130".split()}
# Classes that are no images: the part after _STORAGE, longer ones first.
_NO_IMAGES = {
    "4.2": "spectroscopy",
    "9": "a waveform",
    "11": "a presentation state",
    "30": "a parametric map",
    "66.1": "a registration",
    "66.3": "a registration",
    "66.4": "a segmentation",
    "66": "raw data",
    "67": "a mapping of values",
    "88.59": "a key object selection",
    "88": "a structured report",
    "104": "an encapsulated document",
    "481": "an object of radiotherapy",
}
# First numbers of the classes of images. Such a file without rows is damaged.
_IMAGES = set("1 2 3 4 6 7 12 13 20 77 128 130".split())
_NO_IMAGE_MODALITIES = set("AU DOC ECG EPS HD KO PLAN PR REG SR".split())

# Share of slices that may be turned: with more, the series is a localizer, not a damaged volume.
_MAX_TURNED_SHARE = 0.25
_PARALLEL = 0.999
_MAX_PART_LENGTH = 40


@dataclass(frozen=True)
class Series:
    """Files of one series, or one multi-frame file."""

    uid: str
    description: str
    number: str
    files: tuple[Path, ...]
    slices: int
    multi_frame: bool
    # Why it is no volume, judged by the heads; empty for a volume.
    flaw: str

    def __str__(self) -> str:
        """As in "'TOF', number 5, ...3.4.1 (128 slices)", or with the name of a file."""
        uid = self.uid if len(self.uid) <= 12 else f"...{self.uid[-12:]}"
        name = self.files[0].name if self.multi_frame else uid
        number = self.number and f"number {self.number}"
        description = self.description and repr(self.description[:64])
        return f"{', '.join(filter(None, (description, number, name)))} ({self._count})"

    @property
    def _count(self) -> str:
        return f"{self.slices} {'frame' if self.multi_frame else 'slice'}{'s' * (self.slices != 1)}"


@dataclass(frozen=True)
class Contents:
    """A folder's DICOM files, sorted by kind."""

    series: tuple[Series, ...]
    # Files that are no images: name, and what the file is.
    others: tuple[tuple[str, str], ...]
    # Damaged files, and files that state no series: they may belong to any series.
    unknown: tuple[Path, ...]

    @property
    def volumes(self) -> list[Series]:
        """The series that are volumes, judged by the heads."""
        return [series for series in self.series if not series.flaw]

    def beside(self, chosen: Series | None) -> list[str]:
        """Descriptions of all other series and files in the folder."""
        return [
            *(
                f"series {series}{series.flaw and f': {series.flaw}'}"
                for series in self.series
                if series is not chosen
            ),
            *(f"{name} ({what})" for name, what in self.others),
        ]


def slice_files(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM by extension or by their first bytes."""
    with readable(folder):
        files = [path for path in entries(folder) if path.is_file() and path.name != "DICOMDIR"]
    return [path for path in files if is_dicom(path)]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its extension or by its first bytes."""
    if path.suffix.lower() == ".dcm":
        return True
    with readable(path), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def contents(files: Sequence[Path]) -> Contents:
    """Sorts DICOM files of one folder into series, other objects and unknown files."""
    others, unknown = [], []
    groups: defaultdict[tuple[str, Path | None], list[tuple[Path, DataSet]]] = defaultdict(list)
    for file in files:
        head = _head(file)
        if head is None:
            unknown.append(file)
        elif what := no_image(head):
            others.append((file.name, what))
        else:
            groups[head.text(*_UID), file if frame_count(head) > 1 else None].append((file, head))
    if any(uid for uid, _ in groups):
        for key in [key for key in groups if not key[0]]:
            unknown += [file for file, _ in groups.pop(key)]
    series = [_series(uid, group) for (uid, _), group in groups.items()]
    series.sort(key=lambda s: (not s.number.isdecimal(), s.number.zfill(12), s.uid, s.files[0]))
    return Contents(tuple(series), tuple(others), tuple(unknown))


def frame_count(data: DataSet) -> int:
    """The number of frames that a file states; 1 if it states none, 0 if it is no number."""
    stated = data.text(*FRAMES) or "1"
    return int(stated) if re.fullmatch("[0-9]{1,9}", stated) else 0


def no_image(head: DataSet) -> str:
    """The kind of a file that is no image of a patient, in words; empty for an image."""
    sop_class = head.text(*SOP_CLASS)
    if _RECORDS in head.sequences:
        return "a directory"
    end = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    for begin, what in _NO_IMAGES.items():
        if f"{end}.".startswith(f"{begin}."):
            return what
    is_image = end.partition(".")[0] in _IMAGES or not sop_class
    if head.whole(*_ROWS) == -1:
        if head.text(*MODALITY) in _NO_IMAGE_MODALITIES:
            return f"an object of modality {head.text(*MODALITY)}"
        if not is_image:
            return f"no image, class {sop_class[:64]}"
    return ""


def file_flaw(path: Path) -> str:
    """Why a DICOM file is no whole scan; empty for a multi-frame or a damaged file."""
    head = _head(path)
    if head is None:
        return ""
    if what := no_image(head):
        return f"is no scan but {what} (DICOM)"
    return one_slice(path) if frame_count(head) == 1 else ""


def one_slice(path: Path) -> str:
    """The message for a file that is one slice of a series, where a scan is needed."""
    return f"is one slice of a DICOM series, not a volume; give its folder instead: {path.parent}"


def _head(file: Path) -> DataSet | None:
    try:
        with readable(file):
            return read_head(file, _HEAD)
    except InputError:
        return None


def _series(uid: str, group: Sequence[tuple[Path, DataSet]]) -> Series:
    heads = [head for _, head in group]
    first = heads[0]
    frames = frame_count(first)
    return Series(
        uid=uid,
        description=first.text(*_DESCRIPTION),
        number=first.text(*_NUMBER)[:16],
        files=tuple(file for file, _ in group),
        slices=frames if frames > 1 else len(group),
        multi_frame=frames > 1,
        flaw=_multi_frame_flaw(first) if frames > 1 else _flaw(heads),
    )


def _multi_frame_flaw(head: DataSet) -> str:
    if head.text(*SOP_CLASS) not in VOLUMES:
        return "its frames are no slices of a volume"
    few = frame_count(head) < MIN_VOXELS
    return f"fewer than {MIN_VOXELS} frames" if few else ""


def _flaw(heads: Sequence[DataSet]) -> str:
    """Why slices are no volume, if it is certain and not due to damage; else empty."""
    if len(heads) < MIN_VOXELS:
        return f"fewer than {MIN_VOXELS} slices"
    if all("LOCALIZER" in head.text(*_IMAGE_TYPE).upper().split("\\") for head in heads):
        return "a localizer"
    if all(head.whole(*_SAMPLES) > 1 for head in heads):
        return "in colour"
    if not any(head.text(*_POSITION) and head.text(*_ORIENTATION) for head in heads):
        return "its images state no place"
    normals = np.array([n for head in heads if np.isfinite(n := _normal(head)).all()])
    if len(normals):
        # Slices parallel to the most frequent direction.
        keys = [tuple(np.round(n * np.sign(n[np.abs(n).argmax()]), 1) + 0.0) for n in normals]
        ((key, _),) = Counter(keys).most_common(1)
        parallel = np.abs(normals @ normals[keys.index(key)]) > _PARALLEL
        if parallel.sum() < max(MIN_VOXELS, (1 - _MAX_TURNED_SHARE) * len(normals)):
            return "its slices are not parallel"
    return ""


def _normal(head: DataSet) -> np.ndarray:
    """(3,) of length 1; NaN where no orientation is stated."""
    six = np.array(head.numbers(*_ORIENTATION))
    if len(six) != 6:
        return np.full(3, np.nan)
    with np.errstate(all="ignore"):
        normal = np.cross(six[:3], six[3:])
        unit: np.ndarray = normal / np.linalg.norm(normal)
    return unit


# Which series is meant


def only_series(folder: Path, found: Contents) -> Series | None:
    """The only volume of a folder, or else its only series; None if all its files are unknown.

    Raises:
      InputError: there are several volumes, or several series and no volume, or no images.
    """
    if not found.series:
        if found.unknown:
            return None
        if found.others:
            raise InputError(folder, f"holds no DICOM image: {named(found.beside(None))}")
        raise InputError(folder, "holds no DICOM files")
    candidates = found.volumes or found.series
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(map(str, candidates))
    if not found.volumes:
        flaws = named([f"{s}: {s.flaw}" for s in candidates])
        raise InputError(folder, f"holds {len(candidates)} DICOM series, none a volume: {flaws}")
    raise InputError(
        folder,
        f"holds {len(candidates)} DICOM series, need one: {listed}; choose with "
        "--config.data.series (description, number or UID)",
    )


def series_of(path: Path, found: Contents) -> Series:
    """The series that `series_path` named; InputError where it is gone."""
    for series in found.series:
        if not series.multi_frame and _token(series) == path.name:
            return series
    raise InputError(path.parent, f"holds no DICOM {path.name} any more")


def chosen_series(folder: Path, words: str) -> Path:
    """The path of the only volume of a folder that `called` finds by `words`.

    Raises:
      InputError: it finds none or several.
    """
    found = contents(slice_files(folder))
    matches = called(words, found.volumes)
    if len(matches) == 1:
        return series_path(folder, matches[0])
    if matches:
        listed = ", ".join(map(str, matches))
        problem = f"{len(matches)} DICOM series are {words!r} (config.data.series): {listed}"
        raise InputError(folder, problem)
    listed = named(found.beside(None)) or "no DICOM files"
    raise InputError(folder, f"no DICOM volume is {words!r} (config.data.series); it has {listed}")


def called(words: str, volumes: Sequence[Series]) -> list[Series]:
    """The volumes whose description is `words`; if none, whose number; if none, whose UID.

    The end of a UID is enough. Case does not matter.
    """
    wanted = words.strip().casefold()
    tail = "." + wanted.lstrip(".")
    return (
        [s for s in volumes if s.description.casefold() == wanted]
        or [s for s in volumes if s.number == wanted]
        or [s for s in volumes if f".{s.uid}".endswith(tail)]
    )


def series_path(folder: Path, series: Series) -> Path:
    """A path that stands for one series of a folder; no file has this name."""
    return series.files[0] if series.multi_frame else folder / _token(series)


def is_series_path(path: Path) -> bool:
    """Whether `series_path` made it."""
    return path.name.startswith(PART_OF_FOLDER) and not path.exists() and path.parent.is_dir()


def _token(series: Series) -> str:
    # A malformed UID could contain a path, so its digest is used.
    plain = re.fullmatch("[0-9.]{1,64}", series.uid)
    digest = hashlib.sha256(series.uid.encode("utf-8", "replace")).hexdigest()[:16]
    return PART_OF_FOLDER + (series.uid if plain else digest)


def part_names(volumes: Sequence[Series]) -> list[str]:
    """A short name for each volume of a folder with several; all differ as file names.

    The series description, else the number. If that is not unique, the description and the number,
    the end of the UID or the name of a multi-frame file; if still not unique, with a counter.
    """
    short = [_safe(s.description) or _safe(s.number) for s in volumes]
    long = [
        _joined(s.description, s.files[0].stem if s.multi_frame else s.number or s.uid[-12:])
        for s in volumes
    ]
    times = Counter(map(_as_a_file, short))
    taken = {_as_a_file(name) for name in short if name and times[_as_a_file(name)] == 1}
    names = []
    for first, second in zip(short, long, strict=True):
        name, count = first, 1
        if not first or times[_as_a_file(first)] > 1:
            name = second = second or "series"
            while _as_a_file(name) in taken:
                count += 1
                name = f"{second}-{count}"
            taken.add(_as_a_file(name))
        names.append(name)
    return names


def _joined(*parts: str) -> str:
    return "-".join(filter(None, map(_safe, parts)))


def _safe(text: str) -> str:
    """Letters, digits, "_", "-" and "." of a text, short enough to be part of a file's name."""
    words = re.findall(r"[\w.+-]+", unicodedata.normalize("NFC", text))
    return "_".join(words)[:_MAX_PART_LENGTH].strip("._-")


def _as_a_file(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
