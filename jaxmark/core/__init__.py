"""Mathematics alone: anatomy, geometry, heatmaps, losses, metrics, convolutions."""
