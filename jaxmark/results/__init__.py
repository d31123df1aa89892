"""Files of predictions, measures, comparisons and the report."""
