"""CT angiograms of synthetic hearts and aortas."""
