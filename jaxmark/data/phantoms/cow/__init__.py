"""MRA and CTA of synthetic Circles of Willis."""
