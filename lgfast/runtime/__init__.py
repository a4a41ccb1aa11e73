"""Handles the process around a run: ranks, signals, locks, memory, environment, command line."""
