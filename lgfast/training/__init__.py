"""Trains students: the loop over epochs, its evaluations, checkpoints and console lines."""
