"""Cine MR slices of synthetic hearts."""
