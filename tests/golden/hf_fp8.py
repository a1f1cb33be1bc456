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
