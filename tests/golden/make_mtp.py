"""Adds golden values of the multi-token-prediction module to data/models/<family>/, from the checkpoint that lies there.

    python make_mtp.py [family ...]

For families that store a module (model.layers.N.*, N = num_hidden_layers). Run it after make_models.py, which removes
what this writes: golden_mtp_logits.bin and the key "mtp" of golden.json. README.md lists what they hold.

Let t = prompt + continuation, n = len(t), h_i the main model's hidden state after the final norm. Then
    x_i = eh_proj [enorm(embed(t_{i+1})); hnorm(h_i)],  y = decoder layer on x (causal, RoPE position of x_i is i),
    o_i = shared_head.norm(y_i),  logits_i = head(o_i), which predict t_{i+2}.
h ends at n - 2. To draft more tokens with the one module, o_{n-2} and the draft stand in for the next h and t, and so
on. Embedding and head are the main model's, as published files may leave the module's own copies out.
"""

import json
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

import reference
from families import fuse_experts
from make_models import (DATA, MIN_GAP, MIN_INDEX_MARGIN, MIN_MARGIN, REFERENCE_TOLERANCE, Probe, load_hf, to_json,
                         write_checkpoint, write_f32, write_json)

PROMPT, DRAFTS = 1, 3


def load_weights(folder):
    """The checkpoint's tensors under their own names, widened to f32 (fp8 ones dequantised)."""
    stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(path))
    scale = "_scale_inv"
    return {name: reference.dequantise_weight(w, stored[name + scale]) if name + scale in stored else w.float()
            for name, w in stored.items() if not name.endswith(scale)}


def load_main(folder, config, weights):
    if "quantization_config" not in config:
        return load_hf(folder, config)
    with tempfile.TemporaryDirectory() as widened:
        plain = {k: v for k, v in config.items() if k != "quantization_config"}
        write_checkpoint(pathlib.Path(widened), plain, weights, 1)
        return load_hf(widened, plain)


class Module:
    """The module made of Transformers' classes, in f32."""

    def __init__(self, model, config, weights):
        n = config["num_hidden_layers"]
        p = f"model.layers.{n}."
        own = fuse_experts({**config, "first_k_dense_replace": n, "num_hidden_layers": n + 1}, weights)
        own = {name.removeprefix(p): w for name, w in own.items() if name.startswith(p)}
        self.model, self.eh_proj, last = model, own["eh_proj.weight"], model.model.layers[-1]
        self.norms = {}
        for name in ("enorm", "hnorm", "shared_head.norm"):
            self.norms[name] = type(model.model.norm)(config["hidden_size"], config["rms_norm_eps"])
            self.norms[name].load_state_dict({"weight": own[name + ".weight"]})
        self.layer = type(last)(model.config, n - 1).eval()  # the index matters to caches only; layer n - 1 is MoE too
        kept = self.layer.state_dict().keys()
        self.layer.load_state_dict({name: w for name, w in own.items() if name in kept})
        assert self.layer.self_attn.scaling == last.self_attn.scaling
        self.probe = Probe(model, config)  # of which only the margins of this layer's gate and indexer are wanted
        self.layer.mlp.gate.register_forward_hook(lambda m, a, out: self.probe.gate(n, m, out))
        self.probe.watch_indexer(self.layer.self_attn)

    def hidden(self, tokens):
        return self.model.model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0]

    def forward(self, tokens, hidden):
        """tokens t_1.. and the hidden states before them -> (o, logits)."""
        embedded = self.norms["enorm"](self.model.model.embed_tokens(torch.tensor(tokens)))
        x = torch.cat([embedded, self.norms["hnorm"](hidden)], dim=-1) @ self.eh_proj.T
        positions, x = torch.arange(len(tokens))[None], x[None]
        mask = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)[None, None]
        y = self.layer(x, attention_mask=mask, position_ids=positions,
                       position_embeddings=self.model.model.rotary_emb(x, positions))
        out = self.norms["shared_head.norm"](y[0])
        return out, self.model.lm_head(out)


class Reference(reference.Model):
    """The same on top of reference.py, in float64."""

    def hidden(self, tokens):
        head, self.w["lm_head.weight"] = self.w["lm_head.weight"], torch.eye(self.c["hidden_size"]).double()
        hidden = self.forward(tokens)
        self.w["lm_head.weight"] = head
        return hidden

    def draft_forward(self, tokens, hidden):
        p, eps, dim = f"model.layers.{self.c['num_hidden_layers']}.", self.c["rms_norm_eps"], self.c["hidden_size"]

        def norm(name, x):
            return reference.rms_norm(x, self.w[f"{p}{name}.weight"], eps)

        eh_proj, embedded = self.w[p + "eh_proj.weight"], self.w["model.embed_tokens.weight"][torch.tensor(tokens)]
        x = norm("enorm", embedded) @ eh_proj[:, :dim].T + norm("hnorm", hidden) @ eh_proj[:, dim:].T
        cos, sin = reference.rope_tables(self.freqs, len(tokens), self.table_scale)
        x = x + self.attention(p + "self_attn.", norm("input_layernorm", x), cos, sin)
        x = x + self.moe(p + "mlp.", norm("post_attention_layernorm", x))
        out = norm("shared_head.norm", x)
        return out, out @ self.w["lm_head.weight"].T


def draft(forward, tokens, hidden):
    """(DRAFTS tokens, logits of every position): each round reads the last one's token and output."""
    read, drafts = tokens[1:], []
    while True:
        out, logits = forward(read, hidden)
        drafts.append(logits[-1].argmax().item())
        if len(drafts) == DRAFTS:
            return drafts, logits
        read, hidden = [*read, drafts[-1]], torch.cat([hidden, out[-1:]])


@torch.no_grad()
def make(name):
    folder = DATA / name
    print(name)
    config, text = json.loads((folder / "config.json").read_text()), (folder / "golden.json").read_text()
    golden, weights = json.loads(text), load_weights(folder)
    assert to_json(golden) + "\n" == text, "golden.json would change beyond the addition"
    if f"model.layers.{config['num_hidden_layers']}.eh_proj.weight" not in weights:
        sys.exit(f"{name} stores no multi-token-prediction module")
    entry = golden["prompts"][PROMPT]
    tokens, length = entry["prompt"] + entry["continuation"], len(entry["prompt"])

    module = Module(load_main(folder, config, weights), config, weights)
    hidden = module.hidden(tokens[:-1])
    rows = torch.frombuffer(bytearray((folder / golden["logits_file"]).read_bytes()), dtype=torch.float32)
    at = entry["logits_positions"]
    rows = rows.view(-1, golden["vocab_size"])[entry["logits_row"] :][: len(at)]
    main_difference = ((module.model.lm_head(hidden)[at] - rows).abs().max() / rows.abs().max()).item()
    assert main_difference < REFERENCE_TOLERANCE, main_difference
    module.probe.margins, module.probe.index_margins = [], []
    drafts, logits = draft(module.forward, tokens, hidden)
    margin = min(m.min().item() for m in module.probe.margins)
    index_margin = min([m.min().item() for m in module.probe.index_margins], default=float("inf"))
    assert index_margin > MIN_INDEX_MARGIN, index_margin
    top2 = logits[-DRAFTS:].topk(2, dim=-1)
    gaps = (top2.values[:, 0] - top2.values[:, 1]).tolist()
    assert margin > MIN_MARGIN and min(gaps) > MIN_GAP and top2.indices[:, 0].tolist() == drafts, (margin, gaps)

    largest = logits.abs().max().item()
    for form in ("naive", "absorb"):
        ours = Reference(config, weights, form=form)
        expected_drafts, expected = draft(ours.draft_forward, tokens, ours.hidden(tokens[:-1]))
        error = (expected - logits.double()).abs().max().item() / largest
        print(f"  reference {form}: {error:.1e}")
        assert expected_drafts == drafts and error < REFERENCE_TOLERANCE, error

    first_draft = len(tokens) - 2
    positions = [*range(length + 3), *range(length + 11, first_draft - 3, 8), *range(first_draft - 3, len(logits))]
    write_f32(folder / "golden_mtp_logits.bin", logits[positions])
    golden["mtp"] = dict(file="golden_mtp_logits.bin", prompt_index=PROMPT, positions=positions, drafts=drafts,
                         max_abs_logit=largest)
    write_json(folder / "golden.json", golden)
    print(f"  main logits {main_difference:.1e}, smallest gate margin {margin:.1e}, indexer's {index_margin:.1e},"
          f" drafts {drafts}, gaps {gaps}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for family_name in sys.argv[1:] or ["v3", "v32"]:
        make(family_name)
