"""Readers of landmark files and tables."""
