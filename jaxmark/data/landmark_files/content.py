"""Common parts of all landmark files: names, states of a landmark, frames, text and JSON.

A reader returns a `Content`: the positions in the file, and the frame and unit that the file
states. If it states none, `labels` decides, when all files of a cohort are known.
"""

import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes

# Name -> (3,) float64 LPS mm; three NaN for a landmark that is listed but not annotated; None
# where the file states that it is absent.
Landmarks = dict[str, np.ndarray | None]

MAX_NAME = 200
# File names have 255 bytes at most, and a case's results have longer names than the case.
_MAX_CASE_BYTES = 180
# Names of devices on Windows, with whatever extension.
_DEVICES = re.compile("(con|prn|aux|nul|com[1-9]|lpt[1-9])([.].*)?", re.IGNORECASE)
# Names stand in tables, and spreadsheets take such a cell for a formula; a number does no harm.
_FORMULA = re.compile("(?![-+]?[0-9.]+$)[-=+@].")

# Words for frames, as files have them.
FRAMES = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
_TO_LPS = {"LPS": np.array([1.0, 1.0, 1.0]), "RAS": np.array([-1.0, -1.0, 1.0])}
STATUSES = ("undefined", "preview", "defined", "missing")
# What prediction writes behind a landmark: see `ScanLandmarks.descriptions`.
_OWN_WORDS = re.compile(
    r"(hidden: [a-z ]+, )?(presence \d\.\d\d, )?(within \d+\.\d (?:mm|px) \([\d.e+-]+ %\), )?"
    r"score -?[\d.]+"
)


@dataclass(frozen=True)
class Content:
    """The content of a landmark file for one case, in the file's frame and unit."""

    file: Path
    # As `Landmarks`, but in the frame and the unit of the file.
    points: Landmarks
    # "LPS", "RAS" or "": the file does not say.
    frame: str = ""
    # "mm", "voxels" (indices of the case's image, from 0, x fastest) or "": the file does not say.
    unit: str = ""
    # jaxmark's prediction wrote it.
    predicted: bool = False
    # Landmarks that the prediction calls probably absent.
    unlikely: frozenset[str] = frozenset()
    # What was guessed or left out.
    notes: tuple[Note, ...] = ()
    # For voxel indices: the image's voxel sizes (3,) stated beside them, by their key there.
    spacings_mm: Mapping[str, np.ndarray] = field(default_factory=dict)
    # For points on a picture in pixels: their millimetres, if the table has both.
    also_mm: Landmarks = field(default_factory=dict)
    # For a picture; 0: the file does not state it.
    pixel_size_mm: float = 0.0

    @property
    def says_unit(self) -> str:
        """The unit; a frame of the world is one of millimetres."""
        return self.unit or ("mm" if self.frame else "")


def in_lps(content: Content, configured: str = "", hint: str = "") -> Landmarks:
    """The landmarks in LPS millimetres.

    Args:
      configured: "LPS" or "RAS", the frame of a file that states none.
      hint: text to add to the message if no frame is stated.

    Raises:
      InputError: neither the file nor `configured` states the frame, or they differ; the file holds
        voxel indices.
    """
    path, stated = content.file, content.frame
    if configured not in ("", "LPS", "RAS"):
        raise InputError("config.data.frame", f"{configured!r} is not LPS, RAS or empty")
    if content.unit == "voxels":
        raise InputError(path, "holds voxel indices, of which only an image makes millimetres")
    if not stated and not configured:
        raise InputError(
            path,
            "states no coordinate frame; find it out and set --config.data.frame=LPS or RAS" + hint,
        )
    if stated and configured and stated != configured:
        # Either may be the wrong one, and the mistake mirrors every landmark.
        raise InputError(
            path,
            f"states the frame {stated}, but config.data.frame is {configured}; leave "
            "config.data.frame empty where the files state their frame",
        )
    signs = _TO_LPS[stated or configured]
    return {name: None if xyz is None else xyz * signs for name, xyz in content.points.items()}


def frame_of(path: Path, stated: str) -> str:
    """ "LPS" or "RAS" for a file's word; "" for none. InputError for any other."""
    if not stated:
        return ""
    frame = FRAMES.get(stated.upper())
    if frame is None:
        raise InputError(path, f"states the coordinate frame {short(stated)}; need LPS or RAS")
    return frame


def status_of(xyz: np.ndarray | None) -> str:
    """Slicer's word for the state of a landmark."""
    if xyz is None:
        return "missing"
    return "undefined" if np.isnan(xyz).all() else "defined"


def placed(xyz: Sequence[float], status: str) -> np.ndarray | None:
    """A landmark's position by its status: only "defined" points have one."""
    if status == "missing":
        return None
    return np.array(xyz, np.float64) if status == "defined" else np.full(3, np.nan)


def is_predicted(descriptions: Sequence[str]) -> bool:
    """Whether all are what jaxmark's prediction writes beside a landmark."""
    return bool(descriptions) and all(map(_OWN_WORDS.fullmatch, descriptions))


def says_absent(description: str) -> bool:
    """Whether the description of a hidden point is of jaxmark's prediction, and gives a presence.

    People hide points in 3D Slicer for other reasons: to see the others.
    """
    return description.startswith("presence ") and is_predicted([description])


def unnamed(path: Path) -> Note:
    """The error for a file in which no point has a label."""
    return Note(path.name, "points without labels are called by their numbers, from 1")


def finite(values: Any) -> list[float]:
    """The numbers, for a writer; ValueError where one is none."""
    numbers: list[float] = np.atleast_1d(np.asarray(values, np.float64)).tolist()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"not finite: {numbers}")
    return numbers


# Names


def check_case(file: Path, case: str, where: str = "") -> None:
    """Refuses a case's name that cannot be a file's name: results are named after the case.

    Args:
      file: the file that the name comes from, for the message.
      where: the place in the file, if the name is in it.

    Raises:
      InputError: the name is empty, "." or "..", begins or ends with a blank, has a path separator,
        over 180 bytes, or characters that cannot be printed; Windows keeps it for a device; it
        begins as a formula does.
    """
    problem = _name_problem(case)
    if not problem and len(case.encode()) > _MAX_CASE_BYTES:
        problem = f"is longer than {_MAX_CASE_BYTES} bytes; it becomes a file's name"
    if not problem and _DEVICES.fullmatch(case):
        problem = f"is {case!r}; on Windows a file of that name is a device"
    if not problem and (case in (".", "..") or "/" in case or "\\" in case):
        problem = f"is {case!r}; it becomes a file's name, so it cannot be a path"
    if not problem and case != case.strip():
        problem = f"is {case!r}, which begins or ends with a blank"
    if problem:
        raise InputError(file, f"{where and f'{where}: '}the case's name {problem}")


def add(path: Path, where: str, landmarks: Landmarks, name: str, xyz: np.ndarray | None) -> None:
    """Adds a landmark, found at `where` in the file, to the others of its case."""
    problem = _name_problem(name)
    if problem:
        raise InputError(path, f"{where}: the landmark's name {problem}")
    if name in landmarks:
        raise InputError(path, f"{where}: landmark {name!r} comes a second time")
    landmarks[name] = xyz


def written(name: str) -> str:
    """The name; ValueError if readers would refuse it or read it differently."""
    problem = _name_problem(name)
    if problem or name != name.strip():
        raise ValueError(f"cannot write a landmark whose name {problem or f'is {name!r}'}")
    return name


def _name_problem(name: str) -> str:
    """The problem with the name of a landmark or a case; "": none."""
    if not name:
        return "is empty"
    if not name.isprintable():
        first = next(character for character in name if not character.isprintable())
        return f"has a character that cannot be printed (U+{ord(first):04X})"
    if len(name) > MAX_NAME:
        return f"has {len(name)} characters, more than {MAX_NAME}"
    if _FORMULA.match(unicodedata.normalize("NFKC", name)):
        return f"is {name!r}; a spreadsheet would take it for a formula"
    return ""


# Text and JSON


def text(path: Path) -> str:
    """The text of a file, without a byte-order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not UTF-8 text (byte {error.start})") from None


def json_tree(path: Path) -> Any:
    """The content of a JSON file; InputError for a key that comes twice in one object."""
    try:
        return json.loads(text(path), object_pairs_hook=partial(_json_object, path))
    except json.JSONDecodeError as error:
        problem = f"is not JSON (line {error.lineno}: {error.msg})"
        raise InputError(path, problem) from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(path, "is not JSON that can be read") from None


def _json_object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key that comes twice: Python would silently take the last."""
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(path, f"has {short(twice)} twice in one JSON object")
    return tree


def three_numbers(path: Path, field: str, values: Any) -> list[float]:
    """A position in JSON; InputError unless it is a list of three finite numbers."""
    if not isinstance(values, list):
        raise InputError(path, f"{field} is not a list")
    # JSON's true is an int in Python.
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 3 or len(numbers) != 3:
        raise InputError(path, f"{field} is not a list of three numbers")
    # Integers have no bounds in JSON.
    if not all(abs(v) < 1e300 for v in numbers):
        raise InputError(path, f"{field} is not finite")
    return numbers


def short(value: Any) -> str:
    """What a file says, for a message; the file may say a lot."""
    return reprlib.repr(value)
