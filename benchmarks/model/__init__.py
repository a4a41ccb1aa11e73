"""A model of lgfast's CUDA kernels that reads their machine code: what benchmarks/machine_code.py predicts with.

launches.py    the launches of each kernel at its reference shape: the real planning code, its parameters by value
objects.py     machine code and constants of a built object
sass.py        the text of instructions
interpreter.py one block of threads, run instruction by instruction on real memory; operations.py: what each does
timing.py      the clocks of the blocks of one multiprocessor, from what its warps ran
assumptions.py latencies, rates and bandwidths, with where they are from
"""
