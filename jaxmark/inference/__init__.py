"""A trained model: stages on devices, radii, doubts and refusals, exported files."""
