"""Similarity: every row against every row of its matrix, its batch entry or its group.

    cos_ij = <x_i, y_j> / (|x_i| |y_j|),   0 when either row is zero

    metric            s_ij                         range
    cosine            cos_ij                       [-1, 1]
    shifted_cosine    (1 + cos_ij) / 2             [0, 1]     a zero row has 1/2 with everything
    clamped_cosine    max(cos_ij, 0)               [0, 1]
    dot               <x_i, y_j>
    rbf               exp(-gamma |x_i - y_j|^2)    [0, 1]

x [M, D] (y [N, D]) gives s [M, N]; x [B, M, D] (y [B, N, D]) gives s [B, M, N]; packed rows x [T, D] with offsets
[B + 1] give the scores of each group with itself, packed: sum_b n_b^2 numbers, group b row by row. Without y the rows
meet themselves.

Gradient, with w_ij = dL/ds_ij ds_ij/dcos_ij, unit rows a_i = x_i / |x_i|, b_j = y_j / |y_j|:

    d_i = sum_j w_ij b_j,   dL/dx_i = (d_i - a_i <a_i, d_i>) / |x_i|,   0 when x_i is zero

and likewise for y with w transposed; without y both add up, w becomes w + w^T. ds/dcos is 1, 1/2 and [cos > 0]. For dot
dL/dx_i = sum_j w_ij y_j; for rbf dL/dx_i = sum_j v_ij (x_i - y_j) with v_ij = -2 gamma s_ij dL/ds_ij.

Lengths are float64, so that those of float16, bfloat16 and float32 rows neither overflow nor vanish (a backend may take
them from float32 products that did neither). Products are
summed in float32 (float64 for float64) and the result is rounded once to the type of x.

Cost: 2 D operations per pair forward, twice (with y) or once (without) as much again backward, and M N numbers written.
"""
