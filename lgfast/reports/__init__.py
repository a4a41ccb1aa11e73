"""Reads runs back, groups them by seed, and shows them as tables, curves and pages."""
