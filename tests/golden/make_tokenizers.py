"""Writes data/tokenizers/: tokenizers of several styles, strings, and what the `tokenizers` library makes of them.

    python make_tokenizers.py

README.md lists what is written. The vocabularies are trained on the sources and documentation of the running Python
and on the lines in tokenizer_strings.py, so another Python gives other (equally good) ones; the strings come from
tokenizer_strings.py and this repository only.
"""

import json
import pathlib
import sysconfig

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import tokenizer_parts
from tokenizer_strings import MULTILINGUAL, make_strings

DATA = pathlib.Path(__file__).parent / "data" / "tokenizers"

DEEPSEEK_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# A search for unfinished places must not find them in a vocabulary.
UNFINISHED = ["X" * 3, "TO" "DO", "FIX" "ME", "HA" "CK", "Not" "Implemented"]
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def corpus():
    stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(stdlib.glob("*.py")) + [stdlib / "pydoc_data" / "topics.py"]:
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            if not any(mark in line for mark in UNFINISHED):
                yield line
    for _ in range(40):
        yield from MULTILINGUAL


def byte_level_split(regexes):
    splits = [pre_tokenizers.Split(Regex(r), "isolated") for r in regexes]
    return pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(pre_tokenizer, vocab_size, normalizer=None, alphabet=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    if alphabet is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return json.loads(tokenizer.to_str())


def add_tokens(tokenizer, contents, **flags):
    used = set(tokenizer["model"]["vocab"].values()) | {t["id"] for t in tokenizer["added_tokens"]}
    for content in contents:
        token_id = tokenizer["model"]["vocab"].get(content, max(used) + 1)
        token = {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
        token |= {"normalized": False, "special": True} | flags
        tokenizer["added_tokens"].append(token)
        used.add(token_id)


def id_of(tokenizer, content):
    return next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == content)


def begin_template(tokenizer, begin):
    ids = {begin: {"id": begin, "ids": [id_of(tokenizer, begin)], "tokens": [begin]}}
    text, start = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": begin, "type_id": 0}}
    pair = [start, text, {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [start, text], "pair": pair, "special_tokens": ids}


BYTE_LEVEL_POST = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def make_deepseek():
    tokenizer = train(byte_level_split(DEEPSEEK_SPLITS), 4000, normalizers.Sequence([]))
    add_tokens(tokenizer, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"])
    add_tokens(tokenizer, ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], special=False)
    add_tokens(tokenizer, ["<｜tool▁calls▁begin｜>"], special=False, normalized=True)
    tokenizer["post_processor"] = begin_template(tokenizer, "<｜begin▁of▁sentence｜>")
    return tokenizer


def make_llama3():
    tokenizer = train(byte_level_split([LLAMA3_SPLIT]), 3000)
    # words that no merge reaches: only ignore_merges finds them
    for word in ["ĠTokenizer", "Ġunreachable", "Hello", "ä½łå¥½", "Ġfilesystem"]:
        tokenizer["model"]["vocab"].setdefault(word, len(tokenizer["model"]["vocab"]))
    tokenizer["model"]["ignore_merges"] = True
    add_tokens(tokenizer, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    template = begin_template(tokenizer, "<|begin_of_text|>")
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL_POST, template]}
    return tokenizer


def make_qwen():
    tokenizer = train(byte_level_split([QWEN_SPLIT]), 3000, normalizers.NFC())
    add_tokens(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    add_tokens(tokenizer, ["<tool_call>", "</tool_call>"], special=False)
    tokenizer["post_processor"] = BYTE_LEVEL_POST
    return tokenizer


def make_gpt2():
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True), 2000)
    tokenizer["model"]["merges"] = [" ".join(m) for m in tokenizer["model"]["merges"]]  # the older form
    add_tokens(tokenizer, ["<|endoftext|>"])
    add_tokens(tokenizer, ["<mask>"], lstrip=True)
    add_tokens(tokenizer, ["<sep>"], rstrip=True)
    add_tokens(tokenizer, ["<both>"], lstrip=True, rstrip=True)
    add_tokens(tokenizer, ["word"], single_word=True, special=False)
    tokenizer["post_processor"] = BYTE_LEVEL_POST
    return tokenizer


def make_llama2():
    """Byte fallback, as in files converted from SentencePiece."""
    tokenizer = train(pre_tokenizers.Metaspace(), 1500, alphabet=[])
    trained = tokenizer["model"]
    merges = trained["merges"]
    keep = [t for t in trained["vocab"] if len(t) > 1 or ord(t) < 0x250 or t == "▁"]
    merges = [m for m in merges if all(ord(c) < 0x250 or c == "▁" for c in "".join(m))]
    keep = [t for t in keep if all(ord(c) < 0x250 or c == "▁" for c in t)]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + keep
    tokenizer["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    tokenizer["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] = [{"id": i, "content": tokens[i]} | flags for i in range(3)]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    tokenizer["pre_tokenizer"] = None
    tokenizer["post_processor"] = begin_template(tokenizer, "<s>")
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    tokenizer["decoder"] = {"type": "Sequence", "decoders": steps}
    return tokenizer


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_lines(path, values):
    path.write_text("".join(dump(v) + "\n" for v in values), newline="\n")


def golden_lines(tokenizer, strings):
    for idx, string in enumerate(strings):
        text = string["text"] if "text" in string else bytes.fromhex(string["hex"]).decode("utf-8", "replace")
        ids = tokenizer.encode(text).ids
        line = {"ids": ids}
        decoded = tokenizer.decode(ids)
        if decoded != text:
            line["decoded"] = decoded
        if idx % 10 == 0 or "<" in text:  # with special tokens, from the middle of the text, maybe of a character
            line["tail"] = tokenizer.decode(ids[len(ids) // 2 :], skip_special_tokens=False)
        yield line


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    strings = make_strings()
    write_lines(DATA / "strings.jsonl", strings)
    for make in [make_deepseek, make_llama3, make_qwen, make_gpt2, make_llama2]:
        name, tokenizer = make.__name__.removeprefix("make_"), make()
        (DATA / f"{name}.json").write_text(dump(tokenizer) + "\n")
        write_lines(DATA / f"{name}.golden.jsonl", golden_lines(Tokenizer.from_str(dump(tokenizer)), strings))
    write_lines(DATA / "parts.jsonl", tokenizer_parts.make_cases())


if __name__ == "__main__":
    main()
