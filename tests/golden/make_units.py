"""Writes data/units/: small inputs and expected outputs of single functions, one safetensors file each.

    python make_units.py

Expected values come from reference.py (float64, rounded once to f32) and, for the number formats, from the definition
of the format; torch's own conversions are checked against them. README.md lists every tensor.
"""

import math
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

import reference
from make_models import write_json

DATA = pathlib.Path(__file__).parent / "data" / "units"


def save(name, tensors, about):
    DATA.mkdir(parents=True, exist_ok=True)
    tensors = {k: (t.float() if t.dtype == torch.float64 else t).contiguous() for k, t in tensors.items()}
    save_file(tensors, DATA / f"{name}.safetensors")
    (DATA / f"{name}.safetensors").chmod(0o644)
    write_json(DATA / f"{name}.json", about)


def make_rope():
    """Frequencies, tables, and rotated vectors, for plain RoPE and YaRN."""
    v3 = dict(factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1)
    cases = {
        "plain_8": dict(r=8, theta=10000.0),
        "plain_64": dict(r=64, theta=10000.0),
        "plain_theta_50000": dict(r=64, theta=50000.0),
        "yarn_v2": dict(r=64, theta=10000.0, yarn=dict(**v3, mscale=0.707, mscale_all_dim=0.707)),
        "yarn_v3": dict(r=64, theta=10000.0, yarn=dict(**v3, mscale=1.0, mscale_all_dim=1.0)),
        "yarn_k2": dict(r=64, theta=50000.0, yarn=dict(
            factor=32, original_max_position_embeddings=4096, beta_fast=1, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0)),
        "yarn_tiny": dict(r=16, theta=10000.0, yarn=dict(
            factor=4, original_max_position_embeddings=32, beta_fast=32, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0)),
        # Original length below 2 pi: both corrections are clamped to 0, so high takes the + 0.001.
        "yarn_low_equals_high": dict(r=16, theta=10000.0, yarn=dict(
            factor=8, original_max_position_embeddings=6, beta_fast=1, beta_slow=1, mscale=1.0,
            mscale_all_dim=1.0)),
        # The only case whose tables are scaled: m(40, 1) / m(40, 0.707) = 1.0857...
        "yarn_unequal_mscale": dict(r=32, theta=10000.0, yarn=dict(**v3, mscale=1.0, mscale_all_dim=0.707)),
    }
    positions = torch.tensor([0, 1, 2, 31, 32, 100, 4095, 4096, 40000, 163839])
    generator, tensors, about = torch.Generator().manual_seed(11), {}, {}
    for name, case in cases.items():
        yarn, r = case.get("yarn"), case["r"]
        freqs = reference.rope_freqs(r, case["theta"], yarn)
        scale = reference.rope_table_scale(yarn)
        m = reference.yarn_mscale(yarn["factor"], yarn["mscale_all_dim"]) if yarn else 1.0
        angle = positions.double()[:, None] * freqs
        cos, sin = angle.cos() * scale, angle.sin() * scale
        x = torch.randn(len(positions), 2, r, generator=generator)
        tensors |= {f"{name}.freqs": freqs, f"{name}.cos": cos, f"{name}.sin": sin, f"{name}.x": x,
                    f"{name}.interleaved": reference.rope(x.double(), cos, sin, True),
                    f"{name}.halves": reference.rope(x.double(), cos, sin, False)}
        about[name] = {**case, "table_scale": scale, "softmax_scale_factor": m * m}
    tensors["positions"] = positions
    save("rope", tensors, about)


def make_rms_norm():
    generator = torch.Generator().manual_seed(12)
    tensors, about = {}, {}
    for name, dim, size in (("plain", 64, 1.0), ("odd_dim", 37, 1.0), ("large", 96, 1e4), ("tiny", 64, 1e-4)):
        x = torch.randn(5, dim, generator=generator) * size
        if name == "tiny":
            x[0] = 0.0  # eps decides: all zero, and rows of about sqrt(eps)
            x[1] = 1e-3
        weight = 0.5 + torch.rand(dim, generator=generator)
        tensors |= {f"{name}.x": x, f"{name}.weight": weight,
                    f"{name}.y": reference.rms_norm(x.double(), weight.double(), 1e-6)}
        about[name] = dict(eps=1e-6)
    save("rms_norm", tensors, about)


GATE_CASES = {
    "softmax_greedy": dict(experts=10, k=3, scoring_func="softmax", topk_method="greedy"),
    "softmax_greedy_norm": dict(experts=64, k=6, scoring_func="softmax", topk_method="greedy", norm=True),
    "softmax_groups": dict(experts=16, k=3, scoring_func="softmax", topk_method="group_limited_greedy",
                           n_group=4, topk_group=2, factor=16.0),
    "sigmoid_bias": dict(experts=48, k=8, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.2, norm=True,
                         factor=2.827),
    "sigmoid_bias_groups": dict(experts=32, k=8, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.2,
                                n_group=8, topk_group=4, norm=True, factor=2.5),
    "sigmoid_bias_groups_no_norm": dict(experts=32, k=8, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.2,
                                        n_group=8, topk_group=4, factor=2.5),
    "sigmoid_no_bias_groups": dict(experts=16, k=4, scoring_func="sigmoid", topk_method="noaux_tc", n_group=4,
                                   topk_group=2, norm=True),
    # Every choice is negative: a mask of 0.0 would take experts of dropped groups.
    "sigmoid_negative_choices": dict(experts=16, k=4, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.2,
                                     shift=-2.0, n_group=4, topk_group=2, norm=True, factor=2.5),
    # All kept experts are taken, and the sum of weights is nearly 0: + 1e-20 keeps it finite.
    "sigmoid_tiny_scores": dict(experts=8, k=4, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.2,
                                logit_shift=-60.0, n_group=4, topk_group=2, norm=True),
    "sigmoid_ties": dict(experts=16, k=4, scoring_func="sigmoid", topk_method="noaux_tc", bias=0.0, n_group=4,
                         topk_group=2, norm=True, ties=True),
    "softmax_ties": dict(experts=12, k=5, scoring_func="softmax", topk_method="greedy", ties=True),
    "all_experts": dict(experts=4, k=4, scoring_func="softmax", topk_method="greedy", norm=True),
}


def make_gate():
    generator, tensors, about = torch.Generator().manual_seed(13), {}, {}
    for name, case in GATE_CASES.items():
        config = dict(num_experts_per_tok=case["k"], scoring_func=case["scoring_func"],
                      topk_method=case["topk_method"], n_group=case.get("n_group", 1),
                      topk_group=case.get("topk_group", 1), norm_topk_prob=case.get("norm", False),
                      routed_scaling_factor=case.get("factor", 1.0))
        tokens, experts = 24, case["experts"]
        bias = None
        if "bias" in case:
            bias = torch.randn(experts, generator=generator) * case["bias"] + case.get("shift", 0.0)
        logits = torch.randn(400, experts, generator=generator) * 1.5 + case.get("logit_shift", 0.0)
        if case.get("ties"):
            logits = logits[:tokens].round().clamp(-1, 1)  # few distinct values: many ties of experts and of groups
            logits[0] = 0.0
        wide_bias = None if bias is None else bias.double()
        indices, weights, choice = reference.gate(logits.double(), wide_bias, config)
        if not case.get("ties"):  # keep rows that no rounding of scores can turn
            clear = reference.gate_margin(choice, bias is not None, config) > 1e-4
            logits, indices, weights = logits[clear][:tokens], indices[clear][:tokens], weights[clear][:tokens]
            assert len(logits) == tokens, name
        tensors |= {f"{name}.logits": logits, f"{name}.experts": indices.int(), f"{name}.weights": weights}
        if bias is not None:
            tensors[f"{name}.bias"] = bias
        about[name] = dict(num_experts=experts, **config)
    save("gate", tensors, about)


def e4m3_value(code):
    """The number that an e4m3fn code stands for, from the definition of the format."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, (code >> 3) & 0xF, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def make_e4m3():
    """Decoding of all codes; encoding of every boundary between two codes and its f32 neighbours."""
    values = np.array([e4m3_value(c) for c in range(256)], dtype=np.float32)
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    assert torch.equal(codes.view(torch.float8_e4m3fn).float().nan_to_num(1e9), torch.tensor(values).nan_to_num(1e9))
    inputs, expected = [], []
    for code in range(0x7E):
        below, above = values[code], values[code + 1]
        middle = np.float32((float(below) + float(above)) / 2)  # exact in f32
        even = code if code % 2 == 0 else code + 1
        inputs += [below, np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(1e9))]
        expected += [code, code, even, code + 1]
    inputs += [448.0, 449.0, 463.0, 1e-30, np.float32(1e-45)]
    expected += [0x7E, 0x7E, 0x7E, 0, 0]
    inputs = np.array(inputs, dtype=np.float32)
    inputs, expected = np.concatenate([inputs, -inputs]), np.array(expected + [c | 0x80 for c in expected], np.uint8)
    ours, theirs = torch.tensor(expected), torch.tensor(inputs).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(ours, theirs)
    save("e4m3", {"decode.value": torch.tensor(values), "encode.x": torch.tensor(inputs), "encode.code": ours},
         dict(decode="code i stands for value[i]; NaN at 0x7F and 0xFF",
              encode="to nearest, ties to the even code; nothing here lies beyond 464, where conventions differ"))


def make_bf16():
    """f32 -> bf16 to nearest even: bit patterns in, bit patterns out."""
    patterns = [0x00000000, 0x80000000, 0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x3F817FFF,
                0x3F818001, 0xBF808000, 0xBF818000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000,
                0xFF800000, 0x00000001, 0x00008000, 0x00008001, 0x00018000, 0x007FFFFF, 0x00800000, 0x3EAAAAAB,
                0x40490FDB, 0x477FE000]
    generator = np.random.default_rng(14)
    random = generator.integers(0, 2**32, 200, dtype=np.uint64).astype(np.uint32)
    bits = np.concatenate([np.array(patterns, np.uint32), random[(random & 0x7F800000) != 0x7F800000]])
    wide = bits.astype(np.uint64)
    rounded = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    x = torch.tensor(bits.view(np.int32)).view(torch.float32)
    assert torch.equal(x.bfloat16().view(torch.int16), torch.tensor(rounded.view(np.int16)))
    save("bf16", {"x": x, "bf16": torch.tensor(rounded.view(np.int16)).view(torch.bfloat16)},
         dict(rule="to nearest even; infinities kept, no NaN here, subnormals kept, overflow goes to infinity"))


def clear_rows(generator, count, k, scale):
    """Rows none of whose elements lies near a rounding boundary, so that x / s and x * (1 / s) give the same codes."""
    rows = []
    while len(rows) < count:
        x = torch.randn(1, k, generator=generator) * torch.exp(torch.randn(1, k, generator=generator)) * scale
        if reference.rounding_clearance(x) > 1e-6:
            rows.append(x)
    return torch.cat(rows)


def make_fp8_linear():
    """Activation quantisation per 1x128, and y = x Wᵀ with fp8 weights, activations quantised or not."""
    generator, tensors, about = torch.Generator().manual_seed(15), {}, {}
    for name, rows, k, out in (("one_block", 3, 128, 128), ("partial", 4, 40, 24), ("edges", 5, 160, 144),
                               ("three_blocks", 2, 300, 56)):
        x = clear_rows(generator, rows, k, 1.0)
        if name == "edges":
            x[0, :128] = 0.0  # a block of zeros: the scale is 1e-4 / 448
            x[1, 128:] *= 1e-6 / x[1, 128:].abs().max()  # far below the smallest scale
            x[2, :128] *= 1e3
        weight = torch.randn(out, k, generator=generator) * torch.exp(torch.randn(out, 1, generator=generator))
        codes, w_scales = reference.quantise_weight(weight)
        wide = reference.dequantise_weight(codes, w_scales)
        tensors |= {f"{name}.x": x, f"{name}.weight": codes, f"{name}.weight_scale_inv": w_scales,
                    f"{name}.y_widened": x.double() @ wide.double().T,
                    f"{name}.y_fp8": reference.fp8_linear(x, codes, w_scales)}
        for suffix, ue8m0 in (("", False), ("_ue8m0", True)):
            values, scales = reference.quantise_activations(x, ue8m0)
            inverse = (1 / scales).repeat_interleave(reference.BLOCK, 1)[:, :k]
            assert torch.equal((x * inverse).to(torch.float8_e4m3fn).float(), values), "x / s and x * (1 / s) differ"
            tensors |= {f"{name}.x_codes{suffix}": values.to(torch.float8_e4m3fn), f"{name}.x_scales{suffix}": scales}
        if name == "edges":
            tensors["edges.weight_f32"] = wide
        about[name] = dict(rows=rows, k=k, out=out)
    save("fp8_linear", tensors, about)


if __name__ == "__main__":
    for make in (make_rope, make_rms_norm, make_gate, make_e4m3, make_bf16, make_fp8_linear):
        make()
    for path in sorted(DATA.glob("*")):
        print(f"{path.name} {path.stat().st_size}")
