"""The tissues of label maps from which images of a head are made."""

# A voxel's label is the index here. "air" is what lies outside of the head, and cavities in it;
# "sinus" is the cavernous one; "vein" are the other sinuses of the dura, and veins.
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
