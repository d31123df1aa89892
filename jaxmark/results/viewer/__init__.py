"""The viewer of the report."""
