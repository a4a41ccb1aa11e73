"""Every CUDA kernel of lgfast as benchmarks/smoke.py tries it: its switches, its trial, its checks."""
