"""Anatomical landmark detection in medical volumes, in JAX and Flax."""

__version__ = "0.1.0"
