#!/usr/bin/env python3
"""Trains a multi-token-prediction module for the demo model, whose own weights stay as they are.

  train_demo_mtp.py --work DIR --minutes M --out OUT [--model configs/demo]

Wants `train_demo.py prepare`'s corpus in DIR; tokenizer and main model are those of --model. Writes --model with the
module as one more layer (make_mtp.py has its equations) and config.json's num_nextn_predict_layers 1 -> OUT.

The module learns the main model's own distribution of each token (cross-entropy against its softmax), as a draft is
worth something only where the two agree. In the second half of the time it also learns to draft from its own output.
"""
import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import demo_export
import demo_text
from train_demo import CONFIG, Block, Model, Moe, schedule

WINDOWS = [(128, 0.6), (256, 1.0)]
SECOND_ROUND_AFTER = 0.5


class Mtp(nn.Module):
    def __init__(self, main):
        super().__init__()
        c = main.c
        d = c["hidden_size"]
        self.freq, self.eps = main.freq, c["rms_norm_eps"]
        self.enorm, self.hnorm, self.head_norm = (nn.Parameter(torch.ones(d)) for _ in range(3))
        self.eh_proj = nn.Parameter(torch.cat([torch.eye(d), torch.eye(d)], dim=1) / 2)
        self.block = Block(c, c["num_hidden_layers"])
        self.block.load_state_dict(main.blocks[-1].state_dict())

    def run(self, embedded, hidden, positions, mask=None):
        norm = lambda x, w: F.rms_norm(x, (x.shape[-1],), w, self.eps)
        x = F.linear(torch.cat([norm(embedded, self.enorm), norm(hidden, self.hnorm)], -1), self.eh_proj)
        angle = positions[:, None] * self.freq
        return norm(self.block(x, angle.cos(), angle.sin(), 0.0, mask), self.head_norm)

    def forward(self, embedded, hidden, second=False):
        """Rows of tokens t_1.. t_n and of h_0.. h_{n-1} -> outputs of the first round [b, n, dim], of the second [b, n - 1, dim].

        Row i of the second round reads t_{i+2} and the first round's output i at position i + 1. Like a draft made there
        it sees the first round's rows up to i, and itself."""
        n = embedded.shape[1]
        at = torch.arange(n)
        first = self.run(embedded, hidden, at)
        if not second:
            return first, None
        mask = torch.zeros(2 * n - 1, 2 * n - 1, dtype=torch.bool)
        mask[:n, :n] = at[:, None] >= at
        mask[n:, :n] = mask[:n - 1, :n]
        mask[n:, n:] = torch.eye(n - 1, dtype=torch.bool)
        both = self.run(torch.cat([embedded, embedded[:, 1:]], 1), torch.cat([hidden, first[:, :-1]], 1),
                        torch.cat([at, at[1:]]), mask)
        return first, both[:, n:]

    def moes(self):
        return [m for m in self.modules() if isinstance(m, Moe)]

    update_biases = Model.update_biases


@torch.no_grad()
def main_outputs(main, ids):
    hidden = main.hidden(ids)
    return F.embedding(ids[:, 1:], main.embed), hidden[:, :-1], F.linear(hidden, main.head)


def loss_of(main, module, ids, second):
    embedded, hidden, target = main_outputs(main, ids)
    target = target.softmax(-1)
    rounds = module(embedded, hidden, second)
    return sum(F.cross_entropy(F.linear(out, main.head).flatten(0, 1), target[:, i + 1:].flatten(0, 1))
               for i, out in enumerate(rounds) if out is not None)


@torch.no_grad()
def agreement(main, module, windows, start=0):
    """Shares of positions from `start` on where the first draft is the main model's choice, and where the first two are.

    The second one reads the text's token for its first draft: it counts as right only where the text is greedy."""
    module.eval()
    first, second = [], []
    for ids in windows.split(8):
        embedded, hidden, target = main_outputs(main, ids)
        best = target.argmax(-1)
        one, two = (F.linear(out, main.head).argmax(-1) for out in module(embedded, hidden, True))
        one, two = one == best[:, 1:], two == best[:, 2:]
        first.append(one[:, start:])
        second.append((one[:, :-1] & two)[:, start:])
    module.train()
    return torch.cat(first).float().mean().item(), torch.cat(second).float().mean().item()


@torch.no_grad()
def continue_greedily(main, ids, count):
    for _ in range(count):
        ids = torch.cat([ids, F.linear(main.hidden(ids)[:, -1:], main.head).argmax(-1)], 1)
    return ids


def windows_of(ids, length, most=None):
    n = len(ids) // length * length
    windows = torch.from_numpy(ids[:n].astype(np.int64)).view(-1, length)
    return windows[::max(1, len(windows) // most)][:most] if most else windows


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data = demo_text.Data(args.work, tokenizer=os.path.join(args.model, "tokenizer.json"))
    main = demo_export.read_model(Model(CONFIG), CONFIG, args.model).eval().requires_grad_(False)
    module = Mtp(main)
    adam = torch.optim.AdamW(module.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.02, foreach=True)
    print("parameters", sum(p.numel() for p in module.parameters()), flush=True)
    some = windows_of(data.val_ids, 257, 24)
    seconds, step, tokens, epoch, batches, running, shown_at = 0.0, 0, 0, 0, iter(()), [], -1e9
    while seconds < args.minutes * 60:
        started, progress = time.monotonic(), seconds / (args.minutes * 60)
        length = next(n for n, until in WINDOWS if progress < until)
        ids = next(batches, None)
        if ids is None or ids.shape[1] != length + 1:
            epoch += 1
            batches = data.epoch(epoch, length, args.batch_tokens // length)
            ids = next(batches)
        loss = loss_of(main, module, torch.from_numpy(ids.astype(np.int64)), progress > SECOND_ROUND_AFTER)
        loss.backward()
        adam.param_groups[0]["lr"] = args.lr * schedule(max(progress, 1e-3))
        adam.step()
        module.zero_grad(set_to_none=True)
        module.update_biases(3e-3 * (1 - progress))
        step, tokens = step + 1, tokens + ids[:, 1:].size
        running.append(loss.item())
        seconds += time.monotonic() - started
        if seconds - shown_at > 60:
            print("step %d tokens %d seconds %.0f loss %.4f held-out agreement %.4f" % (
                step, tokens, seconds, np.mean(running), agreement(main, module, some)[0]), flush=True)
            running, shown_at = [], seconds
    demo_export.add_mtp(module, CONFIG, args.model, args.out)
    print(f"steps {step}, tokens {tokens}, seconds {seconds:.0f}; with weights rounded to bf16:")
    print("held-out text, first draft %.4f" % agreement(main, module, windows_of(data.val_ids, 257))[0])
    prompts = windows_of(data.val_ids, 32, 8)
    greedy = continue_greedily(main, prompts, args.greedy_tokens)
    # Draft i is of token i + 2, from the state after i: the first token to be drafted is the second one generated.
    print("greedy continuations, first draft %.4f, first two %.4f" % agreement(main, module, greedy, prompts.shape[1] - 1))


def parse():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default=os.path.join(here, "../../configs/demo"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch-tokens", type=int, default=768)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--greedy-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    train(parse())
