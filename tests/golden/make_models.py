"""Writes data/models/<family>/: a tiny random checkpoint in Hugging Face form with golden results beside it.

    python make_models.py [family ...]

Golden logits and greedy continuations come from Transformers (float32, eager attention, CPU). Every one of them is
checked against reference.py, which writes the same mathematics out independently. README.md lists what is written.
"""

import json
import os
import pathlib
import struct
import sys
import tempfile

import torch
import transformers
from safetensors.torch import save_file
from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM,
                          DeepseekV32Config, DeepseekV32ForCausalLM, Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM,
                          GlmMoeDsaConfig, GlmMoeDsaForCausalLM)

import reference
from families import FAMILIES, draw_weights, stored_tensors
from hf_fp8 import fp8_golden

DATA = pathlib.Path(__file__).parent / "data" / "models"
STEPS = 64
MIN_MARGIN, MIN_GAP = 1e-4, 1e-3
MIN_INDEX_MARGIN = 2e-5  # of the largest |score| of the query's row
REFERENCE_TOLERANCE = 1e-5  # of the largest logit


def to_json(value, indent=""):
    """JSON with lists of numbers on one line."""
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{inner}{json.dumps(k)}: {to_json(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return "[\n" + ",\n".join(inner + to_json(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value)


def write_json(path, value):
    path.write_text(to_json(value) + "\n")


def save_tensors(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_checkpoint(folder, config, tensors, shards):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    write_json(folder / "config.json", config)
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    if shards == 1:
        save_tensors(tensors, folder / "model.safetensors")
        return
    total, at, parts, weight_map = sum(t.nbytes for t in tensors.values()), 0, [{} for _ in range(shards)], {}
    for name, t in tensors.items():
        part = min(at * shards // total, shards - 1)
        at += t.nbytes
        parts[part][name] = t
        weight_map[name] = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
    for part, content in enumerate(parts):
        save_tensors(content, folder / f"model-{part + 1:05d}-of-{shards:05d}.safetensors")
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": weight_map})


def load_hf(folder, config):
    """The model as Transformers loads it from `folder`, every weight widened to f32."""
    kinds = {"deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
             "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
             # Kimi K2 ships its own copy of the V3 code under this name.
             "kimi_k2": (DeepseekV3Config, DeepseekV3ForCausalLM),
             "glm4_moe_lite": (Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM),
             "deepseek_v32": (DeepseekV32Config, DeepseekV32ForCausalLM),
             "glm_moe_dsa": (GlmMoeDsaConfig, GlmMoeDsaForCausalLM)}
    config_class, model_class = kinds[config["model_type"]]
    settings = {k: v for k, v in config.items() if k not in ("model_type", "torch_dtype", "dtype")}
    hf_config = config_class(**json.loads(json.dumps(settings)))
    model, info = model_class.from_pretrained(
        folder, config=hf_config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    mtp = f"model.layers.{config['num_hidden_layers']}."
    assert all(key.startswith(mtp) for key in info["unexpected_keys"]), info["unexpected_keys"]
    check_hf_deviations(model, config)
    return model.eval()


def check_hf_deviations(model, config):
    """Places where releases of Transformers differed from DeepSeek's definition; 5.23.0, pinned, is right in all.

    - softmax scale: earlier native V2 classes left out m(factor, mscale_all_dim)² (patched here if it comes back);
    - V3 groups that are not kept: earlier releases masked with 0.0, DeepSeek's code with -inf (the biases of these
      models make some choices negative, so reference.py would disagree);
    - V2 with norm_topk_prob or a sigmoid gate: the native V2 class ignores both, so no family here asks for them.
    """
    ours = reference.Model(config, {})
    for n, layer in enumerate(model.model.layers):
        if abs(layer.self_attn.scaling - ours.scale) > 1e-6 * ours.scale:
            print("  patching the softmax scale of Transformers", transformers.__version__)
            layer.self_attn.scaling = ours.scale
        indexer = getattr(layer.self_attn, "indexer", None)
        assert (indexer is not None) == reference.has_indexer(config, n)
        assert indexer is None or indexer.k_norm.eps == 1e-6
    if config["model_type"] == "deepseek_v2":
        assert not config["norm_topk_prob"] and config["scoring_func"] == "softmax"


class Probe:
    """Collects every gate's and indexer's margins, and per layer outputs when asked, during a forward pass."""

    def __init__(self, model, config):
        self.config, self.margins, self.index_margins, self.hidden, self.routing = config, [], [], None, {}
        for n, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_hook(lambda m, a, out, n=n: self.keep(f"layer{n}.attention", out[0]))
            layer.mlp.register_forward_hook(lambda m, a, out, n=n: self.keep(f"layer{n}.ffn", out))
            layer.register_forward_hook(
                lambda m, a, out, n=n: self.keep(f"layer{n}.out", out[0] if isinstance(out, tuple) else out))
            self.watch_indexer(layer.self_attn)
            if n >= config["first_k_dense_replace"]:
                layer.mlp.gate.register_forward_hook(lambda m, a, out, n=n: self.gate(n, m, out))
        model.model.embed_tokens.register_forward_hook(lambda m, a, out: self.keep("embed", out))
        model.model.norm.register_forward_hook(lambda m, a, out: self.keep("norm", out))

    def keep(self, name, value):
        if self.hidden is not None:
            self.hidden[name] = value[0].clone()

    def gate(self, n, module, out):
        logits, weights, indices = out
        bias = getattr(module, "e_score_correction_bias", None)
        chosen, expected, choice = reference.gate(logits.double(), bias, self.config)
        # The same experts and weights; Transformers leaves their order open, ours is by falling choice.
        order = [torch.argsort(t, dim=-1) for t in (indices, chosen)]
        assert torch.equal(indices.gather(-1, order[0]), chosen.gather(-1, order[1])), "gate disagrees"
        difference = weights.gather(-1, order[0]) - expected.gather(-1, order[1])
        assert difference.abs().max() < 1e-5 * expected.max(), "gate weights disagree"
        self.margins.append(reference.gate_margin(choice, bias is not None, self.config))
        self.routing[n] = (chosen, expected)

    def watch_indexer(self, attention):
        if getattr(attention, "indexer", None) is None:
            return
        ours = reference.Model(self.config, attention.indexer.state_dict())

        def hook(module, args, kwargs, out):
            if kwargs["past_key_values"] is None:  # with the cache the same choices are made
                self.index_margins.append(torch.stack([self.indexer(ours, *rows) for rows in zip(*args[:2], out)]))

        attention.indexer.register_forward_hook(hook, with_kwargs=True)

    def indexer(self, ours, x, q_resid, indices):
        """x, q_resid, indices of one sequence [tokens, ...] -> margin per token."""
        tables = reference.rope_tables(ours.freqs, len(x), ours.table_scale)
        scores = ours.index_scores("", x.double(), q_resid.double(), *tables)
        margin = reference.index_margin(scores, self.config["index_topk"])
        keys = [torch.zeros_like(scores, dtype=torch.bool).scatter(-1, i.long(), True) & ~scores.isneginf()
                for i in (indices, reference.choose(scores, self.config["index_topk"]))]
        assert ((keys[0] == keys[1]).all(-1) | ~(margin > MIN_INDEX_MARGIN)).all(), "indexer disagrees"
        return margin


@torch.no_grad()
def continue_greedily(model, prompts, steps):
    """prompts [batch, n] -> [batch, n + steps], with the latent cache."""
    tokens, past, step_in = prompts, None, prompts
    for _ in range(steps):
        out = model(step_in, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, step_in = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, step_in], dim=1)
    return tokens


@torch.no_grad()
def pick_prompt(model, probe, config, length, seed, candidates=96, min_margin=MIN_MARGIN, min_gap=MIN_GAP):
    """Of random prompts, the one with the liveliest continuation whose every decision is clear of rounding."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(2, config["vocab_size"], (candidates, length), generator=generator)
    tokens = continue_greedily(model, prompts, STEPS)
    probe.margins, probe.index_margins = [], []
    logits = model(tokens, use_cache=False).logits  # teacher-forced: must choose the same tokens again
    margin = torch.stack(probe.margins).view(len(probe.margins), candidates, -1).amin((0, 2))
    top2 = logits[:, length - 1 : -1].topk(2, dim=-1).values
    gap = (top2[..., 0] - top2[..., 1]).amin(-1)
    same = (logits[:, length - 1 : -1].argmax(-1) == tokens[:, length:]).all(-1)
    distinct = torch.tensor([len(set(row[length:].tolist())) for row in tokens])
    ends = (tokens[:, length:] == config["eos_token_id"]).any(-1)
    fit = (margin > min_margin) & (gap > min_gap) & same & ~ends
    if probe.index_margins:
        index_margin = torch.stack(probe.index_margins).amin((0, 2))
        fit &= index_margin > MIN_INDEX_MARGIN
    assert fit.any(), f"no prompt of length {length} is clear of rounding: best margin {margin.max()}"
    best = torch.where(fit, distinct, -1).argmax()
    facts = dict(min_gate_margin=margin[best].item(), min_top2_gap=gap[best].item(),
                 distinct_tokens=distinct[best].item())
    if probe.index_margins:
        facts["min_index_margin"] = index_margin[best].item()
    return tokens[best].tolist(), facts


def kept_positions(length):
    """Positions whose logits are stored: all of a short prompt, and of one every step; of others a few."""
    last = length + STEPS - 2  # the logits that choose the last token
    if length == 5:
        return list(range(last + 1))
    if length == 1:
        return sorted({0, 1, 15, 31, 47, last})
    prompt = range(length) if length < 32 else [*range(0, length, 8), *range(length - 8, length)]
    return sorted({*prompt, length + 15, length + 31, length + 47, last})


def reference_error(config, effective, fp8, tokens, logits, **settings):
    """Largest difference to the independent reference over the largest logit."""
    ours = reference.Model(config, effective, fp8, **settings).forward(tokens)
    return ((ours - logits.double()).abs().max() / logits.abs().max()).item()


@torch.no_grad()
def golden_set(model, family, probe, effective, fp8, **limits):
    """Runs all prompts: (golden.json entries, stored logits rows, worst disagreement with the reference)."""
    entries, rows, worst = [], [], {"naive": 0.0, "absorb": 0.0}
    for n, length in enumerate(family.prompts):
        tokens, facts = pick_prompt(model, probe, family.config, length, seed=100 * family.seed + n, **limits)
        logits = model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0]
        for form in worst:
            error = reference_error(family.config, effective, fp8, tokens[:-1], logits, form=form)
            worst[form] = max(worst[form], error)
        positions = kept_positions(length)
        entries.append(dict(prompt=tokens[:length], continuation=tokens[length:], logits_row=sum(map(len, rows)),
                            logits_positions=positions, max_abs_logit=logits.abs().max().item(),
                            logits_std=logits.std().item(), **facts))
        rows.append(logits[positions])
        print(f"  length {length}: margin {facts['min_gate_margin']:.1e} gap {facts['min_top2_gap']:.1e}"
              f" distinct {facts['distinct_tokens']} std {entries[-1]['logits_std']:.2f}"
              f" naive {worst['naive']:.1e} absorb {worst['absorb']:.1e}")
    return entries, torch.cat(rows), worst


def write_f32(path, tensor):
    values = tensor.float().flatten().tolist()
    path.write_bytes(struct.pack(f"<{len(values)}f", *values))


@torch.no_grad()
def inner_values(model, probe, tokens, folder):
    """Outputs of every layer and every gate for one prompt, to find where a disagreement begins."""
    probe.hidden, probe.routing = {}, {}
    model(torch.tensor([tokens]), use_cache=False)
    names = list(probe.hidden)  # in the order in which the model computes them
    write_f32(folder / "golden_hidden.bin", torch.stack([probe.hidden[n] for n in names]))
    routing = {f"layer{n}": dict(experts=chosen.tolist(), weights=[[float(f"{w:.8g}") for w in r] for r in weights])
               for n, (chosen, weights) in probe.routing.items()}
    probe.hidden = None
    return dict(prompt_index=1, names=names, routing=routing)


def newer_config(config):
    """config.json as Transformers 5 saves it: rope_parameters and dtype in place of rope_scaling and torch_dtype."""
    config = dict(config)
    rope = dict(config.pop("rope_scaling") or {"type": "default"})
    rope["rope_type"], rope["rope_theta"] = rope.pop("type"), config.pop("rope_theta")
    return {**config, "rope_parameters": rope, "dtype": config.pop("torch_dtype"),
            "transformers_version": transformers.__version__}


def make(name):
    family, folder = FAMILIES[name], DATA / name
    print(name)
    if family.newer:
        family.config = newer_config(family.config)
    stored, effective, fp8 = stored_tensors(family, draw_weights(family))
    write_checkpoint(folder, family.config, stored, family.shards)
    if "quantization_config" in family.config:
        with tempfile.TemporaryDirectory() as widened:
            plain = {k: v for k, v in family.config.items() if k != "quantization_config"}
            write_checkpoint(pathlib.Path(widened), plain, effective, 1)
            model = load_hf(widened, plain)
    else:
        model = load_hf(folder, family.config)
    probe = Probe(model, family.config)
    entries, logits, worst = golden_set(model, family, probe, effective, None)
    assert max(worst.values()) < REFERENCE_TOLERANCE, worst
    write_f32(folder / "golden_logits.bin", logits)
    golden = dict(
        made_by=f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, f32, eager",
        vocab_size=family.config["vocab_size"], logits_file="golden_logits.bin", logits_rows=logits.shape[0],
        reference_error=worst, prompts=entries,
        hidden=dict(file="golden_hidden.bin", **inner_values(model, probe, entries[1]["prompt"], folder)))
    if fp8:
        golden["fp8_activations"], logits = fp8_golden(model, family.config, effective, fp8, entries)
        write_f32(folder / "golden_fp8_logits.bin", logits)
    write_json(folder / "golden.json", golden)
    size = sum(f.stat().st_size for f in folder.glob("*"))
    print(f"  {size / 1024:.0f} KiB, reference error {worst}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for family_name in sys.argv[1:] or FAMILIES:
        make(family_name)
