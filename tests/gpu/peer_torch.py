#!/usr/bin/env python3
"""The MoE and MLA layers of DeepSeek-V3's shape in plain PyTorch, for the ratio to `ferry bench layer` on the same GPU.

usage: peer_torch.py [--json FILE] [--compare FERRY_JSON...] [--experts 256] [--batches 1,32,128] [--contexts 1024,8192]

MLA decode is the absorbed form over a contiguous bf16 latent cache (torch.nn.functional.scaled_dot_product_attention
with one key head of 576 and values of 512), prefill the expanded form (SDPA, 128 heads of 192/128, causal). The MoE layer
is torch's grouped GEMM over rows sorted by expert where this PyTorch has it, else one GEMM per expert. bf16 throughout.
Times are medians over repetitions between device events, after warm-up, the latent caches rotated so that no repetition
finds its keys in the L2 cache. Ferry keeps DeepSeek-V3's weights as published, in fp8: it reads half the bytes.
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

DIM, HEADS, Q_LORA, KV_LORA, NOPE, ROPE, V = 7168, 128, 1536, 512, 128, 64, 128
INTER, TOPK = 2048, 8
DEVICE, DTYPE = "cuda", torch.bfloat16


def weight(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE) * shape[-1] ** -0.5


def median_ms(run, repetitions=20, warmup=5):
    for i in range(warmup):
        run(i)
    times = []
    for i in range(repetitions):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def rms_norm(x, scale):
    return F.rms_norm(x.float(), (x.shape[-1],), scale.float(), 1e-6).to(DTYPE)


class Mla:
    def __init__(self):
        self.wq_a, self.wq_b = weight(Q_LORA, DIM), weight(HEADS * (NOPE + ROPE), Q_LORA)
        self.wkv_a, self.wkv_b = weight(KV_LORA + ROPE, DIM), weight(HEADS * (NOPE + V), KV_LORA)
        self.wo = weight(DIM, HEADS * V)
        self.norm = torch.ones(DIM, device=DEVICE, dtype=DTYPE)
        self.q_norm = torch.ones(Q_LORA, device=DEVICE, dtype=DTYPE)
        self.kv_norm = torch.ones(KV_LORA, device=DEVICE, dtype=DTYPE)
        absorbed = self.wkv_b.view(HEADS, NOPE + V, KV_LORA)
        self.absorbed_k = absorbed[:, :NOPE].contiguous()  # [heads, nope, kv_lora]
        self.absorbed_v = absorbed[:, NOPE:].contiguous()  # [heads, v, kv_lora]
        self.scale = (NOPE + ROPE) ** -0.5

    def rope(self, x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def project(self, h, cos, sin):
        x = rms_norm(h, self.norm)
        q = F.linear(rms_norm(F.linear(x, self.wq_a), self.q_norm), self.wq_b)
        q = q.view(-1, HEADS, NOPE + ROPE)
        q_nope, q_rope = q.split((NOPE, ROPE), -1)
        latent, k_rope = F.linear(x, self.wkv_a).split((KV_LORA, ROPE), -1)
        latent = torch.cat((rms_norm(latent, self.kv_norm), self.rope(k_rope, cos, sin)), -1)
        return q_nope, self.rope(q_rope, cos[:, None], sin[:, None]), latent

    # h [batch, dim], cache [batch, context, 576]: the last position is this token's.
    def decode(self, h, cos, sin, cache):
        q_nope, q_rope, latent = self.project(h, cos, sin)
        cache[:, -1] = latent
        q = torch.cat((torch.einsum("bhn,hnl->bhl", q_nope, self.absorbed_k), q_rope), -1)
        out = F.scaled_dot_product_attention(  # heads of one key share it: they are its queries
            q[:, None], cache[:, None], cache[:, None, :, :KV_LORA], scale=self.scale
        )[:, 0]
        out = torch.einsum("bhl,hvl->bhv", out, self.absorbed_v)
        return h + F.linear(out.reshape(-1, HEADS * V), self.wo)

    # h [tokens, dim] of one sequence.
    def prefill(self, h, cos, sin):
        q_nope, q_rope, latent = self.project(h, cos, sin)
        kv = F.linear(latent[:, :KV_LORA], self.wkv_b).view(-1, HEADS, NOPE + V)
        k = torch.cat((kv[..., :NOPE], latent[:, None, KV_LORA:].expand(-1, HEADS, -1)), -1)
        q, v = torch.cat((q_nope, q_rope), -1), kv[..., NOPE:]
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
            is_causal=True, scale=self.scale)
        return h + F.linear(out[0].transpose(0, 1).reshape(-1, HEADS * V), self.wo)


class Moe:
    def __init__(self, experts):
        self.experts = experts
        self.gate = torch.randn(experts, DIM, device=DEVICE) * DIM ** -0.5
        self.w13 = weight(experts, 2 * INTER, DIM)
        self.w2 = weight(experts, DIM, INTER)
        self.shared13, self.shared2 = weight(2 * INTER, DIM), weight(DIM, INTER)
        self.norm = torch.ones(DIM, device=DEVICE, dtype=DTYPE)

    def grouped(self, rows, weights, counts):
        if hasattr(torch, "_grouped_mm"):
            ends = counts.cumsum(0).to(torch.int32)
            return torch._grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
        out, begin = [], 0
        for expert, count in enumerate(counts.tolist()):
            out.append(rows[begin:begin + count] @ weights[expert].T)
            begin += count
        return torch.cat(out)

    def forward(self, h):
        x = rms_norm(h, self.norm)
        scores = torch.sigmoid(x.float() @ self.gate.T)
        weights, chosen = scores.topk(TOPK, -1)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.experts)
        rows = x[order // TOPK]
        gate, up = self.grouped(rows, self.w13, counts).chunk(2, -1)
        y = self.grouped(F.silu(gate) * up, self.w2, counts)
        y = y * weights.flatten()[order, None].to(DTYPE)
        routed = torch.zeros_like(x).index_add_(0, order // TOPK, y)
        gate, up = F.linear(x, self.shared13).chunk(2, -1)
        return h + routed + F.linear(F.silu(gate) * up, self.shared2)


def angles(positions):
    inverse = 10000.0 ** (-torch.arange(0, ROPE, 2, device=DEVICE).float() / ROPE)
    phase = positions[:, None].float() * inverse
    return phase.cos().to(DTYPE), phase.sin().to(DTYPE)


def measure(arguments):
    torch.manual_seed(1)
    rows, refused = [], []

    # What this PyTorch cannot do, or has no memory for, is said and left out.
    def add(stage, name, run, size_bytes, flops):
        try:
            ms = median_ms(run)
        except RuntimeError as error:
            refused.append(f"{stage} {name}")
            print(f"{stage:<10} {name:<22} refused: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
            return
        rows.append({"stage": stage, "workload": name, "median_us": ms * 1e3,
                     "GBps": size_bytes / ms * 1e-6, "TFLOPps": flops / ms * 1e-9})
        print(f'{stage:<10} {name:<22} {ms * 1e3:>9.1f} us {rows[-1]["GBps"]:>8.0f} GB/s '
              f'{rows[-1]["TFLOPps"]:>7.1f} TFLOP/s')

    source = torch.empty(1 << 30, device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    add("device", "copy 1 GiB", lambda i: target.copy_(source), 2 * source.numel(), 0)
    del source, target
    a, b = weight(8192, 8192), weight(8192, 8192)
    add("device", "bf16 GEMM 8192", lambda i: a @ b, 0, 2 * 8192 ** 3)
    del a, b

    mla = Mla()
    for batch in arguments.batches:
        for context in arguments.contexts:
            size = batch * context * (KV_LORA + ROPE) * 2
            copies = max(1, min(8, (256 << 20) // max(1, size) + 1))
            caches = [torch.randn(batch, context, KV_LORA + ROPE, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
            h = torch.randn(batch, DIM, device=DEVICE, dtype=DTYPE)
            cos, sin = angles(torch.full((batch,), context - 1, device=DEVICE))
            add("attention", f"decode {batch} at {context}", lambda i: mla.decode(h, cos, sin, caches[i % copies]), size,
                2 * batch * context * HEADS * (2 * KV_LORA + ROPE))
    for tokens in arguments.prefill:
        h = torch.randn(tokens, DIM, device=DEVICE, dtype=DTYPE)
        cos, sin = angles(torch.arange(tokens, device=DEVICE))
        add("attention", f"prefill {tokens}", lambda i: mla.prefill(h, cos, sin), 0,
            tokens * tokens * HEADS * (NOPE + ROPE + V))
    del mla
    caches = None
    torch.cuda.empty_cache()

    moe = Moe(arguments.experts)
    for tokens in sorted(set(arguments.batches + arguments.prefill)):
        h = torch.randn(tokens, DIM, device=DEVICE, dtype=DTYPE)
        touched = arguments.experts * (1 - (1 - TOPK / arguments.experts) ** tokens)
        names = [f"prefill {tokens}"]
        if tokens in arguments.batches:
            names = [f"decode {tokens} at {context}" for context in arguments.contexts]
        for name in names:
            add("moe", name, lambda i: moe.forward(h), touched * 3 * DIM * INTER * 2,
                6 * tokens * (TOPK + 1) * DIM * INTER)
    return rows, refused


# Stages of `ferry bench layer --json` (of all layers) per layer and workload, beside the same layers here.
def compare(rows, paths):
    ferry = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for row in json.load(file)["rows"]:
                stage = "moe" if row["stage"] in ("gate", "shared", "experts", "exchange") else row["stage"]
                key = (stage, row["workload"])
                ferry[key] = ferry.get(key, 0) + row["median_us"] / row["layers"]
    ratios = []
    for row in rows:
        other = ferry.get((row["stage"], row["workload"]))
        if not other:
            continue
        ratios.append(row["median_us"] / other)
        print(f'{row["stage"]:<10} {row["workload"]:<22} torch {row["median_us"]:>9.1f} us   ferry {other:>9.1f} us   '
              f"ferry is {ratios[-1]:.2f}x as fast")
    if ratios:
        print(f"FIGURES ferry / torch: {min(ratios):.2f}x to {max(ratios):.2f}x, median "
              f"{statistics.median(ratios):.2f}x, over {len(ratios)} workloads")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--json")
    parser.add_argument("--compare", nargs="+", default=[])
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--batches", type=numbers, default=[1, 32, 128])
    parser.add_argument("--contexts", type=numbers, default=[1024, 8192])
    parser.add_argument("--prefill", type=numbers, default=[512, 2048])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("peer_torch.py: PyTorch sees no GPU")
        return 77
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    with torch.inference_mode():
        rows, refused = measure(arguments)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "rows": rows}, file, indent=1)
    if arguments.compare:
        compare(rows, arguments.compare)
    if refused:
        print(f"PyTorch refused {len(refused)} workloads: {', '.join(refused)}")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
