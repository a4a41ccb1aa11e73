"""Sweeps: many trials of one configuration, shared between processes and machines through an Optuna study."""
