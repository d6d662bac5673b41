"""Benchmarks: `python -m bench [op]` times every case tagged "bench" against its peers in one interleaved run.

__main__    the command line                      harness   competitors, interleaving, medians, ratios
roofline    what this machine can do, measured    worker    child processes: peak memory, another git revision
report      the table, RESULTS.md                 peers     the programs a good user would otherwise write
data        real text and its embeddings          search    programs and packages that find nearest rows
scaling     time against size, drawn              static    machine code of Triton's kernels, limits/ its limits
device      the same cases on a GPU, floors       device_peers    what they are timed against there
device_time     kernels and host, apart           gpu/        `make gpu`: build, test, time, sanitize by one command
million     what a million rows take, once each   science/    what the paper says, simulated and trained
<op>        cases, competitors, the check that refuses wrong answers, targets and why one is missed
"""

OPS = (  # bench/<op>.py
    "facility_location", "large_selection", "similarity", "neighbors", "cross_entropy", "linear_cross_entropy",
    "head_products", "prefix",
)  # fmt: skip
