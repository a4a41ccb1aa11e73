"""Uses what a run has trained: predictions for new pictures, and files for other programs."""
