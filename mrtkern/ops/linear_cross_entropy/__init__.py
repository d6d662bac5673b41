"""Cross-entropy of a linear head: the loss of `hidden @ weight.T`, its gradients, never more than one chunk of logits.

    z_t = W h_t + b,   u = cap(z),   lse_t = log sum_v exp(u_tv),   p_tv = exp(u_tv - lse_t)
    L   = sum_e w_e l_e,   l_e as in `mrtkern.ops.cross_entropy`, e the targets (entries) of row t

hidden [T, D], weight [V, D], bias [V], targets [T], or [E] with target_offsets [T + 1].

Gradients. w_e multiplies rows, so it goes into dz before anything is summed over rows:

    dz_tv = dL/dz_tv,   dh = dz W,   dW = dz^T h,   db = sum_t dz_t

L is a scalar, so its gradient is known up to a factor before backward is called: each chunk of logits becomes dz in
place and is used up at once. Three products of 2 T V D operations, where a program that weighs the losses afterwards
and recomputes its logits needs four. Rows whose weights are all 0 are dropped before the first product.

`linear_log_prob` gives logp_t = u_ty - lse_t and the entropy H_t = lse_t - sum_v p_tv u_tv of each row, with
u = cap(z) / temperature, and takes any upstream gradients a, c of the two:

    dL/du_tv = a_t ([v = y_t] - p_tv) - c_t p_tv (log p_tv + H_t)

They are not known in advance, so the logits of a chunk are computed again in backward: four products of 2 T V D.

Chunks. C rows at a time stream W and dW once per chunk and touch C V fresh logits; `problem.chunk_rows` has the model,
`traffic` that of a device.

Devices. Without check=True nothing waits for a GPU, so a call can be captured in a CUDA graph. Which rows count is then
known to the device alone: all are multiplied, the others as zeros, and the kernels skip them; a label or an offset out
of range makes the result NaN. With check=True they are dropped before the products. A chunk has 2,048 to 4,096 rows:
beyond the former, logits and dz take at most as much as the sum of dW, or 1 GiB; a weight is converted as a whole. dz
is written in the type of the factors, and the factor of backward costs one read and one write.

Sums. Logits are float32 (float64 for float64), whatever the type of the factors; losses are summed in float64, dW and
db in float32 over all chunks. On the CPU the products are our own: a sum is cut into parts by its length alone, so a
row has the same bits in every batch, for every number of threads and on every instruction set. The product of two
bfloat16 is exact, and their sum is that of the instruction `vdpbf16ps`: two fused steps, the odd element first,
subnormal numbers zero. On a device the library sums as it likes; it is asked whether it leaves float32 results of
16-bit factors and adds them to a float32 sum; where it does neither, logits and parts of dW are rounded to 16 bits. The
factor of backward is applied before the one rounding to the type of weight and hidden, so float16 gradients survive a
loss scale.
"""
