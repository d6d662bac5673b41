"""Neighbours: the K rows with the largest scores, of every row.

    dot(x, y) = 16 interleaved lanes (lane d % 16 adds x_d y_d, d ascending), then lanes by halves 8, 4, 2, 1
    cos(x, y) = dot(x, y) / sqrt(dot(x, x) dot(y, y)), clamped to [-1, 1], 0 when either is zero, 1 for equal rows

    metric            score
    cosine            cos
    shifted_cosine    (1 + cos) / 2
    clamped_cosine    max(cos, 0)
    dot               dot
    rbf               exp(-gamma |x - y|^2), differences first, their squares summed like products

Scores are float64 numbers of the given inputs in this one order, every product and every sum rounded once. Products of
float32, bfloat16 and float16 features are exact in float64. float64 rows are first scaled by a power of two (cosines
only), as `mrtkern.lattice.scaled` does.

Approximate: rows of y belong to cells, and a row of x meets the members of those that it probes, by the definition
above; `approximate.py` says how cells come about and what the answer misses.

Order: larger score first, equal scores by the lower index. A row has no itself among its neighbours (unless asked), no
row of its own group where groups are given, and where fewer than K are left the list ends with ids -1, scores -inf.

    precision    what decides                                                what the score is
    exact        the float64 score                                           that score
    int16        the integer product p of rows on the fine lattice           the metric of p (1 / r^2), within [-1, 1]
    float32      float32 sums of rows of length 1, in the backend's order    within a few roundings of the exact one

The fine lattice has r = 32767 - sqrt(D) / 2 and q = rint(x_d (r / length)), half to even: |q| <= 32767, so p is exact
in int32. length is |x| = sqrt(dot(x, x)) for cosines. For dot, rows of x take their own length and all rows of y the
largest |y|; without y all rows take the largest |x|; the score is p (a b / r^2), a and b those lengths. float64 rows
are rounded to float32 first, scaled as above. rbf, and dot of float64, have precision exact only. Scores are rounded
once to float32 at the end. rbf is ordered by its squared distances, smaller first.

Links: rows are linked when cos >= threshold; components of that graph are what `deduplicate` keeps one row of.

Cost: 2 D operations per pair of rows; without y each pair once. A kernel in CUDA C++ that compares every product with
the running k-th of its row would leave k (1 + ln(N / k)) candidates a row on average and store nothing else. Triton's
stores the largest of 16 products and reads it back: half a byte a pair, beside 2 D operations on tensor cores. On an
H100 (989 TFLOP/s, 3.35 TB/s) with D = 384 that is 0.15 against 0.78 ps a pair.
"""
