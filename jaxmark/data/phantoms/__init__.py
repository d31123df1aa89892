"""Synthetic people as raw scans with landmarks."""
