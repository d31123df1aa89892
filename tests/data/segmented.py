"""A cohort with label maps of three segments, as files."""

import json

import numpy as np

from jaxmark.core.anatomy import Segment
from jaxmark.core.geometry import compose_affine
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.scans import write_scan

NAMES = ("A R", "A L", "tip")
SEGMENTS = (
    Segment("one R", ("A R", "tip"), True),
    Segment("one L", ("A L", "tip"), True),
    Segment("stem", ("tip",)),
)
PLACE = compose_affine(np.diag([1.0, 1.2, 1.5]), np.array([-6.0, -4, 3]))
SHAPE = (9, 8, 7)
TABLE = (
    "label,name,ends,may_be_missing\n"
    "0,background,,\n5,one R,A R;tip,yes\n3,one L,A L; tip,yes\n9,stem,tip,no\n12,Background,,\n"
)
CASES = ("a", "b", "c", "d")
# Segments in the order of their labels.
IN_ORDER = ["one L", "one R", "stem"]


def write_cohort(root, cases=CASES, images="images/{}.nii.gz", landmarks="landmarks/{}.mrk.json"):
    rng = np.random.default_rng(0)
    for case in cases:
        image = rng.integers(0, 99, SHAPE).astype(np.int16)
        write_scan(root / images.format(case), image, PLACE)
        points = dict(zip(NAMES, rng.uniform(-2, 2, (3, 3)) + [-2, 0, 7], strict=True))
        write_mrk_json(root / landmarks.format(case), points)
    splits = {"train": list(cases[:2]), "val": [cases[2]], "test": [cases[3]]}
    (root / "splits.json").write_text(json.dumps(splits))


def labels_of(values=(5, 3, 9)):
    labels = np.zeros(SHAPE, np.uint8)
    for i, value in enumerate(values):
        labels[2 + i, 2:5, 3] = value
    return labels


def write_segmented(root):
    """Label maps and a table beside the images of all but the last case."""
    write_cohort(root)
    for case in CASES[:3]:
        write_scan(root / "segmentations" / f"{case}.nii.gz", labels_of(), PLACE)
    (root / "segmentations" / "labels.csv").write_text(TABLE)
    return root
