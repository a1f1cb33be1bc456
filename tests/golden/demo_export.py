"""Writes the trained demo model in Hugging Face form, its weights rounded to bf16, in two safetensors shards."""
import csv
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

import demo_text


def hf_config(c):
    keep = ("vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
            "first_k_dense_replace n_routed_experts n_shared_experts num_experts_per_tok n_group topk_group "
            "routed_scaling_factor q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim "
            "rms_norm_eps rope_theta max_position_embeddings").split()
    config = dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", torch_dtype="bfloat16")
    config.update({k: c[k] for k in keep})
    config.update(
        num_key_value_heads=c["num_attention_heads"], moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc",
        norm_topk_prob=True, hidden_act="silu", attention_bias=False, attention_dropout=0.0, rope_interleave=True,
        tie_word_embeddings=False, num_nextn_predict_layers=0, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        use_cache=True, rope_scaling=dict(
            type="yarn", factor=c["yarn_factor"], original_max_position_embeddings=c["yarn_original"],
            beta_fast=c["beta_fast"], beta_slow=c["beta_slow"], mscale=1.0, mscale_all_dim=1.0))
    return config


def stored(tensors):
    return {k: v.detach().bfloat16().contiguous().clone() for k, v in tensors.items()}


def block_tensors(block, i):
    """A block's tensors as layer i's, all but the gate's bias."""
    at, a, out = f"model.layers.{i}.", block.attn, {}

    def mlp(name, w13, w2):
        out[name + ".gate_proj.weight"], out[name + ".up_proj.weight"] = w13.chunk(2, 0)
        out[name + ".down_proj.weight"] = w2

    out.update({
        at + "input_layernorm.weight": block.norm1, at + "post_attention_layernorm.weight": block.norm2,
        at + "self_attn.q_a_proj.weight": a.wq_a, at + "self_attn.q_a_layernorm.weight": a.q_norm,
        at + "self_attn.q_b_proj.weight": a.wq_b, at + "self_attn.kv_a_proj_with_mqa.weight": a.wkv_a,
        at + "self_attn.kv_a_layernorm.weight": a.kv_norm, at + "self_attn.kv_b_proj.weight": a.wkv_b,
        at + "self_attn.o_proj.weight": a.wo})
    if not hasattr(block.ffn, "gate"):
        mlp(at + "mlp", block.ffn.w13, block.ffn.w2)
        return out
    out[at + "mlp.gate.weight"] = block.ffn.gate
    mlp(at + "mlp.shared_experts", block.ffn.shared.w13, block.ffn.shared.w2)
    for e in range(len(block.ffn.w13)):
        mlp(at + f"mlp.experts.{e}", block.ffn.w13[e], block.ffn.w2[e])
    return out


def bias_tensors(block, i):
    if not hasattr(block.ffn, "gate"):
        return {}
    return {f"model.layers.{i}.mlp.gate.e_score_correction_bias": block.ffn.bias.float().clone()}


@torch.no_grad()
def round_weights(model):
    for p in model.parameters():
        p.copy_(p.bfloat16().float())
    for moe in model.moes():
        # Only differences between biases matter. Non-negative ones choose alike under every form of the group mask.
        moe.bias.copy_((moe.bias - moe.bias.min()).bfloat16().float())


def hf_tensors(model):
    """Rounds the model's own weights in place and returns them under their Hugging Face names."""
    round_weights(model)
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm, "lm_head.weight": model.head}
    for i, block in enumerate(model.blocks):
        out.update(block_tensors(block, i))
    out = stored(out)
    for i, block in enumerate(model.blocks):
        out.update(bias_tensors(block, i))
    return out


def mtp_tensors(module, i):
    """The same of the multi-token-prediction module, as layer i."""
    round_weights(module)
    at = f"model.layers.{i}."
    out = {at + "enorm.weight": module.enorm, at + "hnorm.weight": module.hnorm, at + "eh_proj.weight": module.eh_proj,
           at + "shared_head.norm.weight": module.head_norm}
    return {**stored({**out, **block_tensors(module.block, i)}), **bias_tensors(module.block, i)}


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def write_model(model, c, folder):
    os.makedirs(folder, exist_ok=True)
    tensors = hf_tensors(model)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size > total / 2 and len(shards) == 1:
            shards.append({})
        shards[-1][name] = tensor
        size += tensor.numel() * tensor.element_size()
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, os.path.join(folder, file), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, file), 0o644)
        weight_map.update({name: file for name in shard})
    write_json(folder, "model.safetensors.index.json", dict(metadata=dict(total_size=total), weight_map=weight_map))
    write_json(folder, "config.json", hf_config(c))
    write_json(folder, "generation_config.json", dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=True,
                                                     temperature=0.7, top_p=0.95, max_new_tokens=200))
    write_json(folder, "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=demo_text.BOS, eos_token=demo_text.EOS,
        pad_token=demo_text.PAD, add_bos_token=True, add_eos_token=False, clean_up_tokenization_spaces=False,
        model_max_length=c["max_position_embeddings"], chat_template=demo_text.CHAT_TEMPLATE))


def add_mtp(module, c, model, folder):
    """The Hugging Face folder `model` with the module in one more shard, the others' bytes unchanged -> folder."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(model, "model.safetensors.index.json"), encoding="utf-8") as f:
        index = json.load(f)
    old = sorted(set(index["weight_map"].values()))
    new = {file: f"model-{i + 1:05d}-of-{len(old) + 1:05d}.safetensors" for i, file in enumerate([*old, None])}
    for name in os.listdir(model):
        shutil.copyfile(os.path.join(model, name), os.path.join(folder, new.get(name, name)))
    tensors = mtp_tensors(module, c["num_hidden_layers"])
    save_file(tensors, os.path.join(folder, new[None]), metadata={"format": "pt"})
    os.chmod(os.path.join(folder, new[None]), 0o644)
    index["metadata"]["total_size"] += sum(t.numel() * t.element_size() for t in tensors.values())
    index["weight_map"] = {name: new[file] for name, file in index["weight_map"].items()}
    index["weight_map"].update({name: new[None] for name in tensors})
    write_json(folder, "model.safetensors.index.json", index)
    with open(os.path.join(model, "config.json"), encoding="utf-8") as f:
        write_json(folder, "config.json", {**json.load(f), "num_nextn_predict_layers": 1})


def write_curve(log, final, folder):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(os.path.join(folder, "loss.csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["step", "tokens", "seconds", "train", "val"])
        writer.writeheader()
        writer.writerows(log)
    million = [r["tokens"] / 1e6 for r in log]
    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=90)
    axes.plot(million, [r["train"] for r in log], lw=1, label="training (mean of 25 steps)")
    held = [(m, r["val"]) for m, r in zip(million, log) if r["val"] != ""] + [(million[-1], final)]
    axes.plot([h[0] for h in held], [h[1] for h in held], "o-", ms=3, label=f"held-out chapters (final {final:.3f})")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, "loss.png"))


def read_tensors(folder):
    """All tensors of a sharded Hugging Face folder, widened to f32."""
    with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as f:
        files = sorted(set(json.load(f)["weight_map"].values()))
    return {k: v.float() for file in files for k, v in load_file(os.path.join(folder, file)).items()}


@torch.no_grad()
def read_model(model, c, folder):
    """The inverse of write_model: fills the trainer's own model from the files of a Hugging Face folder."""
    hf = read_tensors(folder)

    def mlp(name):
        w13 = torch.cat([hf[name + ".gate_proj.weight"], hf[name + ".up_proj.weight"]])
        return w13, hf[name + ".down_proj.weight"]

    model.embed.copy_(hf["model.embed_tokens.weight"])
    model.norm.copy_(hf["model.norm.weight"])
    model.head.copy_(hf["lm_head.weight"])
    for i, block in enumerate(model.blocks):
        at, a = f"model.layers.{i}.", block.attn
        for to, name in ((block.norm1, "input_layernorm"), (block.norm2, "post_attention_layernorm"),
                         (a.wq_a, "self_attn.q_a_proj"), (a.q_norm, "self_attn.q_a_layernorm"),
                         (a.wq_b, "self_attn.q_b_proj"), (a.wkv_a, "self_attn.kv_a_proj_with_mqa"),
                         (a.kv_norm, "self_attn.kv_a_layernorm"), (a.wkv_b, "self_attn.kv_b_proj"),
                         (a.wo, "self_attn.o_proj")):
            to.copy_(hf[at + name + ".weight"])
        ffn = block.ffn
        if i < c["first_k_dense_replace"]:
            pairs = [((ffn.w13, ffn.w2), mlp(at + "mlp"))]
        else:
            ffn.gate.copy_(hf[at + "mlp.gate.weight"])
            ffn.bias.copy_(hf[at + "mlp.gate.e_score_correction_bias"])
            pairs = [((ffn.shared.w13, ffn.shared.w2), mlp(at + "mlp.shared_experts"))]
            pairs += [((ffn.w13[e], ffn.w2[e]), mlp(at + f"mlp.experts.{e}")) for e in range(c["n_routed_experts"])]
        for to, values in pairs:
            to[0].copy_(values[0])
            to[1].copy_(values[1])
    return model
