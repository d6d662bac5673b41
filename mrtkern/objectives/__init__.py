"""Greedy selection by other objectives than facility location, of one set or of many small ones together.

With s_ij the similarity of rows i and j from 0 to 1, (1 + cos) / 2 or max(cos, 0), a_j a candidate's quality:

    saturated_coverage   sum_i min(sum_{j in S} a_j s_ij, saturation * sum_j a_j s_ij)   (Lin and Bilmes, ACL 2011)
    graph_cut            sum_i sum_{j in S} s_ij - lam * sum_{i, j in S} s_ij, lam <= 1/2   (Iyer et al., ALT 2021)
    feature_based        sum_d sqrt(sum_{j in S} a_j x_jd) of features that are not negative (Wei et al., ICASSP 2014)
    log_det              log det(I + theta * (a_i s_ij a_j) of S): picks of a determinantal point process, the limit of
                         large theta (Kulesza and Taskar, 2012; greedy by Cholesky: Chen et al., NeurIPS 2018)
    max_min              the smallest distance |x_i - x_j| between directions in S (farthest point; Gonzalez, 1985)
    mmr                  sum over picks of lam a_j - (1 - lam) max s with those before (Carbonell and Goldstein, 1998)

The first four are monotone and submodular: greedy reaches 1 - 1/e of the optimum, and value + the k largest gains,
after any number of picks, bounds it (`upper_bound`, the least of 0, 1, 2, 4, ..., k picks). max_min reaches half of
the optimum, so its bound is twice its value. mmr has no guarantee and no bound: upper_bound and skill are NaN.

    batches.py     problems of like sizes side by side, padded         kinds.py     gains of all rows, kept current
    op.py          the public function                                 greedy.py    the loop, draws of chance, owners

Similarities are those of the lattice of `mrtkern.lattice`, integers over a scale; what decides a pick is added up in
one order, with correctly rounded roots and no logarithm: the same picks on every machine.
"""
