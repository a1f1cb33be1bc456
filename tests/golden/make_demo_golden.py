#!/usr/bin/env python3
"""Golden greedy continuations of configs/demo/, computed by Transformers in f32 from the shipped bf16 weights.

  make_demo_golden.py [--model configs/demo] [--out tests/golden/data/demo] [--min-gap G] [--min-margin M]

Writes golden.json and golden_logits.bin (README.md tells their fields). Prompts where the two best logits, or the
last expert chosen and the first one left out, come close anywhere on the way are left out, so that rounding cannot
change a continuation; of the others the most varied are kept. Also holds the trainer's own forward pass and reference.py against Transformers.
"""
import argparse
import json
import os

import torch
import transformers
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

import demo_export
import reference
import train_demo

PROMPTS = [
    "It is a truth universally acknowledged, that", "Emma was", "Elizabeth could not", "Mr. Darcy",
    "The evening was", "\"My dear Miss Woodhouse,\" said he,", "Lady Catherine", "She had never",
    "Anne hoped", "In the morning", "Captain Wentworth", "When the ladies", "Mrs. Bennet", "The letter",
    "Catherine was now", "\"I am sure,\" said Elinor,", "Fanny felt", "It was a very fine day, and",
    "He had been", "They were soon", "Sir Thomas", "The ball was", "Nothing could be more", "Her father",
    "\"You are very kind,\" replied", "Marianne looked", "Miss Bingley", "Mr. Knightley had", "The carriage came",
    "Mr. Collins was",
]
CHATS = ["Tell me about Mr. Darcy.", "Write about the ball.", "What do you think of Emma?", "Who is Lady Catherine?",
         "Tell me about marriage.", "Say something of the weather."]


class Margins:
    """The smallest distance of any gate's decision from going the other way."""

    def __init__(self, model, config):
        self.smallest, self.config = float("inf"), config
        for layer in model.model.layers[config["first_k_dense_replace"]:]:
            layer.mlp.gate.register_forward_hook(self.see)

    def see(self, module, _, out):
        choice = out[0].sigmoid() + module.e_score_correction_bias
        self.smallest = min(self.smallest, reference.gate_margin(choice, True, self.config).min().item())


@torch.no_grad()
def continue_greedily(model, margins, ids, count, eos):
    """With the latent cache. Stops after eos. The fields of one prompt in golden.json, and its logits row."""
    margins.smallest = float("inf")
    out, gap, first, cache, step = [], float("inf"), None, None, torch.tensor([ids])
    while len(out) < count and eos not in out:
        result = model(step, past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[0, -1]
        first = logits if first is None else first
        best = logits.topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        out.append(best.indices[0].item())
        step = torch.tensor([[out[-1]]])
    return dict(prompt=ids, continuation=out, logits_positions=[len(ids) - 1], max_abs_logit=first.abs().max().item(),
                min_gate_margin=margins.smallest, min_top2_gap=gap, distinct_tokens=len(set(out))), first


@torch.no_grad()
def largest_difference(model, other, ids):
    theirs, ours = model(torch.tensor([ids])).logits[0], other(ids)
    return ((theirs - ours).abs().max() / theirs.abs().max()).item()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.path.join(here, "../../configs/demo"))
    parser.add_argument("--out", default=os.path.join(here, "data/demo"))
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--keep", type=int, default=8, help="texts to keep; three chats come on top")
    parser.add_argument("--min-gap", type=float, default=0.01)
    parser.add_argument("--min-margin", type=float, default=1e-5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(args.model)
    model = DeepseekV3ForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    margins = Margins(model, config)
    found = []
    for kind, prompts in (("text", PROMPTS), ("chat", CHATS)):
        for prompt in prompts:
            text = prompt
            if kind == "chat":
                text = tok.apply_chat_template([dict(role="user", content=prompt)], tokenize=False, add_generation_prompt=True)
            ids = tok(text, add_special_tokens=kind == "text").input_ids
            facts, logits = continue_greedily(model, margins, ids, args.tokens, tok.eos_token_id)
            new = facts["continuation"]
            facts.update(kind=kind, given=prompt, text=text, continuation_text=tok.decode(new))
            print("gap %.4f margin %.1e new %d %s %r -> %r" % (
                facts["min_top2_gap"], facts["min_gate_margin"], len(new), kind, prompt, facts["continuation_text"]))
            if facts["min_top2_gap"] >= args.min_gap and facts["min_gate_margin"] >= args.min_margin and len(new) >= 64:
                found.append((facts, logits))
    found.sort(key=lambda f: -f[0]["distinct_tokens"])
    kept = [f for f in found if f[0]["kind"] == "text"][:args.keep] + [f for f in found if f[0]["kind"] == "chat"][:3]
    assert len(kept) >= 6, "too few prompts clear of rounding; add prompts"
    for facts, _ in kept:
        ids, new = facts["prompt"], facts["continuation"]
        whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=len(new),
                               attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        assert whole[0, len(ids):].tolist() == new, "generate() disagrees with step by step greedy"
    own = demo_export.read_model(train_demo.Model(train_demo.CONFIG), train_demo.CONFIG, args.model).eval()
    written_out = reference.Model(config, demo_export.read_tensors(args.model))
    long = [i for f, _ in kept for i in f["prompt"] + f["continuation"]][:900]
    errors = dict(trainer=largest_difference(model, lambda ids: own(torch.tensor([ids]))[0], long),
                  reference=largest_difference(model, written_out.forward, long))
    os.makedirs(args.out, exist_ok=True)
    for row, (facts, _) in enumerate(kept):
        facts["logits_row"] = row
    with open(os.path.join(args.out, "golden.json"), "w", encoding="utf-8") as f:
        json.dump(dict(
            made_by=f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, f32, eager",
            model="configs/demo", vocab_size=config["vocab_size"], logits_file="golden_logits.bin",
            logits_rows=len(kept), largest_difference=errors, prompts=[k[0] for k in kept]), f, ensure_ascii=False, indent=1)
        f.write("\n")
    torch.stack([k[1] for k in kept]).numpy().astype("<f4").tofile(os.path.join(args.out, "golden_logits.bin"))
    print(f"kept {len(kept)} prompts; smallest gap of the two best logits {min(k[0]['min_top2_gap'] for k in kept):.4f}, "
          f"smallest gate margin {min(k[0]['min_gate_margin'] for k in kept):.1e}; difference from "
          f"Transformers over {len(long)} positions, of the largest logit: {errors}")


if __name__ == "__main__":
    main()
