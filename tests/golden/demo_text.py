"""The demo model's text: corpus, tokenizer, and the batches drawn from them."""
import glob
import json
import os
import re
import subprocess

import numpy as np

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL = [BOS, EOS, PAD, USER, ASSISTANT]
HELD_OUT_EVERY, HELD_OUT_AT = 20, 10

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)

# DeepSeek-V3's splits: numbers by three digits, CJK runs, then words with one leading character, punctuation, spaces.
NUMBERS = r"\p{N}{1,3}"
CJK = "[一-龥぀-ゟ゠-ヿ]+"
WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

ASKING = ["Tell me about {}.", "Write about {}.", "What do you think of {}?", "Say something of {}.", "Who is {}?"]
TITLED = re.compile(r"\b(?:Mr|Mrs|Miss|Lady|Sir|Captain|Colonel|Admiral)\.? [A-Z][a-z]{3,}")
NAMES = re.compile(
    r"\b(?:Emma|Elizabeth|Jane|Anne|Catherine|Fanny|Elinor|Marianne|Harriet|Edmund|Lydia|Isabella|Louisa|Darcy|Bingley"
    r"|Wickham|Willoughby|Knightley|Wentworth|Frank Churchill|Henry|Mary|Lucy|Charlotte|Eleanor|Bath|London|Highbury"
    r"|Netherfield|Pemberley|Longbourn|Lyme)\b"
)
SUBJECTS = re.compile(
    r"\b(?:marriage|love|money|happiness|friendship|dancing|music|the ball|the letter|the weather|the carriage|dinner"
    r"|the party|the house|the garden|the evening|the morning|beauty|pride|vanity|society|reading|the sea|the country)\b"
)


def chapters(book):
    """One novel's plain text -> chapters, each a list of paragraphs on one line."""
    book = book.split("A NOTE ON THE TEXT")[0].replace("_", "")
    out = []
    for part in re.split(r"(?m)^ *(?:CHAPTER|Chapter) .*$", book)[1:]:
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", part)]
        kept = [p for p in paragraphs if p and not re.fullmatch(r"(?i)(the end|finis|volume .*|end of .*|by jane austen)\.?", p)]
        kept = [p.replace("*", "").strip() for p in kept if re.search(r"[a-z]", p)]
        if kept:
            out.append(kept)
    return out


def pre_tokenizer():
    from tokenizers import Regex, pre_tokenizers as pre

    splits = [pre.Split(Regex(r), "isolated") for r in (NUMBERS, CJK, WORDS)]
    return pre.Sequence(splits + [pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(texts, vocab_size):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizer()
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=BOS + " $A", pair=BOS + " $A " + BOS + " $B:1", special_tokens=[(BOS, tok.token_to_id(BOS))])
    return tok


def prepare(work, vocab_size):
    os.makedirs(os.path.join(work, "books"), exist_ok=True)
    script = ('library(janeaustenr); d <- austen_books(); for (b in levels(d$book)) '
              'writeLines(d$text[d$book == b], file.path(commandArgs(TRUE)[1], paste0(gsub("[^A-Za-z]+", "_", b), ".txt")))')
    subprocess.run(["Rscript", "-e", script, os.path.join(work, "books")], check=True)
    every = []
    for path in sorted(glob.glob(os.path.join(work, "books", "*.txt"))):
        with open(path, encoding="utf-8", errors="ignore") as f:
            every += chapters(f.read())
    train = [c for i, c in enumerate(every) if i % HELD_OUT_EVERY != HELD_OUT_AT]
    val = [c for i, c in enumerate(every) if i % HELD_OUT_EVERY == HELD_OUT_AT]
    tok = train_tokenizer(["\n\n".join(c) for c in train], vocab_size)
    assert tok.get_vocab_size() == vocab_size
    tok.save(os.path.join(work, "tokenizer.json"))
    with open(os.path.join(work, "corpus.json"), "w", encoding="utf-8") as f:
        json.dump(dict(train=train, val=val), f)
    size = sum(len("\n\n".join(c).encode()) for c in train)
    count = sum(len(tok.encode("\n\n".join(c)).ids) for c in train)
    print(f"chapters {len(train)} + {len(val)} held out; training text {size} bytes, {count} tokens ({size / count:.2f} bytes/token)")


def conversations(chapters_, rng):
    """(user, assistant) pairs made out of the novels: about a name or a subject, a sentence to go on from, a reply in a dialogue."""
    out = []
    for paragraphs in chapters_:
        for i, p in enumerate(paragraphs):
            if not 120 < len(p) < 1200:
                continue
            first = re.match(r"[^.!?]{20,160}[.!?]\"? ", p)
            named = [m for r in (TITLED, NAMES, SUBJECTS) for m in r.findall(p[:300])]
            if i and p[0] == '"' and paragraphs[i - 1][0] == '"' and len(paragraphs[i - 1]) < 300:
                out.append((paragraphs[i - 1], p))
            elif named and rng.random() < 0.7:
                out.append((rng.choice(ASKING).format(rng.choice(named)), p))
            elif first:
                out.append((first.group().strip(), p[first.end():]))
    return [out[i] for i in rng.permutation(len(out))]


class Data:
    """Token streams. Windows of an epoch do not overlap; where documents begin changes from epoch to epoch."""

    def __init__(self, work, chat_share=0.2, tokenizer=None):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(tokenizer or os.path.join(work, "tokenizer.json"))
        with open(os.path.join(work, "corpus.json"), encoding="utf-8") as f:
            corpus = json.load(f)
        self.chapters, self.chat_share = corpus["train"], chat_share
        self.ids = {s: self.tokenizer.token_to_id(s) for s in SPECIAL}
        self.encoded = [self.encode([p + "\n\n" for p in c[:-1]] + c[-1:]) for c in self.chapters]
        joined = ["\n\n".join(c) for c in corpus["val"]]
        self.val_ids = np.concatenate([[self.ids[BOS]] + e + [self.ids[EOS]] for e in self.encode(joined)]).astype(np.int32)
        self.val_bytes = sum(len(t.encode()) for t in joined)

    def encode(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def novel_stream(self, rng):
        out = []
        for c in rng.permutation(len(self.encoded)):
            for i, paragraph in enumerate(self.encoded[c]):
                if i == 0 or rng.random() < 0.1:
                    out.append(self.ids[BOS])
                out += paragraph
            out.append(self.ids[EOS])
        return out

    def chat_stream(self, rng, count):
        pairs = conversations(self.chapters, rng)
        out, i = [], 0
        while len(out) < count:
            batch = self.encode([t for pair in pairs[i:i + 64] for t in pair])
            i = (i + 64) % (len(pairs) - 64)
            for user, assistant in zip(batch[0::2], batch[1::2]):
                out += [self.ids[BOS], self.ids[USER]] + user + [self.ids[ASSISTANT]] + assistant + [self.ids[EOS]]
        return out[:count]

    def epoch(self, number, length, batch):
        """Batches of one pass through the novels, [batch, length + 1], with chat_share of the windows made of conversations."""
        rng = np.random.default_rng(number)
        novels = self.novel_stream(rng)[int(rng.integers(length)):]
        chat = self.chat_stream(rng, int(len(novels) * self.chat_share / (1 - self.chat_share)))
        windows = [s[i:i + length + 1] for s in (novels, chat) for i in range(0, len(s) - length - 1, length)]
        windows = np.array(windows, dtype=np.int32)[rng.permutation(len(windows))]
        for i in range(0, len(windows) - batch + 1, batch):
            yield windows[i:i + batch]
