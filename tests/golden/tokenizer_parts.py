"""Golden cases for single components of tokenizer.json, made with the `tokenizers` library."""

import itertools
import json

from tokenizers import Tokenizer

TEXTS = [
    "a", " ", "Hello, world!", "  two  spaces ", "a--b---c", "-a-b-", "--", "x1y22z333", "１２３ ½ Ⅷ ٣٤", "你好,世界。", "tab\tnew\nline\r\n",
    "don't stop—it's ok…", "e\u0301 é ﬁ Å \u212b", "İstanbul ΑΒΓ ǅ", "snake_case and $ymbols^+", "a\u200db ⓐ_ª", "\u00a0 nbsp \u3000", "▁a ▁b", " lead", "trail ",
    "👨‍👩‍👧 🚀🚀 ❤️", "q\u0307\u0323", "ẛ\u0323 각 \u1100\u1161\u11a8", "naïve café façade", "A.B,C;D",
]

SPLIT_PATTERNS = [{"String": "-"}, {"String": "."}, {"String": "--"}, {"Regex": r"\s+"}, {"Regex": r"\d"}, {"Regex": r"-*"}, {"Regex": r"\w+|[^\w\s]+"}]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]

PRE_TOKENIZERS = [
    {"type": "Split", "pattern": p, "behavior": b, "invert": i} for p, b, i in itertools.product(SPLIT_PATTERNS, BEHAVIORS, [False, True])
]
PRE_TOKENIZERS += [
    {"type": "ByteLevel", "add_prefix_space": a, "trim_offsets": True, "use_regex": r} for a in [False, True] for r in [False, True]
]
PRE_TOKENIZERS += [{"type": "Digits", "individual_digits": d} for d in [False, True]]
PRE_TOKENIZERS += [{"type": "Punctuation", "behavior": b} for b in BEHAVIORS]
PRE_TOKENIZERS += [{"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "CharDelimiterSplit", "delimiter": "e"}]
PRE_TOKENIZERS += [
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": p, "split": s} for p in ["always", "first", "never"] for s in [False, True]
]
PRE_TOKENIZERS += [
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, PRE_TOKENIZERS[0], {"type": "Punctuation", "behavior": "Isolated"}]},
    {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]},
    {"type": "Sequence", "pretokenizers": []},
]

NORMALIZERS = [{"type": t} for t in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "ByteLevel"]]
NORMALIZERS += [{"type": "Strip", "strip_left": left, "strip_right": right} for left in [False, True] for right in [False, True]]
NORMALIZERS += [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"String": "."}, "content": "$1\\"},
    {"type": "Replace", "pattern": {"Regex": r"\s{2,}"}, "content": " "},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]},
    {"type": "Sequence", "normalizers": []},
]

TOKEN_LISTS = [
    [], ["a"], ["▁Hey", "▁friend", "!"], ["▁▁x▁", "y▁▁"], ["Hello", "Ġworld", "Ċ", "Ġ!"], ["ðŁ", "ĺ", "Ģ"], ["ðŁ", "ĺ"], ["é", "Ã©"], ["<｜User｜>", "Ġhi", "你"],
    ["<0xE5>", "<0x8F>", "<0xAB>"], ["<0xE5>", "<0x8F>", "a"], ["x", "<0x61>", "<0x0A>", "y"], ["<0xE5>", "<0x8f>", "<0xab>", "<0xFF>"], ["<0x4>", "<0xZZ>", "0x41>"],
    [" a", " b "], ["  a  ", "  "], ["HHH", "HeyH"], ["", "a", ""],
]
DECODERS = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {"type": "ByteFallback"}, {"type": "Fuse"}]
DECODERS += [{"type": "Strip", "content": c, "start": a, "stop": b} for c, a, b in [(" ", 1, 0), (" ", 0, 1), ("H", 2, 1)]]
DECODERS += [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Replace", "pattern": {"Regex": "[ab]+"}, "content": "-"}]
DECODERS += [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": p, "split": True} for p in ["always", "first", "never"]]
DECODERS += [{"type": "Sequence", "decoders": [DECODERS[6], {"type": "ByteFallback"}, {"type": "Fuse"}, DECODERS[3]]}]


def build(**components):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model} | empty | components))


def make_cases():
    for config in NORMALIZERS:
        normalizer = build(normalizer=config).normalizer
        yield {"kind": "normalizer", "config": config, "cases": [[t, normalizer.normalize_str(t)] for t in TEXTS]}
    for config in PRE_TOKENIZERS:
        pre_tokenizer = build(pre_tokenizer=config).pre_tokenizer
        cases = [[t, [piece for piece, _ in pre_tokenizer.pre_tokenize_str(t)]] for t in TEXTS]
        yield {"kind": "pre_tokenizer", "config": config, "cases": cases}
    for config in DECODERS:
        decoder = build(decoder=config).decoder
        # the library indexes out of bounds when Strip meets an empty token
        lists = [t for t in TOKEN_LISTS if "" not in t or config["type"] != "Strip"]
        yield {"kind": "decoder", "config": config, "cases": [[t, decoder.decode(t)] for t in lists]}
