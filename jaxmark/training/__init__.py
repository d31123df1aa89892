"""The loop, streams of batches and checkpoints, for any method."""
