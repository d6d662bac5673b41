"""Facility location: keep the K rows that represent all rows best.

    c_ij = a_j s_ij,  s_ij = (1 + cos_ij) / 2  (metric "shifted_cosine")  or  max(cos_ij, 0)  ("clamped_cosine")
    F(S) = sum_{j in S} bonus_j + sum_i w_i max_{j in S} c_ij,   F({}) = 0
    gain(j) = bonus_j + sum_i w_i max(0, c_ij - best_i),   best_i = max_{j in S} c_ij

F is monotone and submodular because w, a, s and bonus are not negative, so greedy reaches at least (1 - 1/e) of the
optimum (Nemhauser, Wolsey, Fisher 1978), and the largest possible value is at most

    upper_bound = min over t in {0, 1, 2, 4, ..., K} of  F(S_t) + sum of the K largest gains after t picks

(the online bound of Leskovec et al., KDD 2007). It flatters: random picks alone often reach 0.8 to 0.9 of it. Hence

    skill = (F - F_random) / (upper_bound - F_random),   F_random: mean of 8 seeded uniform draws of K rows.

Everything is decided in integers. Rows are rounded to the lattice of `mrtkern.lattice`; a pair becomes 15-bit fixed
point

    t_ij = min(32767, rint(float32(max(0, base + dot_ij)) * (u_i * a_j)))
    u_i = float32(w_i * 32767 / (scale * max(w) * max(a)))

with base = r**2, scale = 2 r**2 (shifted) or base = 0, scale = r**2 (clamped), every operation rounded once in float32;
u_i is formed in float64 first. Sums of t are exact in any order, so the picks are the same bits for every thread count,
instruction set and backend, and lazy greedy equals naive greedy, ties included: larger gain first, then the lower row
number.

Cost per group of N rows: N**2 D multiplications for the pairs and N**2 K subtractions at most.
Source: arXiv 2606.00544, section 4.
"""
