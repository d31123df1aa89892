"""From a folder to an experiment: what a cohort is like decides how a detector is trained on it."""
