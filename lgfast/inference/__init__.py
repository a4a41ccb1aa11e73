"""Uses trained networks: predicts new pictures, and writes files for other programs."""
