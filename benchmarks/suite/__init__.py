"""What benchmarks/gpu_suite.py runs and how: parts and their commands, what they need, time limits, state."""
