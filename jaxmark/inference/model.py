"""A trained model and its predictions: landmarks in the scan's own millimetres."""

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import SimpleITK as sitk

from jaxmark.config import Experiment
from jaxmark.core.anatomy import Scheme
from jaxmark.core.geometry import apply_affine
from jaxmark.core.grids import Plane
from jaxmark.data.arrays import discarded
from jaxmark.data.cases import Volume
from jaxmark.data.formats.safeguards import voxels_and_place
from jaxmark.data.frame import Frame, PreparedScan
from jaxmark.data.frames import prepare_in, prepare_scan_in
from jaxmark.data.landmarks import Landmarks
from jaxmark.data.notes import first_few
from jaxmark.data.pictures import SAME_SIZE, picture_in_memory
from jaxmark.data.scans import Scan, checked_scan
from jaxmark.inference.calibration import Calibration, evidence_of
from jaxmark.inference.predictor import Found, Predictor
from jaxmark.inference.segments import ScanSegments
from jaxmark.inference.shapes import shapes_of
from jaxmark.inference.verdict import verdict
from jaxmark.methods.method import Variables
from jaxmark.system.errors import InputError, about
from jaxmark.system.fingerprints import json_key

# Columns of tables of predictions, beside the position.
COLUMNS = ("score", "presence", "radius_mm")
# One more column for an ensemble.
FOLDS_SD = "folds_sd_mm"
# Reasons why a landmark is hidden.
UNTRAINED = "no training case has it"
REFUSED = "probably not such a scan"
OUTSIDE = "outside of the scan"
ABSENT = "probably absent"


@dataclasses.dataclass(frozen=True)
class Landmark:
    """One landmark of one scan."""

    name: str
    position_mm: np.ndarray  # (3,) LPS
    score: float  # the method's own; near 1 for a certain landmark
    presence: float | None  # probability; None: not calibrated
    radius_mm: float | None  # holds the truth with the stated probability; None: not known
    trained: bool = True  # False: no training case has it, and its position means nothing
    hidden: str = ""  # why the landmark does not count as found; "": it does
    position_px: np.ndarray | None = None  # (2,) on a picture, from its first pixel's centre
    folds_sd_mm: float | None = None  # standard deviation of an ensemble's positions


@dataclasses.dataclass(frozen=True)
class ScanLandmarks:
    """The K landmarks of one scan, in order, in the scan's own LPS millimetres."""

    name: str
    landmarks: tuple[str, ...]
    positions_mm: np.ndarray  # (K, 3)
    score: np.ndarray  # (K,)
    # (K,) probability: NaN for untrained landmarks, 0 outside of the scan; None: not calibrated.
    presence: np.ndarray | None
    radius_mm: np.ndarray  # (K,) holds the truth with probability `coverage`; infinite: not known
    coverage: float
    # Lines that say what is doubtful about the scan.
    doubts: tuple[str, ...] = ()
    # Lines that say what was guessed or repaired when the scan was read.
    notes: tuple[str, ...] = ()
    # Landmarks that no training case has; their predictions mean nothing.
    untrained: tuple[str, ...] = ()
    # Landmarks whose position is outside of the scan's voxels: a guess from the others.
    outside: tuple[str, ...] = ()
    # Why the model is probably not for this scan, which is also a doubt; "": not refused.
    refused: str = ""
    # For models that predict segments.
    segments: ScanSegments | None = None
    # For a picture; if its unit is the pixel, all "millimetres" here are pixels.
    plane: Plane | None = None
    # (K,) for an ensemble: standard deviation of its folds' positions; NaN for one fold alone.
    folds_sd_mm: np.ndarray | None = None

    @property
    def unit(self) -> str:
        """The unit of positions and radii."""
        return "mm" if self.plane is None else self.plane.unit

    @classmethod
    def of(
        cls,
        found: Found,
        landmarks: Sequence[str],
        decoder: str,
        calibration: Calibration,
        doubts: Sequence[str] = (),
        notes: Sequence[str] = (),
        untrained: Sequence[str] = (),
        segments: ScanSegments | None = None,
        plane: Plane | None = None,
        outside: Sequence[str] = (),
        refused: str = "",
    ) -> "ScanLandmarks":
        """A network's prediction with its calibration."""
        presence = calibration.presence(np.asarray(found.prediction.evidence))
        unknown, beyond = np.isin(landmarks, untrained), np.isin(landmarks, outside)
        if beyond.any():
            known = np.full(len(landmarks), np.nan) if presence is None else presence
            presence = np.where(beyond, 0.0, known)
        # Here predictions were never compared with the truth.
        unstated = unknown | beyond | bool(refused)
        return cls(
            name=found.name,
            landmarks=tuple(landmarks),
            positions_mm=found.landmarks_mm(decoder),
            score=np.asarray(found.prediction.score),
            presence=None if presence is None else np.where(unknown, np.nan, presence),
            radius_mm=np.where(unstated, np.inf, calibration.radii_mm(found.prediction.spread_mm)),
            coverage=calibration.coverage,
            doubts=tuple(doubts),
            notes=tuple(notes),
            untrained=tuple(untrained),
            outside=tuple(outside),
            refused=refused,
            segments=segments,
            plane=plane,
        )

    def __iter__(self) -> Iterator[Landmark]:
        columns, hidden = self.columns(), self.why_hidden()
        for name, position in self.points().items():
            values = {column: columns[column][name] for column in columns}
            trained = name not in self.untrained
            assert position is not None, "a prediction has a position of every landmark"
            px = None if self.plane is None else self.plane.pixels(position)
            yield Landmark(
                name,
                position,
                trained=trained,
                hidden=hidden.get(name, ""),
                position_px=px,
                **values,  # type: ignore[arg-type]
            )

    @property
    def hidden(self) -> tuple[str, ...]:
        """Landmarks that do not count as found; see `why_hidden`."""
        return tuple(self.why_hidden())

    def why_hidden(self) -> dict[str, str]:
        """Hidden landmark -> reason."""
        presence = self.columns()["presence"]
        return why_hidden(presence, self.untrained, self.outside, refused=bool(self.refused))

    def points(self) -> Landmarks:
        """Positions by name."""
        return dict(zip(self.landmarks, self.positions_mm, strict=True))

    def columns(self) -> dict[str, dict[str, float | None]]:
        """Column -> landmark -> number, or None where it is unknown."""
        values = {
            "score": self.score,
            "presence": np.full(len(self.landmarks), np.nan)
            if self.presence is None
            else self.presence,
            "radius_mm": self.radius_mm,
        }
        if self.folds_sd_mm is not None:
            values[FOLDS_SD] = self.folds_sd_mm
        return {
            column: {
                name: float(value) if np.isfinite(value) else None
                for name, value in zip(self.landmarks, values[column], strict=True)
            }
            for column in values
        }

    def descriptions(self) -> dict[str, str]:
        """Landmark -> a few words about it."""
        columns, hidden = self.columns(), self.why_hidden()
        words = {}
        for name in self.landmarks:
            why = hidden.get(name, ABSENT)
            # A presence below 0.5 says the same.
            known = [] if why == ABSENT else [f"hidden: {why}"]
            if (presence := columns["presence"][name]) is not None:
                known.append(f"presence {presence:.2f}")
            if (radius := columns["radius_mm"][name]) is not None:
                known.append(f"within {radius:.1f} {self.unit} ({100 * self.coverage:g} %)")
            words[name] = ", ".join([*known, f"score {columns['score'][name]:.3f}"])
        return words


def why_hidden(
    presence: Mapping[str, float | None],
    untrained: Collection[str],
    outside: Collection[str],
    *,
    refused: bool,
) -> dict[str, str]:
    """Hidden landmark -> its first reason, in the order of the code below.

    `presence` has all landmarks; None where it is not calibrated.
    """
    reasons = {
        name: UNTRAINED
        if name in untrained
        else REFUSED
        if refused
        else OUTSIDE
        if name in outside
        else ABSENT
        if share is not None and share < 0.5
        else ""
        for name, share in presence.items()
    }
    return {name: why for name, why in reasons.items() if why}


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, ready for new scans."""

    experiment: Experiment
    preparation: Path  # the folder of its frame
    frame: Frame
    scheme: Scheme
    predictor: Predictor
    variables: Variables
    calibration: Calibration
    step: int = 0  # of the checkpoint

    @property
    def landmarks(self) -> tuple[str, ...]:
        """Names, in the order of every array of landmarks."""
        return self.scheme.landmarks

    @property
    def preparations(self) -> tuple[Path, ...]:
        """The folders of `frames`."""
        return (self.preparation,)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames in which `find` needs a scan."""
        return (self.frame,)

    @functools.cached_property
    def identity(self) -> str:
        """A digest of everything that changes a prediction."""
        weights = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(self.variables)):
            weights.update(np.ascontiguousarray(leaf).tobytes())
        promises = dataclasses.asdict(self.calibration)
        # Fields that a calibration of an earlier version lacks must not change its identity.
        for later in ("usual", "by_spread", "shape", "evidence"):
            if promises[later] is None:
                del promises[later]
        frame = (self.preparation / "frame.json").read_bytes()
        parts: list[object] = [
            weights.hexdigest(),
            frame,
            self.experiment.predict.decoder,
            promises,
        ]
        # The size of a pixel, for pictures that do not state one.
        size_mm = self.experiment.data.pixel_size_mm
        parts += [size_mm] if size_mm else []
        return json_key([str(part) for part in parts])

    def predict(
        self,
        scan: str | Path | sitk.Image | np.ndarray,
        affine: np.ndarray | None = None,
        frame: str = "",
    ) -> ScanLandmarks:
        """The landmarks of one scan, and its segments if the model predicts any.

        A model that reads parts of a scan stores the prepared scan in a temporary folder meanwhile.

        Args:
          scan: a file or a folder with one DICOM series; an image of SimpleITK; or an array
            (X, Y, Z) of intensities. Of a model of pictures: a picture's file, an image with two
            axes, or an array (X, Y), or (X, Y, 3) in colour, with x to the right. The size of a
            pixel is `config.data.pixel_size_mm`, or what file or image states.
          affine: of an array: (4, 4) voxels, counted from 0, to millimetres; not of a picture.
          frame: the affine's, "LPS" (ITK, DICOM) or "RAS" (nibabel, NIfTI).

        Raises:
          InputError: the scan can't be read or prepared; an array comes without affine or frame,
            or that of a picture with them.
        """
        with contextlib.ExitStack() as stack:
            folder = None
            if self.frame.chunks is not None:
                folder = Path(tempfile.mkdtemp(prefix="jaxmark-"))
                stack.enter_context(discarded(folder))
            (found,) = self.find([self._prepared(scan, affine, frame, folder)])
            return found

    def _prepared(
        self,
        scan: str | Path | sitk.Image | np.ndarray,
        affine: np.ndarray | None,
        frame: str,
        folder: Path | None,
    ) -> tuple[str, tuple[PreparedScan, ...]]:
        """A name for messages, and the prepared scan for `find`; the scan's voxels are freed."""
        size_mm = self.experiment.data.pixel_size_mm
        if isinstance(scan, (str, Path)):
            return str(scan), prepare_scan_in(Path(scan), self.frames, folder, size_mm)
        if self.frame.planar:
            if affine is not None or frame:
                raise InputError("array", "is a picture, which has no affine and no frame")
            name, read = _picture_of(scan, self.frame.unit, size_mm)
        else:
            name, read = _scan_of(scan, affine, frame)
        with about(name):
            return name, prepare_in(self.frames, read, folder)

    def find(self, scans: Iterable[tuple[str, Sequence[PreparedScan]]]) -> Iterator[ScanLandmarks]:
        """Landmarks of named scans, each prepared in all `frames`, in order.

        Scans are read a batch ahead.
        """
        waiting: deque[PreparedScan] = deque()

        def volumes() -> Iterator[Volume]:
            for name, (prepared,) in scans:
                waiting.append(prepared)
                yield prepared.volume(name)

        for found in self.predictor(self.variables, volumes()):
            yield self.landmarks_of(found, waiting.popleft())

    def landmarks_of(self, found: Found, prepared: PreparedScan) -> ScanLandmarks:
        """The network's prediction of a prepared scan, with calibration and doubts."""
        decoder, unit = self.experiment.predict.decoder, self.frame.unit
        known, untrained = self.calibration, self.frame.untrained
        evidence = np.asarray(found.prediction.evidence, float)
        presence = known.presence(evidence)
        there = ~np.isin(self.landmarks, untrained)
        there &= True if presence is None else presence >= 0.5
        # In voxels of the scan itself.
        ijk = apply_affine(np.linalg.inv(prepared.grid.ijk_to_lps), found.landmarks_mm(decoder))
        beyond = np.maximum(-ijk, ijk - (np.array(prepared.grid.shape) - 1)).max(1)
        outside = there & (beyond > 0.5)
        (points,) = shapes_of([found], self.frame.spacing_mm, decoder)
        refused = little = ""
        # None: the calibration is of an earlier version.
        if known.evidence is not None:
            refused, little = verdict(
                points,
                there,
                beyond <= 0.5,
                evidence,
                prepared.profile,
                usual_evidence=known.evidence,
                usual=known.usual,
                shape=known.shape,
            )
        doubts = [refused] if refused else []
        figures = prepared.quality, prepared.lead, prepared.overlap, prepared.voxel_mm
        doubts += self.frame.doubts(*figures)
        if known.usual is not None:
            mean = float(evidence_of(evidence, self.landmarks, untrained))
            doubts += known.usual.doubts(prepared, mean, unit)
        elif little and not refused:
            doubts.append(little)
        if known.shape is not None and not refused:
            judged, mirrored = there & ~outside, self.scheme.mirrored
            doubts += known.shape.doubts(points, judged, self.landmarks, mirrored)
        doubts += self._doubts_of_places(outside, beyond)
        return ScanLandmarks.of(
            found,
            self.landmarks,
            decoder,
            known,
            doubts=_said_once(doubts),
            notes=prepared.notes,
            untrained=untrained,
            segments=ScanSegments.of(found, self.scheme, prepared.grid),
            plane=Plane(unit, prepared.pixel_mm) if self.frame.planar else None,
            outside=np.array(self.landmarks)[outside].tolist(),
            refused=refused,
        )

    def _doubts_of_places(self, outside: np.ndarray, beyond: np.ndarray) -> list[str]:
        """Lines about landmarks outside of the scan, (K,) bool, or in its outermost voxels.

        `beyond` (K,) is the distance in voxels from the centres of the outermost voxels, positive
        outwards. Landmarks at the border count for models with patches, half of which is outside.
        """
        border = ~outside & (beyond > -1) & ~np.isin(self.landmarks, self.frame.untrained)
        names = np.array(self.landmarks)
        found = []
        if outside.any():
            found.append(f"{first_few(names[outside].tolist())}: outside of the scan, hidden")
        if border.any() and self.frame.chunks is not None:
            some = first_few(names[border].tolist())
            found.append(f"{some}: at the border of the scan or outside, with little to see")
        return found


def _said_once(doubts: Sequence[str]) -> list[str]:
    """The doubts without those that a longer one repeats; figures in brackets may differ."""

    def words(doubt: str) -> str:
        return doubt.removeprefix("only ").split(" (")[0]

    return [
        doubt
        for doubt in doubts
        if not any(len(other) > len(doubt) and words(doubt) in other for other in doubts)
    ]


def _picture_of(scan: sitk.Image | np.ndarray, unit: str, size_mm: float) -> tuple[str, Scan]:
    """`_scan_of` for a picture; `size_mm` is the stated pixel size, 0 for none."""
    pixel_mm = (size_mm, size_mm) if size_mm else None
    if not isinstance(scan, sitk.Image):
        return "array", picture_in_memory(np.asarray(scan), unit, pixel_mm, "array")
    if scan.GetDimension() != 2:
        raise InputError("image", "is not a picture with two axes")
    x_mm, y_mm = scan.GetSpacing()
    # An image without a stated size has 1.
    stated = [mm for mm in (x_mm, y_mm) if mm != 1]
    if size_mm and any(abs(mm / size_mm - 1) > SAME_SIZE for mm in stated):
        problem = f"states pixels of {x_mm:g} x {y_mm:g} mm, config.data.pixel_size_mm {size_mm:g}"
        raise InputError("image", problem)
    pixels = np.swapaxes(sitk.GetArrayFromImage(scan), 0, 1)
    return "image", picture_in_memory(pixels, unit, pixel_mm or (x_mm, y_mm), "image")


def _scan_of(
    scan: sitk.Image | np.ndarray, affine: np.ndarray | None, frame: str
) -> tuple[str, Scan]:
    """A name for messages, and the scan, from an image or array in memory."""
    if isinstance(scan, sitk.Image):
        if scan.GetDimension() != 3 or scan.GetNumberOfComponentsPerPixel() != 1:
            raise InputError("image", "is not a volume of single numbers")
        return "image", checked_scan(*voxels_and_place(scan), "image")
    if affine is None or frame not in _TO_LPS:
        raise InputError("array", "needs its affine, and that one's frame: 'LPS' or 'RAS'")
    return "array", checked_scan(np.asarray(scan), _TO_LPS[frame] @ np.asarray(affine), "array")


_TO_LPS = {"LPS": np.eye(4), "RAS": np.diag([-1.0, -1.0, 1.0, 1.0])}
