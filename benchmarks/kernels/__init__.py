"""How benchmarks/smoke.py tries every CUDA kernel of lgfast: the kernels' switches, trials and checks."""
