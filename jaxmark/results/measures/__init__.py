"""Errors of points, label maps and attributes."""
