"""Cross-entropy of logits, one weight per target: every normalisation of a multi-response loss is a set of weights.

z [T, V] logits, y [T] targets, w [T] weights; u = c tanh(z / c) with a softcap c, otherwise u = z:

    lse_t = log sum_v exp(u_tv),     p_tv = exp(u_tv - lse_t),     nll_t = lse_t - u_ty
    l_t   = (1 - e) nll_t + e (lse_t - mean_v u_tv) + m lse_t^2          e label smoothing, m z-loss
    L     = sum_t w_t l_t

Several targets on one row (target_offsets): row t has the entries target_offsets[t]:target_offsets[t + 1], each with
its y and w, and L sums over entries. A prompt packed once predicts the first token of all its responses there.

Gradient, with a_t = sum of the weights of row t:

    dL/du_tv = a_t (1 + 2 m lse_t) p_tv - (1 - e) sum_{entries of t} w [v = y] - a_t e / V
    dL/dz_tv = dL/du_tv (1 - tanh^2(z_tv / c))

Entries whose target is ignore_index have w = 0. A row whose weights are all 0 is not read: its gradient is 0, whatever
it holds. Without weights w = 1 / (number of entries that are not ignored). Nothing valid: L = 0, gradient 0.

Weights (`mrtkern.response_weights`). Response r of prompt p has T_r tokens that are not ignored; R responses and K_p
responses of p have any; P prompts have such a response. v_r is the response's weight as given; where none is given it
is 1, or 1 / K_p under `prompt` and `prompt_sum`, so that sum_r v_r = 1 in every prompt.

    normalize      w of a token           meaning
    token          v_r / sum_r' T_r'      mean over tokens
    response       v_r / (R T_r)          mean over responses of token means
    prompt         v_r / (P T_r)          mean over prompts of means over responses of token means
    prompt_token   v_r / (P sum_{r' in p} v_r' T_r')    mean over prompts of token means
    prompt_sum     v_r / (P c)            mean over prompts of responses' log-likelihoods, over a constant c

Counts run over the whole optimizer step: all ranks and all accumulated batches.

Length tilt. Dividing by T_r changes what is learnt. A model that gives response y of prompt x the probability q(y | x)
minimises sum_y p(y | x) (1 / T_y) (-log q(y | x)) under `response` and `prompt`: its optimum is q ~ p(y | x) / T_y. Two
responses of 10 and 100 tokens, each drawn half of the time, are learnt as 0.909 and 0.091. Under `token` and
`prompt_sum` they are learnt as 0.500 and 0.500. `prompt_token` divides all responses of a prompt alike: no tilt within
it, but a prompt with long responses counts less.

Sums: float32 over at most 32 numbers per vector lane, float64 beyond (float64 for float64 logits). The gradient is
rounded once to the type of the logits.

Devices. Without check=True nothing waits for a GPU, so a call can be captured in a CUDA graph: a label or an offset out
of range makes the loss NaN, and the gradient of its row. A second backward is refused, because only the device knows
whether the first one scaled the gradient. Details with `prompt` do wait: their size is the number of prompts.

Cost: the logits are read once and the gradient is written once; about 40 operations per logit. A kernel in CUDA C++
could do no better by keeping a row in shared memory (up to 227 KiB: 116,000 bfloat16 logits on an H100). Triton's keeps
it in registers, or reads it a second time from the L2 cache, where the rows in flight lie: 152,000 bfloat16 logits on
each of 132 multiprocessors are 40 of 50 MB.
Source: arXiv 2606.00544 (prompt-level estimator); label smoothing as in torch.nn.functional.cross_entropy; z-loss:
PaLM, arXiv 2204.02311, 5; softcap: Gemma 2, arXiv 2408.00118.
"""
