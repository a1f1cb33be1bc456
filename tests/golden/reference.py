"""The model's mathematics, written out once more in plain torch, in float64.

Nothing here comes from Transformers: it follows the equations that Ferry implements, so that a mistake in
Transformers (or in the patches of make_models.py) shows as a disagreement. Weights carry Hugging Face names.
"""

import math

import torch

E4M3_MAX = 448.0
BLOCK = 128


def yarn_mscale(factor, a):
    return 0.1 * a * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_settings(config):
    """(theta, yarn dict or None) from either spelling of config.json."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return theta, scaling if kind == "yarn" else None


def rope_freqs(r, theta, yarn=None):
    """Frequencies [r/2] in float64."""
    freq = theta ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    if yarn is None:
        return freq
    length = yarn["original_max_position_embeddings"]

    def corr(n):
        return r * math.log(length / (2 * math.pi * n)) / (2 * math.log(theta))

    low = max(math.floor(corr(yarn["beta_fast"])), 0)
    high = min(math.ceil(corr(yarn["beta_slow"])), r - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(r // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return freq / yarn["factor"] * ramp + freq * (1 - ramp)


def rope_table_scale(yarn):
    if yarn is None:
        return 1.0
    factor = yarn["factor"]
    return yarn_mscale(factor, yarn["mscale"]) / yarn_mscale(factor, yarn["mscale_all_dim"])


def rope_tables(freqs, num_positions, scale=1.0):
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * freqs
    return angle.cos() * scale, angle.sin() * scale


def rope(x, cos, sin, interleave=True):
    """x [tokens, ..., r], cos and sin [tokens, r/2]; the result keeps the layout of x."""
    shape = [x.shape[0]] + [1] * (x.dim() - 2) + [cos.shape[-1]]
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    if interleave:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rms_norm(x, weight, eps=1e-6):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(x, weight, bias, eps=1e-6):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def has_indexer(config, layer):
    """Whether it chooses keys itself; of a sparse model else it takes those that the last one with an indexer chose."""
    return "index_topk" in config and config.get("indexer_types", {layer: "full"})[layer] == "full"


def choose(values, k):
    """Indices of the k largest, largest first, ties to the lower index."""
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :k]


def gate(logits, bias, config):
    """logits [tokens, experts] -> (indices, weights [tokens, k] by falling choice, choice before groups)."""
    scores = logits.softmax(-1) if config["scoring_func"] == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    masked, n_group = choice, config.get("n_group") or 1
    if n_group > 1 and config["topk_method"] != "greedy":
        grouped = choice.unflatten(-1, (n_group, -1))
        if bias is None:
            group_score = grouped.max(-1).values
        else:
            group_score = grouped.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(group_score, dtype=torch.bool)
        kept.scatter_(-1, choose(group_score, config["topk_group"]), True)
        masked = grouped.masked_fill(~kept[..., None], -math.inf).flatten(-2)
    indices = choose(masked, config["num_experts_per_tok"])
    weights = scores.gather(-1, indices)
    if config["norm_topk_prob"]:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return indices, weights * config["routed_scaling_factor"], choice


def gate_margin(choice, has_bias, config):
    """Smallest distance of any decision (experts and groups) from going the other way, per token."""
    k, n_group = config["num_experts_per_tok"], config.get("n_group") or 1
    margin = torch.full(choice.shape[:-1], math.inf, dtype=choice.dtype)
    if n_group > 1 and config["topk_method"] != "greedy":
        grouped = choice.unflatten(-1, (n_group, -1))
        score = grouped.topk(2, dim=-1).values.sum(-1) if has_bias else grouped.max(-1).values
        ranked = score.sort(-1, descending=True).values
        margin = ranked[..., config["topk_group"] - 1] - ranked[..., config["topk_group"]]
        kept = choose(score, config["topk_group"])
        choice = grouped.gather(-2, kept[..., None].expand(*kept.shape, grouped.shape[-1])).flatten(-2)
    ranked = choice.sort(-1, descending=True).values
    if ranked.shape[-1] > k:
        margin = torch.minimum(margin, ranked[..., k - 1] - ranked[..., k])
    return margin


def index_margin(scores, k):
    """By how much each query's k-th key leads the next, over the largest |score| of its row.

    scores [..., queries, keys], -inf for keys after the query; inf where no key is left out."""
    if scores.shape[-1] <= k:
        return torch.full(scores.shape[:-1], math.inf, dtype=scores.dtype)
    ranked = scores.sort(-1, descending=True).values
    largest = scores.masked_fill(scores.isneginf(), 0).abs().amax(-1)
    gap = ranked[..., k - 1] - ranked[..., k]
    return torch.where(ranked[..., k].isneginf(), math.inf, gap / largest)


def quantise_activations(x, ue8m0=False):
    """x f32 [tokens, k] -> (e4m3 values as f32 [tokens, k], scales f32 [tokens, ceil(k/128)])."""
    x = x.float()
    values, scales = torch.empty_like(x), []
    for begin in range(0, x.shape[-1], BLOCK):
        part = x[..., begin : begin + BLOCK]
        scale = part.abs().amax(-1, keepdim=True).clamp(min=1e-4) / E4M3_MAX
        if ue8m0:
            scale = torch.exp2(torch.ceil(torch.log2(scale.double()))).float()
        values[..., begin : begin + BLOCK] = (part / scale).to(torch.float8_e4m3fn).float()
        scales.append(scale)
    return values, torch.cat(scales, dim=-1)


def rounding_clearance(x):
    """Distance of the closest element of x [tokens, k] from the next e4m3 rounding boundary, over the rms of its row.

    While f32 rounding errors stay below it, every implementation quantises x to the same codes."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    boundaries, x = (codes[1:] + codes[:-1]) / 2, x.double()
    closest = math.inf
    for begin in range(0, x.shape[-1], BLOCK):
        part = x[..., begin : begin + BLOCK].abs()
        scale = part.amax(-1, keepdim=True).clamp(min=1e-4) / E4M3_MAX
        value = (part / scale).contiguous()
        above = torch.bucketize(value, boundaries)
        distance = torch.minimum((boundaries[above.clamp(max=len(boundaries) - 1)] - value).abs(),
                                 (value - boundaries[(above - 1).clamp(min=0)]).abs())
        closest = min(closest, (distance * scale / x.pow(2).mean(-1, keepdim=True).sqrt()).min().item())
    return closest


def quantise_weight(weight):
    """weight f32 [out, in] -> (e4m3 [out, in], weight_scale_inv f32 [ceil(out/128), ceil(in/128)])."""
    rows, cols = weight.shape
    codes = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // BLOCK), -(-cols // BLOCK))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[at].abs().max() / E4M3_MAX
            codes[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def spread_scales(scales, rows, cols):
    return scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]


def dequantise_weight(codes, scales):
    return codes.float() * spread_scales(scales, *codes.shape)


def fp8_linear(x, codes, scales):
    """y = x Wᵀ with both sides e4m3: per 128-block of k the products are summed, then both scales applied.

    Sums are taken in float64, where they are exact up to the scales, so this is the value that any order of f32
    accumulation approaches. x [tokens, k]; codes e4m3 [out, k]; returns float64 [tokens, out].
    """
    values, x_scales = quantise_activations(x)
    w, out = codes.double(), torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for b in range(scales.shape[1]):
        part = values[:, b * BLOCK : (b + 1) * BLOCK].double() @ w[:, b * BLOCK : (b + 1) * BLOCK].T
        w_scales = scales[:, b].repeat_interleave(BLOCK)[: codes.shape[0]]
        out += part * x_scales[:, b : b + 1].double() * w_scales.double()
    return out


class Model:
    """weights: name -> f32 tensor (fp8 ones dequantised); fp8: name -> (codes, scales) of quantised linears."""

    def __init__(self, config, weights, fp8=None, form="naive", noise=0.0, seed=0):
        self.c, self.form, self.fp8, self.noise = config, form, fp8 or {}, noise
        self.w = {name: w.double() for name, w in weights.items()}
        self.generator = torch.Generator().manual_seed(seed)
        theta, yarn = rope_settings(config)
        self.freqs = rope_freqs(config["qk_rope_head_dim"], theta, yarn)
        self.table_scale = rope_table_scale(yarn)
        self.scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
        if yarn is not None:
            self.scale *= yarn_mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2

    def linear(self, name, x):
        if self.noise:  # stands for another order of f32 accumulation
            wobble = torch.randn(x.shape, generator=self.generator, dtype=torch.float64)
            x = x * (1 + self.noise * wobble)
        if name in self.fp8:
            self.clearance = min(self.clearance, rounding_clearance(x))
            return fp8_linear(x.float(), *self.fp8[name])
        return x @ self.w[name].T

    def index_scores(self, p, x, q_resid, cos, sin):
        """The indexer's score of every query and key [tokens, tokens], -inf for keys after the query."""
        heads, dim, r = (self.c[k] for k in ("index_n_heads", "index_head_dim", "qk_rope_head_dim"))
        interleave = self.c["model_type"] == "glm_moe_dsa"  # deepseek_v32: halves, unlike its attention

        def turn(y):
            return torch.cat([rope(y[..., :r], cos, sin, interleave), y[..., r:]], dim=-1)

        q = turn(self.linear(p + "wq_b.weight", q_resid).view(-1, heads, dim))
        k = self.linear(p + "wk.weight", x)
        k = turn(layer_norm(k, self.w[p + "k_norm.weight"], self.w[p + "k_norm.bias"]))
        weights = self.linear(p + "weights_proj.weight", x) * dim**-0.5 * heads**-0.5
        score = torch.einsum("qh,qhk->qk", weights, torch.einsum("qhd,kd->qhk", q, k).relu())
        return score.masked_fill(torch.ones_like(score, dtype=torch.bool).triu(1), -math.inf)

    def attention(self, p, x, cos, sin):
        c, tokens = self.c, x.shape[0]
        heads, nope, v_dim = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]
        interleave = c.get("rope_interleave", True)
        if c.get("q_lora_rank") is None:
            q = self.linear(p + "q_proj.weight", x)
        else:
            q_resid = rms_norm(self.linear(p + "q_a_proj.weight", x), self.w[p + "q_a_layernorm.weight"])
            q = self.linear(p + "q_b_proj.weight", q_resid)
        q = q.view(tokens, heads, -1)
        q_nope, q_pe = q[..., :nope], rope(q[..., nope:], cos, sin, interleave)
        kv = self.linear(p + "kv_a_proj_with_mqa.weight", x)
        latent = rms_norm(kv[:, : c["kv_lora_rank"]], self.w[p + "kv_a_layernorm.weight"])
        k_pe = rope(kv[:, c["kv_lora_rank"] :], cos, sin, interleave)
        score = torch.einsum("qhr,kr->hqk", q_pe, k_pe)
        if self.form == "naive":
            k_v = self.linear(p + "kv_b_proj.weight", latent).view(tokens, heads, nope + v_dim)
            score = score + torch.einsum("qhd,khd->hqk", q_nope, k_v[..., :nope])
        else:
            wkv_b = self.w[p + "kv_b_proj.weight"].view(heads, nope + v_dim, -1)
            q_latent = torch.einsum("qhd,hdc->qhc", q_nope, wkv_b[:, :nope])
            score = score + torch.einsum("qhc,kc->hqk", q_latent, latent)
        unread = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if p + "indexer.wq_b.weight" in self.w:
            self.chosen = choose(self.index_scores(p + "indexer.", x, q_resid, cos, sin), c["index_topk"])
        if "index_topk" in c:
            unread |= torch.ones_like(unread).scatter(-1, self.chosen, False)
        probs = (score * self.scale).masked_fill(unread, -math.inf).softmax(-1)
        if self.form == "naive":
            out = torch.einsum("hqk,khv->qhv", probs, k_v[..., nope:])
        else:
            out = torch.einsum("hqk,kc->qhc", probs, latent)
            out = torch.einsum("qhc,hvc->qhv", out, wkv_b[:, nope:])
        return self.linear(p + "o_proj.weight", out.reshape(tokens, -1))

    def mlp(self, p, x):
        hidden = torch.nn.functional.silu(self.linear(p + "gate_proj.weight", x))
        return self.linear(p + "down_proj.weight", hidden * self.linear(p + "up_proj.weight", x))

    def moe(self, p, x):
        bias = self.w.get(p + "gate.e_score_correction_bias")
        logits = x @ self.w[p + "gate.weight"].T
        indices, weights, choice = gate(logits, bias, self.c)
        self.margins.append(gate_margin(choice, bias is not None, self.c))
        out = self.mlp(p + "shared_experts.", x)
        for expert in range(choice.shape[-1]):
            rows, slots = torch.where(indices == expert)
            if len(rows):
                y = self.mlp(f"{p}experts.{expert}.", x[rows])
                out[rows] += y * weights[rows, slots, None]
        return out

    def forward(self, tokens):
        """tokens: list of ids -> logits [tokens, vocab] float64; margins of all gates are kept in self.margins."""
        self.margins, self.clearance = [], math.inf
        cos, sin = rope_tables(self.freqs, len(tokens), self.table_scale)
        x, eps = self.w["model.embed_tokens.weight"][torch.tensor(tokens)], self.c["rms_norm_eps"]
        for layer in range(self.c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = rms_norm(x, self.w[p + "input_layernorm.weight"], eps)
            x = x + self.attention(p + "self_attn.", h, cos, sin)
            h = rms_norm(x, self.w[p + "post_attention_layernorm.weight"], eps)
            dense = layer < self.c["first_k_dense_replace"]
            x = x + (self.mlp(p + "mlp.", h) if dense else self.moe(p + "mlp.", h))
        head = "model.embed_tokens.weight" if self.c.get("tie_word_embeddings") else "lm_head.weight"
        return rms_norm(x, self.w["model.norm.weight"], eps) @ self.w[head].T
