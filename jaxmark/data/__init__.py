"""From raw scans and landmark files to prepared cases and batches."""
