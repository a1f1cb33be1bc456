"""The tiny random models: one configuration per family, and how their weights are drawn."""

import math

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

import reference

YARN_V2 = dict(type="yarn", factor=40, original_max_position_embeddings=32, beta_fast=32, beta_slow=1,
               mscale=0.707, mscale_all_dim=0.707)
YARN_V3 = dict(type="yarn", factor=4, original_max_position_embeddings=32, beta_fast=32, beta_slow=1,
               mscale=1.0, mscale_all_dim=1.0)
YARN_K2 = dict(type="yarn", factor=32, original_max_position_embeddings=32, beta_fast=1.0, beta_slow=1.0,
               mscale=1.0, mscale_all_dim=1.0)

BASE = dict(
    attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=1, ep_size=1,
    first_k_dense_replace=1, hidden_act="silu", hidden_size=64, initializer_range=0.02, intermediate_size=112,
    kv_lora_rank=32, max_position_embeddings=160, moe_intermediate_size=12, moe_layer_freq=1,
    n_group=1, n_routed_experts=16, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=4,
    num_experts_per_tok=4, num_hidden_layers=3, num_key_value_heads=4, pretraining_tp=1, q_lora_rank=24,
    qk_nope_head_dim=16, qk_rope_head_dim=16, rms_norm_eps=1e-6, rope_theta=10000, rope_scaling=None,
    routed_scaling_factor=2.5, scoring_func="sigmoid", tie_word_embeddings=False, topk_group=1,
    topk_method="noaux_tc", use_cache=True, v_head_dim=16, vocab_size=256,
)
V2 = dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", norm_topk_prob=False,
          rope_scaling=YARN_V2, max_position_embeddings=1280, scoring_func="softmax")
V3 = dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", rope_scaling=YARN_V3,
          n_group=4, topk_group=2, num_nextn_predict_layers=1)


class Family:
    def __init__(self, dtype, seed, shards=1, fused=False, newer=False, routed_gain=1.0, branch_gain=1.0,
                 prompts=(1, 5, 17, 70), **config):
        self.dtype, self.seed, self.shards, self.fused, self.prompts = dtype, seed, shards, fused, prompts
        self.newer = newer or fused  # config.json as Transformers 5 saves it
        self.routed_gain = routed_gain  # of the routed experts' output
        self.branch_gain = branch_gain  # of what every attention and MLP adds to the residual stream
        self.config = {**BASE, **config, "torch_dtype": "float32" if dtype == "f32" else "bfloat16"}
        if dtype == "int4":  # as Kimi-K2-Thinking has it
            weights = dict(actorder=None, block_structure=None, dynamic=False, group_size=32, num_bits=4,
                           observer="minmax", observer_kwargs={}, strategy="group", symmetric=True, type="int")
            self.config["quantization_config"] = dict(
                config_groups=dict(group_0=dict(input_activations=None, output_activations=None,
                                                targets=["Linear"], weights=weights)),
                format="pack-quantized", kv_cache_scheme=None, quant_method="compressed-tensors",
                quantization_status="compressed",
                ignore=["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"])
        if dtype == "fp8":
            self.config["quantization_config"] = dict(
                activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128])


FAMILIES = {
    "v3": Family("f32", 1, shards=3, **{**V3, "n_routed_experts": 12, "intermediate_size": 96}),
    "v2-lite": Family("bf16", 2, routed_gain=2.0, **{
        **V2, "q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.0, "n_shared_experts": 2,
        "n_routed_experts": 10, "num_experts_per_tok": 3, "v_head_dim": 24}),
    "v2": Family("bf16", 3, routed_gain=0.3, **{
        **V2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0, "n_shared_experts": 2,
        "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "vocab_size": 272}),
    "k2": Family("bf16", 4, **{
        **V3, "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "n_routed_experts": 48,
        "num_experts_per_tok": 8, "rope_theta": 50000, "rope_scaling": YARN_K2, "max_position_embeddings": 1024,
        "routed_scaling_factor": 2.827, "moe_intermediate_size": 8, "num_nextn_predict_layers": 0, "vocab_size": 320}),
    "tied": Family("bf16", 5, **{
        **V3, "rope_scaling": None, "tie_word_embeddings": True, "rope_interleave": False, "q_lora_rank": None,
        "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0, "rope_theta": 50000,
        "routed_scaling_factor": 2.446, "n_shared_experts": 2}),
    "fused": Family("bf16", 6, fused=True, **{**V3, "num_nextn_predict_layers": 0}),
    "v3-bf16": Family("bf16", 7, shards=2, **{**V3, "num_nextn_predict_layers": 0, "num_attention_heads": 3,
                                             "num_key_value_heads": 3, "v_head_dim": 24}),
    "v3-fp8": Family("fp8", 8, shards=2, branch_gain=0.3, **{
        **V3, "hidden_size": 160, "intermediate_size": 208, "moe_intermediate_size": 24, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "kv_lora_rank": 144, "qk_nope_head_dim": 32, "v_head_dim": 24,
        "q_lora_rank": 48, "num_nextn_predict_layers": 0}),
    "k2-int4": Family("int4", 9, shards=2, **{
        **V3, "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "n_routed_experts": 10, "num_experts_per_tok": 3,
        "hidden_size": 96, "moe_intermediate_size": 32, "rope_theta": 50000, "rope_scaling": YARN_K2,
        "max_position_embeddings": 1024, "routed_scaling_factor": 2.827, "num_nextn_predict_layers": 0}),
    "glm": Family("bf16", 10, **{
        **V3, "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1,
        "n_routed_experts": 12, "num_experts_per_tok": 4, "rope_theta": 1000000, "rope_scaling": None,
        "max_position_embeddings": 1024, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0,
        "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 32}),
    "v32": Family("f32", 11, **{
        **V3, "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "n_routed_experts": 12,
        "index_n_heads": 8, "index_head_dim": 24, "index_topk": 16}),
    "glm5": Family("bf16", 12, newer=True, **{
        **V3, "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "n_group": 1, "topk_group": 1,
        "n_routed_experts": 12, "num_experts_per_tok": 4, "rope_theta": 1000000, "rope_scaling": None,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8,
        "qk_head_dim": 32, "head_dim": 8, "v_head_dim": 32, "num_nextn_predict_layers": 0, "rope_interleave": True,
        "index_n_heads": 6, "index_head_dim": 32, "index_topk": 20, "indexer_rope_interleave": True}),
    "glm52": Family("bf16", 13, newer=True, **{
        **V3, "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "n_group": 1, "topk_group": 1,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "rope_theta": 1000000, "rope_scaling": None,
        "num_hidden_layers": 5, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8, "qk_head_dim": 32, "head_dim": 8, "v_head_dim": 32, "num_nextn_predict_layers": 0,
        "rope_interleave": True, "index_n_heads": 6, "index_head_dim": 32, "index_topk": 20,
        "indexer_rope_interleave": True, "indexer_types": ["full", "shared", "shared", "full", "shared"]}),
}


def draw_weights(family):
    """HF name -> f32 tensor, one tensor per expert, already rounded to what the file can hold (fp8 apart)."""
    c, generator = family.config, torch.Generator().manual_seed(family.seed)
    dim, weights = c["hidden_size"], {}
    heads, nope, r, v_dim = (c[k] for k in
                             ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))

    def linear(name, rows, cols, gain=1.0):
        weights[name] = torch.randn(rows, cols, generator=generator) * (gain / math.sqrt(cols))

    def norm(name, size):
        weights[name] = 0.6 + 0.8 * torch.rand(size, generator=generator)

    def mlp(p, width, gain=1.0):
        linear(p + "gate_proj.weight", width, dim, 1.5)
        linear(p + "up_proj.weight", width, dim)
        linear(p + "down_proj.weight", dim, width, gain * family.branch_gain)

    def block(p, dense, has_indexer):
        norm(p + "input_layernorm.weight", dim)
        a = p + "self_attn."
        if c["q_lora_rank"] is None:
            linear(a + "q_proj.weight", heads * (nope + r), dim, 1.5)
        else:
            linear(a + "q_a_proj.weight", c["q_lora_rank"], dim)
            norm(a + "q_a_layernorm.weight", c["q_lora_rank"])
            linear(a + "q_b_proj.weight", heads * (nope + r), c["q_lora_rank"], 1.5)
        if has_indexer:
            linear(a + "indexer.wq_b.weight", c["index_n_heads"] * c["index_head_dim"], c["q_lora_rank"], 1.5)
            linear(a + "indexer.wk.weight", c["index_head_dim"], dim)
            norm(a + "indexer.k_norm.weight", c["index_head_dim"])
            weights[a + "indexer.k_norm.bias"] = torch.randn(c["index_head_dim"], generator=generator) * 0.2
            linear(a + "indexer.weights_proj.weight", c["index_n_heads"], dim)
        linear(a + "kv_a_proj_with_mqa.weight", c["kv_lora_rank"] + r, dim, 1.5)
        norm(a + "kv_a_layernorm.weight", c["kv_lora_rank"])
        linear(a + "kv_b_proj.weight", heads * (nope + v_dim), c["kv_lora_rank"], 1.5)
        linear(a + "o_proj.weight", dim, heads * v_dim, 1.5 * family.branch_gain)
        norm(p + "post_attention_layernorm.weight", dim)
        if dense:
            mlp(p + "mlp.", c["intermediate_size"])
            return
        linear(p + "mlp.gate.weight", c["n_routed_experts"], dim, 1.8)
        if c["topk_method"] == "noaux_tc":
            # So low that many choices are negative: masking groups with 0.0 in place of -inf would show.
            bias = torch.randn(c["n_routed_experts"], generator=generator) * 0.4 - 0.6
            weights[p + "mlp.gate.e_score_correction_bias"] = bias
        for expert in range(c["n_routed_experts"]):
            mlp(f"{p}mlp.experts.{expert}.", c["moe_intermediate_size"], family.routed_gain)
        mlp(p + "mlp.shared_experts.", c["n_shared_experts"] * c["moe_intermediate_size"])

    embedding_gain = 0.5 if c["tie_word_embeddings"] else 1.0
    weights["model.embed_tokens.weight"] = embedding_gain * torch.randn(c["vocab_size"], dim, generator=generator)
    layers = c["num_hidden_layers"]
    for layer in range(layers):
        block(f"model.layers.{layer}.", layer < c["first_k_dense_replace"], reference.has_indexer(c, layer))
    norm("model.norm.weight", dim)
    if not c["tie_word_embeddings"]:
        linear("lm_head.weight", c["vocab_size"], dim, 3.0)
    for layer in range(layers, layers + c.get("num_nextn_predict_layers", 0)):
        p = f"model.layers.{layer}."  # the multi-token-prediction module: carried, not run
        block(p, False, "index_topk" in c)
        norm(p + "enorm.weight", dim)
        norm(p + "hnorm.weight", dim)
        linear(p + "eh_proj.weight", dim, 2 * dim)
        norm(p + "shared_head.norm.weight", dim)
        weights[p + "embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
        weights[p + "shared_head.head.weight"] = weights["lm_head.weight"].clone()
    if family.dtype != "f32":
        for name, w in weights.items():
            if not name.endswith("e_score_correction_bias"):
                weights[name] = w.bfloat16().float()
    return weights


def is_fp8_linear(name):
    """Which tensors a published V3 checkpoint quantises: every projection of attention, MLPs and experts."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight") and "eh_proj" not in name \
        or name.endswith("kv_a_proj_with_mqa.weight")


def pack_int4(w):
    """[out, in] -> (what compressed-tensors saves of it, the weights that this stands for)."""
    groups = w.unflatten(1, (-1, 32))
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7)
    effective = (codes * scale.float()[..., None]).flatten(1)
    packed = pack_to_int32(codes.flatten(1).to(torch.int8), 4)
    assert torch.equal(unpack_from_int32(packed, 4, w.shape), codes.flatten(1).to(torch.int8))
    return dict(packed=packed, scale=scale, shape=torch.tensor(w.shape)), effective


def stored_tensors(family, weights):
    """What goes into the files, and the weights that the file's content stands for.

    Returns (tensors by name in stored dtypes, effective f32 weights, fp8 {name: (codes, scales)})."""
    stored, effective, fp8 = {}, {}, {}
    for name, w in weights.items():
        if family.dtype == "fp8" and is_fp8_linear(name):
            codes, scales = reference.quantise_weight(w)
            fp8[name] = (codes, scales)
            stored[name], stored[name + "_scale_inv"] = codes, scales
            effective[name] = reference.dequantise_weight(codes, scales)
        elif family.dtype == "int4" and ".mlp.experts." in name:
            parts, effective[name] = pack_int4(w)
            stored.update({f"{name}_{part}": tensor for part, tensor in parts.items()})
        else:
            narrow = family.dtype != "f32" and not name.endswith("e_score_correction_bias")
            stored[name] = w.bfloat16() if narrow else w
            effective[name] = w
    if family.fused:
        stored = fuse_experts(family.config, stored)
    return stored, effective, fp8


def fuse_experts(config, stored):
    fused = {name: w for name, w in stored.items() if ".mlp.experts." not in name}
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        p = f"model.layers.{layer}.mlp.experts."
        each = [[stored[f"{p}{e}.{kind}_proj.weight"] for kind in ("gate", "up", "down")]
                for e in range(config["n_routed_experts"])]
        fused[p + "gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in each])
        fused[p + "down_proj"] = torch.stack([down for _, _, down in each])
    return fused
