"""The methods and phantoms that a stored config may name, by the names of their settings classes.

A new method or phantom needs a line here.
"""

from jaxmark.data.phantoms.cine.cohort import CinePhantom
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.data.phantoms.vessels.aorta import AortaPhantom
from jaxmark.data.phantoms.vessels.coronary import CoronaryPhantom
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration

METHODS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        HeatmapRegression,
        Adversarial,
        RegressionClassification,
        SpatialConfiguration,
        Multitask,
        Cascade,
        CardiacGAN,
        CoarseToFine,
    )
}
PHANTOMS: dict[str, type] = {
    kind.__name__: kind for kind in (CirclePhantom, CoronaryPhantom, AortaPhantom, CinePhantom)
}
