#!/usr/bin/env python3
"""Trains the small DeepSeek-V3-architecture model that configs/demo/ ships.

  train_demo.py prepare --work DIR                 corpus and tokenizer -> DIR
  train_demo.py train   --work DIR --minutes M     training (stop it at any time; it resumes from DIR/demo.ckpt)
  train_demo.py export  --work DIR --out OUT       Hugging Face form, loss picture and loss.csv -> OUT

train_demo_mtp.py adds the multi-token-prediction module.

The corpus is Jane Austen's six novels (public domain), from Debian's r-cran-janeaustenr (needs Rscript).
The forward pass is the mathematics of DeepSeek-V3 in f32; make_demo_golden.py holds it against Transformers.
"""
import argparse
import math
import os
import shutil
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import demo_export
import demo_text

CONFIG = dict(
    vocab_size=4096, hidden_size=192, intermediate_size=384, moe_intermediate_size=48,
    num_hidden_layers=5, num_attention_heads=8, first_k_dense_replace=1,
    n_routed_experts=32, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2,
    routed_scaling_factor=1.5, q_lora_rank=64, kv_lora_rank=64,
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32,
    rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=2048,
    yarn_factor=4.0, yarn_original=512, beta_fast=32, beta_slow=1,
)
# Window length until which share of the time: short ones are cheaper, and teach words and phrases as well.
WINDOWS = [(128, 0.6), (256, 0.75), (512, math.inf)]


def yarn_frequencies(c):
    r, base, length = c["qk_rope_head_dim"], c["rope_theta"], c["yarn_original"]

    def corr(n):
        return r * math.log(length / (n * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(corr(c["beta_fast"])), 0)
    high = min(math.ceil(corr(c["beta_slow"])), r - 1)
    ramp = ((torch.arange(r // 2).float() - low) / (high - low)).clamp(0, 1)
    freq = base ** (-torch.arange(0, r, 2).float() / r)
    return freq / c["yarn_factor"] * ramp + freq * (1 - ramp)


def weight(*shape, std=None):
    return nn.Parameter(torch.randn(*shape) * (std or shape[-1] ** -0.5))


class RoutedExperts(torch.autograd.Function):
    """Sum over the chosen experts, rows sorted by expert so that each expert is one product."""

    @staticmethod
    def forward(ctx, x, weights, chosen, w13, w2):
        n, k = chosen.shape
        order = chosen.flatten().argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        ends = chosen.flatten().bincount(minlength=w13.shape[0]).cumsum(0).tolist()
        xs = x.index_select(0, order // k)
        h = x.new_empty(n * k, w13.shape[1])
        y = x.new_empty(n * k, x.shape[1])
        for e, (a, b) in enumerate(zip([0] + ends, ends)):
            torch.mm(xs[a:b], w13[e].t(), out=h[a:b])
        gate, up = h.chunk(2, dim=1)
        act = F.silu(gate) * up
        for e, (a, b) in enumerate(zip([0] + ends, ends)):
            torch.mm(act[a:b], w2[e].t(), out=y[a:b])
        y = y.index_select(0, inverse).view(n, k, -1)
        ctx.save_for_backward(xs, h, act, y, weights, order, inverse, w13, w2)
        ctx.ends = ends
        return torch.bmm(weights.unsqueeze(1), y).squeeze(1)

    @staticmethod
    def backward(ctx, dout):
        xs, h, act, y, weights, order, inverse, w13, w2 = ctx.saved_tensors
        n, k, d = y.shape
        dweights = torch.bmm(y, dout.unsqueeze(2)).squeeze(2)
        dy = dout.index_select(0, order // k) * weights.flatten().index_select(0, order).unsqueeze(1)
        dact, dh, dxs = torch.empty_like(act), torch.empty_like(h), torch.empty_like(xs)
        dw13, dw2 = torch.empty_like(w13), torch.empty_like(w2)
        spans = list(zip([0] + ctx.ends, ctx.ends))
        for e, (a, b) in enumerate(spans):
            torch.mm(dy[a:b], w2[e], out=dact[a:b])
            torch.mm(dy[a:b].t(), act[a:b], out=dw2[e])
        gate, up = h.chunk(2, dim=1)
        sig = torch.sigmoid(gate)
        dh_gate, dh_up = dh.chunk(2, dim=1)
        torch.mul(dact * up, sig * (1 + gate * (1 - sig)), out=dh_gate)
        torch.mul(dact, gate * sig, out=dh_up)
        for e, (a, b) in enumerate(spans):
            torch.mm(dh[a:b], w13[e], out=dxs[a:b])
            torch.mm(dh[a:b].t(), xs[a:b], out=dw13[e])
        dx = dxs.index_select(0, inverse).view(n, k, d).sum(1)
        return dx, dweights, None, dw13, dw2


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.nope = c["num_attention_heads"], c["qk_nope_head_dim"]
        self.rope, self.v, self.lora = c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        d, h, ql = c["hidden_size"], self.heads, c["q_lora_rank"]
        self.wq_a, self.wq_b = weight(ql, d), weight(h * (self.nope + self.rope), ql)
        self.wkv_a = weight(self.lora + self.rope, d)
        self.wkv_b = weight(h * (self.nope + self.v), self.lora)
        self.wo = weight(d, h * self.v, std=0.5 * (h * self.v) ** -0.5 / c["num_hidden_layers"] ** 0.5)
        self.q_norm, self.kv_norm = nn.Parameter(torch.ones(ql)), nn.Parameter(torch.ones(self.lora))
        m = 0.1 * math.log(c["yarn_factor"]) + 1
        self.scale = (self.nope + self.rope) ** -0.5 * m * m
        self.eps = c["rms_norm_eps"]

    def rotate(self, x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)

    def forward(self, x, cos, sin, mask=None):
        b, t, _ = x.shape
        q = F.linear(F.rms_norm(F.linear(x, self.wq_a), (self.wq_a.shape[0],), self.q_norm, self.eps), self.wq_b)
        q_nope, q_pe = q.view(b, t, self.heads, -1).transpose(1, 2).split([self.nope, self.rope], -1)
        latent, k_pe = F.linear(x, self.wkv_a).split([self.lora, self.rope], -1)
        kv = F.linear(F.rms_norm(latent, (self.lora,), self.kv_norm, self.eps), self.wkv_b)
        k_nope, v = kv.view(b, t, self.heads, -1).transpose(1, 2).split([self.nope, self.v], -1)
        k_pe = self.rotate(k_pe.unsqueeze(1), cos, sin).expand(-1, self.heads, -1, -1)
        q = torch.cat([q_nope, self.rotate(q_pe, cos, sin)], -1)
        k = torch.cat([k_nope, k_pe], -1)
        o = F.scaled_dot_product_attention(q, k, v.contiguous(), attn_mask=mask, is_causal=mask is None,
                                           scale=self.scale)
        return F.linear(o.transpose(1, 2).reshape(b, t, -1), self.wo)


class Mlp(nn.Module):
    def __init__(self, dim, inter, depth):
        super().__init__()
        self.w13 = weight(2 * inter, dim)
        self.w2 = weight(dim, inter, std=inter ** -0.5 / depth ** 0.5)

    def forward(self, x):
        gate, up = F.linear(x, self.w13).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.w2)


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, i, e = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        self.gate = weight(e, d)
        self.register_buffer("bias", torch.zeros(e))
        self.register_buffer("load", torch.zeros(e))
        self.w13, self.w2 = weight(e, 2 * i, d), weight(e, d, i, std=i ** -0.5 / c["num_hidden_layers"] ** 0.5)
        self.shared = Mlp(d, i * c["n_shared_experts"], c["num_hidden_layers"])

    def choose(self, scores):
        c = self.c
        choice = (scores + self.bias).view(scores.shape[0], c["n_group"], -1)
        groups = choice.topk(2, dim=-1)[0].sum(-1).topk(c["topk_group"], dim=-1)[1]
        mask = torch.ones(choice.shape[:2], dtype=torch.bool).scatter_(1, groups, False)
        choice = choice.masked_fill(mask.unsqueeze(-1), -math.inf).flatten(1)
        return choice.topk(c["num_experts_per_tok"], dim=-1)[1]

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(F.linear(flat, self.gate))
        with torch.no_grad():
            chosen = self.choose(scores)
            if self.training:
                self.load += chosen.flatten().bincount(minlength=self.bias.numel())
        w = scores.gather(1, chosen)
        w = w / (w.sum(-1, keepdim=True) + 1e-20) * self.c["routed_scaling_factor"]
        return RoutedExperts.apply(flat, w, chosen, self.w13, self.w2).view_as(x) + self.shared(x)


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        d = c["hidden_size"]
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.attn = Attention(c)
        dense = layer < c["first_k_dense_replace"]
        self.ffn = Mlp(d, c["intermediate_size"], c["num_hidden_layers"]) if dense else Moe(c)
        self.eps = c["rms_norm_eps"]

    def forward(self, x, cos, sin, dropout, mask=None):
        norm = lambda x, w: F.rms_norm(x, (x.shape[-1],), w, self.eps)
        x = x + F.dropout(self.attn(norm(x, self.norm1), cos, sin, mask), dropout, self.training)
        return x + F.dropout(self.ffn(norm(x, self.norm2)), dropout, self.training)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.dropout = c, 0.0
        self.embed = weight(c["vocab_size"], c["hidden_size"], std=0.3)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.head = weight(c["vocab_size"], c["hidden_size"], std=0.5 * c["hidden_size"] ** -0.5)
        self.register_buffer("freq", yarn_frequencies(c), persistent=False)

    def hidden(self, ids):
        angle = torch.arange(ids.shape[1])[:, None] * self.freq
        cos, sin = angle.cos(), angle.sin()
        x = F.dropout(F.embedding(ids, self.embed), self.dropout, self.training)
        for block in self.blocks:
            x = block(x, cos, sin, self.dropout)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.c["rms_norm_eps"])

    def forward(self, ids):
        return F.linear(self.hidden(ids), self.head)

    def moes(self):
        return [b.ffn for b in self.blocks if isinstance(b.ffn, Moe)]

    @torch.no_grad()
    def update_biases(self, rate):
        """Balances experts without an auxiliary loss: raises the bias of those below the mean load."""
        for moe in self.moes():
            moe.bias += rate * torch.sign(moe.load.mean() - moe.load)
            moe.load.zero_()


class Muon:
    """Momentum orthogonalised by Newton-Schulz iteration; matrices of one shape go through together."""

    def __init__(self, params, momentum=0.95):
        self.params, self.momentum = params, momentum
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, lr, decay):
        for p, buf in zip(self.params, self.buffers):
            buf.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(buf, self.momentum)
            if p.dim() == 2:
                g = g.unsqueeze(0)
            elif g.shape[1] == 2 * CONFIG["moe_intermediate_size"]:
                g = g.view(-1, g.shape[1] // 2, g.shape[2])  # gate and up are matrices of their own
            wide = g.shape[-1] >= g.shape[-2]
            u = g if wide else g.transpose(1, 2)
            u = u / (u.flatten(1).norm(dim=1)[:, None, None] + 1e-12)
            for _ in range(5):
                s = u @ u.transpose(1, 2)
                u = 3.4445 * u + (-4.7750 * s + 2.0315 * s @ s) @ u
            u = u if wide else u.transpose(1, 2)
            p.mul_(1 - lr * decay)
            p.add_(u.reshape(p.shape), alpha=-lr * max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5)


def optimizers(model):
    adam, muon = [], []
    for name, p in model.named_parameters():
        is_matrix = p.dim() >= 2 and name not in ("embed", "head") and not name.endswith("gate")
        (muon if is_matrix else adam).append(p)
    tables = [p for p in adam if p.dim() == 2]
    vectors = [p for p in adam if p.dim() == 1]
    groups = [dict(params=tables, weight_decay=0.02, base=4e-3), dict(params=vectors, weight_decay=0.0, base=4e-3)]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-9, foreach=True), Muon(muon)


@torch.no_grad()
def val_loss(model, ids, length=256):
    """Mean negative log-likelihood (nats per token) over the held-out chapters, in windows of the given length."""
    model.eval()
    n = (len(ids) - 1) // length * length
    x = torch.from_numpy(ids[:n].astype(np.int64)).view(-1, length)
    y = torch.from_numpy(ids[1:n + 1].astype(np.int64)).view(-1, length)
    total = 0.0
    for i in range(0, len(x), 8):
        total += F.cross_entropy(model(x[i:i + 8]).flatten(0, 1), y[i:i + 8].flatten(), reduction="sum").item()
    model.train()
    return total / n


@torch.no_grad()
def sample(model, tok, prompt, count=60, temperature=0.7):
    model.eval()
    ids = tok.encode(prompt).ids
    for _ in range(count):
        logits = model(torch.tensor([ids[-512:]]))[0, -1] / temperature
        ids.append(int(torch.multinomial(F.softmax(logits, -1), 1)))
    model.train()
    return tok.decode(ids, skip_special_tokens=False).replace("\n", "\\n")


def schedule(progress):
    """Warm-up over the first 2 %, then cosine to zero."""
    return min(progress / 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Threads:
    """Keeps the number of threads under which a step is quickest: on a shared machine, two that wait for each other
    can be slower than one. Tries every number for two steps in forty."""

    def __init__(self, most):
        self.most, self.best, self.at, self.times = most, most, 0, {}

    def before(self):
        turn, self.at = self.at % 40, self.at + 1
        self.trying = turn // 2 + 1 if turn < 2 * self.most else None
        torch.set_num_threads(self.trying or self.best)

    def after(self, seconds):
        if self.trying:
            self.times[self.trying] = min(seconds, self.times.get(self.trying, math.inf)) if self.at % 2 == 0 else seconds
            self.best = min(self.times, key=self.times.get)


def train(args):
    torch.manual_seed(args.seed)
    threads = Threads(args.threads)
    data = demo_text.Data(args.work)
    model = Model(CONFIG)
    adam, muon = optimizers(model)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(step=0, tokens=0, seconds=0.0, epoch=0, log=[])
    path = os.path.join(args.work, "demo.ckpt")
    if os.path.exists(path):
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        muon.buffers, average, state = saved["muon"], saved["average"], saved["state"]
        print("resumed at step", state["step"], flush=True)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    val = data.val_ids

    def save():
        torch.save(dict(model=model.state_dict(), adam=adam.state_dict(), muon=muon.buffers,
                        average=average, state=state, config=CONFIG), path + ".new")
        os.replace(path + ".new", path)

    budget = args.minutes * 60
    batches, running, saved_at, shown_at = iter(()), [], state["seconds"], state["seconds"]
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    while state["seconds"] < budget and not stop:
        started = time.monotonic()
        threads.before()
        progress = state["seconds"] / budget
        length = next(n for n, until in WINDOWS if progress < until)
        ids = next(batches, None)
        if ids is None or ids.shape[1] != length + 1:
            state["epoch"] += 1
            batches = data.epoch(state["epoch"], length, args.batch_tokens // length)
            ids = next(batches)
        model.dropout = args.dropout
        ids = torch.from_numpy(ids.astype(np.int64))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        lr = schedule(max(progress, 1e-3))
        for g in adam.param_groups:
            g["lr"] = g["base"] * lr
        adam.step()
        muon.step(args.muon_lr * lr, 0.1)
        model.zero_grad(set_to_none=True)
        model.update_biases(3e-3 * min(1.0, 4 * (1 - progress)))
        keep = min(0.99, 1 - 1 / (state["step"] + 1))
        for k, v in model.state_dict().items():
            average[k].lerp_(v, 1 - keep)
        state["step"] += 1
        state["tokens"] += ids[:, 1:].numel()
        threads.after(time.monotonic() - started)
        state["seconds"] += time.monotonic() - started
        running.append(loss.item())
        if state["step"] % 25 == 0:
            now = dict(step=state["step"], tokens=state["tokens"], seconds=round(state["seconds"]),
                       train=round(float(np.mean(running)), 4), val="")
            if state["step"] % 250 == 0:
                now["val"] = round(val_loss(model, val), 4)
            running = []
            state["log"].append(now)
            print(now, "epoch", state["epoch"], "lr %.3f" % lr, "threads", threads.best, flush=True)
        if state["seconds"] - saved_at > 180:
            save()
            saved_at = state["seconds"]
        if state["seconds"] - shown_at > 600:
            print(sample(model, data.tokenizer, "The evening was"), flush=True)
            shown_at = state["seconds"]
    save()
    print("stopped at" if stop else "finished at", state["step"], flush=True)


def export(args):
    torch.set_num_threads(args.threads)
    data = demo_text.Data(args.work)
    saved = torch.load(os.path.join(args.work, "demo.ckpt"), weights_only=False)
    model = Model(saved["config"])
    model.load_state_dict(saved["average" if args.average else "model"])
    demo_export.write_model(model, saved["config"], args.out)
    shutil.copy(os.path.join(args.work, "tokenizer.json"), os.path.join(args.out, "tokenizer.json"))
    loss, long_loss = val_loss(model, data.val_ids), val_loss(model, data.val_ids, 512)
    bits = loss / math.log(2) * len(data.val_ids) / data.val_bytes
    log, state = saved["state"]["log"], saved["state"]
    demo_export.write_curve(log, loss, args.out)
    print(f"val {loss:.4f} nats/token, {bits:.4f} bits/byte (weights rounded to bf16); "
          f"in windows of 512 {long_loss:.4f}; train "
          f"{log[-1]['train']}, tokens {state['tokens']}, steps {state['step']}, seconds {state['seconds']:.0f}, "
          f"parameters {sum(p.numel() for p in model.parameters())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "train", "export"):
        p = sub.add_parser(name)
        p.add_argument("--work", required=True)
        p.add_argument("--threads", type=int, default=2)
        if name == "train":
            p.add_argument("--minutes", type=float, default=80)
            p.add_argument("--batch-tokens", type=int, default=4096)
            p.add_argument("--dropout", type=float, default=0.0)
            p.add_argument("--muon-lr", type=float, default=0.02)
            p.add_argument("--seed", type=int, default=1)
        if name == "export":
            p.add_argument("--out", required=True)
            p.add_argument("--average", action="store_true", help="the running average of the weights")
    args = parser.parse_args()
    {"prepare": lambda a: demo_text.prepare(a.work, CONFIG["vocab_size"]), "train": train, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
