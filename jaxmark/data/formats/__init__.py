"""Readers of image formats, which refuse damaged files."""
