"""Makes a loaded Transformers model quantise activations wherever the checkpoint's weight is fp8."""

import types

import torch

import reference


def fp8_forward(x, quantised):
    """x f32 [..., k] -> f32 [..., out], the exact sum of the quantised products rounded once."""
    rows = x.reshape(-1, x.shape[-1])
    return reference.fp8_linear(rows, *quantised).float().view(*x.shape[:-1], -1)


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """DeepseekV3Experts.forward with each of the three linears on quantised activations."""
    out = torch.zeros_like(hidden_states)
    for expert, (gate, up, down) in enumerate(self.fp8_weights):
        rows, slots = torch.where(top_k_index == expert)
        if len(rows):
            x = hidden_states[rows]
            hidden = self.act_fn(fp8_forward(x, gate)) * fp8_forward(x, up)
            out.index_add_(0, rows, fp8_forward(hidden, down) * top_k_weights[rows, slots, None])
    return out


def use_fp8_activations(model, fp8):
    """fp8: HF tensor name -> (codes, scales). The input of each such linear is quantised per 1x128."""
    for name, module in model.named_modules():
        if name + ".weight" in fp8:
            module.forward = lambda x, quantised=fp8[name + ".weight"]: fp8_forward(x, quantised)
        elif name + ".0.gate_proj.weight" in fp8:
            module.fp8_weights = [[fp8[f"{name}.{e}.{kind}_proj.weight"] for kind in ("gate", "up", "down")]
                                  for e in range(module.num_experts)]
            module.forward = types.MethodType(experts_forward, module)


TOLERANCE = 2e-4  # where no activation lies near a rounding boundary
NOISE = 1e-6  # relative error of a linear's input that another order of f32 sums may bring, generously
ROUNDS = 6


def clear_prompt(config, effective, fp8, length, candidates, seed):
    """The random prompt whose quantised activations, in either form, lie furthest from a rounding boundary."""
    generator = torch.Generator().manual_seed(seed)
    model, best = reference.Model(config, effective, fp8), (0.0, None)
    for prompt in torch.randint(2, config["vocab_size"], (candidates, length), generator=generator).tolist():
        clearance = best[0]
        for model.form in ("naive", "absorb"):
            model.forward(prompt)
            clear = model.clearance > best[0] and min(m.min().item() for m in model.margins) > 1e-3
            if not clear:
                break
            clearance = model.clearance if model.form == "naive" else min(clearance, model.clearance)
        else:
            best = (clearance, prompt)
    return best


def largest_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def relative_rms(a, b):
    return ((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt()).item()


@torch.no_grad()
def fp8_golden(model, config, effective, fp8, entries):
    """Golden logits with quantised activations: (entry of golden.json, logits rows f32 [rows, vocab])."""
    use_fp8_activations(model, fp8)

    def run(tokens):
        return model(torch.tensor([tokens]), use_cache=False).logits[0]

    clear, rows = [], []
    for length, candidates in ((1, 256), (5, 1500)):
        clearance, prompt = clear_prompt(config, effective, fp8, length, candidates, seed=length)
        logits = run(prompt)
        absorb = reference.Model(config, effective, fp8, form="absorb").forward(prompt)
        wobble = max(largest_difference(reference.Model(config, effective, fp8, form, NOISE / 4, n).forward(prompt), y)
                     for form, y in (("naive", logits), ("absorb", absorb)) for n in range(ROUNDS))
        error = largest_difference(reference.Model(config, effective, fp8).forward(prompt), logits)
        print(f"  fp8 length {length}: clearance {clearance:.1e} reference {error:.1e} wobble {wobble:.1e}")
        assert error < 1e-5 and wobble < TOLERANCE / 4
        row = sum(map(len, rows))
        clear.append(dict(prompt=prompt, logits_row=row, absorb_logits_row=row + length,
                          max_abs_logit=logits.abs().max().item(), rounding_clearance=clearance,
                          reference_error=error, tolerance=TOLERANCE))
        rows += [logits, absorb]
    loose = []
    for index in (2, 3):
        entry = entries[index]
        tokens = (entry["prompt"] + entry["continuation"])[:-1]
        logits, at = run(tokens), entry["logits_positions"]
        others = dict(noise=max(relative_rms(
            reference.Model(config, effective, fp8, noise=NOISE, seed=n).forward(tokens)[at], logits[at])
            for n in range(ROUNDS)))
        others["absorb"] = relative_rms(
            reference.Model(config, effective, fp8, form="absorb").forward(tokens)[at], logits[at])
        others["activations_not_quantised"] = relative_rms(
            reference.Model(config, effective).forward(tokens)[at], logits[at])
        loose.append(dict(prompt_index=index, logits_row=sum(map(len, rows)), measured_relative_rms=others,
                          relative_rms_bound=round(2 * max(others["noise"], others["absorb"]), 3)))
        print("  fp8", loose[-1])
        rows.append(logits[at])
    return dict(logits_file="golden_fp8_logits.bin", clear_prompts=clear, long_prompts=loose), torch.cat(rows)
