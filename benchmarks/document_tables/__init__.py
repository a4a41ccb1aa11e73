"""The tables that benchmarks/tables.py writes into README.md and docs/.

rows.py        reads results
subjects.py    what the throughput table compares, one subject a line
throughput.py  lgfast against the best peer, by subject and hardware
accuracy.py    base and guided students, by setting and hardware
headline.py    the README's table
methods.py     methods beside guidance, paired by seed
attention.py   which kernels of short_attention run on which GPU
"""
