"""A model of lgfast's CUDA kernels that reads their machine code: what benchmarks/machine_code.py predicts with.

In the order in which a prediction uses them:

kernels.py      the kernels to predict, each at its reference shape
launches.py     the launches of a kernel, made by the operations' own planning code, with parameters by value
objects.py      reads machine code and constants of a built object; elf.py: of the ELF file around them
sass.py         parses the text of instructions
interpreter.py  runs one block of threads, instruction by instruction, on real memory
operations.py   what each instruction does: integers.py, floats.py, control.py, transfers.py, warpgroups.py;
                values.py: of operands
timing.py       the clocks of the blocks of one multiprocessor, from what its warps ran
assumptions.py  latencies, rates and bandwidths, with their sources
predict.py      puts these together: the time of a kernel on a GPU
"""
