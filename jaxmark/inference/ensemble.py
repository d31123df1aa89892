"""The models of a cross-validation's folds as one: the mean of their landmarks.

Each fold has its own frame, found from its training cases. A scan is prepared in every frame, and
landmarks are averaged in the scan's millimetres. Radius, presence and doubts are calibrated on the
out-of-fold cases of all folds together.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import Volume
from jaxmark.data.frame import Frame, PreparedScan
from jaxmark.data.notes import first_few
from jaxmark.inference.model import ScanLandmarks, TrainedModel
from jaxmark.inference.predictor import Found
from jaxmark.system.fingerprints import json_key

# Folder in a cross-validation's work dir with the work dirs of its folds, 0, 1, ...
FOLDS = "folds"


def fold_folder(workdir: Path, fold: int) -> Path:
    """The work dir of a fold."""
    return workdir / FOLDS / str(fold)


def is_cross_validation(workdir: Path) -> bool:
    """Whether the work dir holds folds instead of one model."""
    return any((workdir / FOLDS).glob("*/config.json"))


@dataclasses.dataclass(frozen=True)
class Ensemble(TrainedModel):
    """Models of one experiment; fields other than `members` and `frame` are the first member's.

    All members have one calibration.
    """

    members: tuple[TrainedModel, ...] = ()

    @classmethod
    def of(cls, members: Sequence[TrainedModel]) -> "Ensemble":
        """The ensemble of members with the same landmarks and the same calibration."""
        first = members[0]
        fields = {f.name: getattr(first, f.name) for f in dataclasses.fields(TrainedModel)}
        # A landmark is untrained only if no member has learned it.
        untrained = [n for n in first.landmarks if all(n in m.frame.untrained for m in members)]
        fields["frame"] = dataclasses.replace(first.frame, untrained=tuple(untrained))
        return cls(**fields, members=tuple(members))

    @property
    def preparations(self) -> tuple[Path, ...]:
        """The folders of `frames`."""
        return tuple(member.preparation for member in self.members)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The members' frames."""
        return tuple(member.frame for member in self.members)

    @functools.cached_property
    def identity(self) -> str:
        """Changes with everything that changes a prediction."""
        return json_key([member.identity for member in self.members])

    def find(self, scans: Iterable[tuple[str, Sequence[PreparedScan]]]) -> Iterator[ScanLandmarks]:
        """See `TrainedModel.find`."""
        for_zip, *for_members = itertools.tee(scans, 1 + len(self.members))
        # Members read scans a batch ahead; `tee` keeps a scan until all have read it.
        answers = [
            member.predictor(member.variables, _volumes(own, k))
            for k, (member, own) in enumerate(zip(self.members, for_members, strict=True))
        ]
        for (_, prepared), *found in zip(for_zip, *answers, strict=True):
            yield self.landmarks_together(found, prepared)

    def landmarks_together(
        self, found: Sequence[Found], prepared: Sequence[PreparedScan]
    ) -> ScanLandmarks:
        """The mean of the members' predictions of one scan, each prepared in the member's frame."""
        together = self.combined(found)
        case = self.landmarks_of(together, prepared[0])
        sd_mm = self.sd_mm(found, self.experiment.predict.decoder)
        doubts = [*case.doubts]
        for fold, (frame, own) in enumerate(zip(self.frames, prepared, strict=True)):
            lines = frame.doubts(own.quality, own.lead, own.overlap, own.voxel_mm)
            doubts += [f"fold {fold}: {line}" for line in lines if line not in doubts]
        apart = (sd_mm > case.radius_mm) & ~np.isin(case.landmarks, case.hidden)
        if apart.any():
            names = first_few(np.array(case.landmarks)[apart].tolist())
            worst = int(np.argmax(np.where(apart, sd_mm, -np.inf)))
            doubts.append(
                f"{names}: the folds' models disagree by more than the stated radius (most: "
                f"{case.landmarks[worst]}, standard deviation {sd_mm[worst]:.1f} {case.unit}, "
                f"radius {case.radius_mm[worst]:.1f} {case.unit})"
            )
        return dataclasses.replace(case, doubts=tuple(doubts), folds_sd_mm=sd_mm)

    def combined(self, found: Sequence[Found]) -> Found:
        """The mean prediction, in voxels of the first member's volume.

        Positions are averaged in the scan's millimetres over the members that have learned the
        landmark; score, evidence and spread over all members.
        """
        first = found[0]
        to_ijk = np.linalg.inv(first.volume.ijk_to_lps)
        positions = {
            name: apply_affine(to_ijk, self.mean_mm(found, name))
            for name in first.prediction.positions_ijk
        }
        spreads = [s for one in found if (s := one.prediction.spread_mm) is not None]
        together = first.prediction.replace(  # type: ignore[attr-defined]
            positions_ijk=positions,
            score=np.mean([one.prediction.score for one in found], axis=0),
            evidence=np.mean([one.prediction.evidence for one in found], axis=0),
            spread_mm=np.mean(spreads, axis=0) if len(spreads) == len(found) else None,
        )
        return dataclasses.replace(first, prediction=together)

    def mean_mm(self, found: Sequence[Found], decoder: str) -> np.ndarray:
        """(K, 3) LPS mm: the mean of the members' positions."""
        positions, weights = self._positions(found, decoder)
        mean: np.ndarray = (positions * weights).sum(0) / weights.sum(0)
        return mean

    def sd_mm(self, found: Sequence[Found], decoder: str) -> np.ndarray:
        """(K,): the members' root mean square distance from their mean, unbiased; NaN for one."""
        positions, weights = self._positions(found, decoder)
        squares = ((positions - self.mean_mm(found, decoder)) ** 2 * weights).sum((0, 2))
        count = weights.sum((0, 2))
        return np.sqrt(np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan))

    def _positions(self, found: Sequence[Found], decoder: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions (M, K, 3) in LPS mm, and weights (M, K, 1): 1 where a member counts, else 0."""
        positions = np.stack([one.landmarks_mm(decoder) for one in found])
        learned = np.stack([~np.isin(self.landmarks, m.frame.untrained) for m in self.members])
        learned |= ~learned.any(0)
        return positions, learned[..., None].astype(float)


def _volumes(scans: Iterable[tuple[str, Sequence[PreparedScan]]], frame: int) -> Iterator[Volume]:
    """The scans' volumes in the frame of this number."""
    for name, prepared in scans:
        yield prepared[frame].volume(name)
