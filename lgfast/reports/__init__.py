"""What came of runs: read back and grouped by seed, as tables, curves and pages."""
