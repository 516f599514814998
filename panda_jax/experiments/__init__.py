"""What is asked of many runs: how good a metric is, and what was published."""
