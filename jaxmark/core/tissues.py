"""The tissues of label maps from which images of a head are made."""

# A voxel's label is the index here. "air" is outside of the head, and in its cavities; "sinus" is
# the cavernous sinus; "vein" are the dura's other sinuses, and veins.
TISSUES = (
    "air",
    "skin",
    "fat",
    "muscle",
    "bone",
    "marrow",
    "csf",
    "grey",
    "white",
    "sinus",
    "vein",
)

# Name of a label map in `Batch.targets`.
TARGET = "tissues"
