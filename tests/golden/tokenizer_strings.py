"""The strings of the tokenizer golden data: written by hand, cut from this repository, or drawn at random."""

import pathlib
import random
import unicodedata

REPOSITORY = pathlib.Path(__file__).parents[2]

MULTILINGUAL = [
    "今天天气很好,我们去公园散步吧。\n",
    "人工智能正在改变世界,模型越来越大。\n",
    "专家混合模型把每个词元送到少数几个专家。\n",
    "東京は今日もとても暑いです。カタカナとひらがな。\n",
    "안녕하세요, 오늘은 날씨가 참 좋습니다.\n",
    "Привет, как дела? Сегодня хорошая погода.\n",
    "Καλημέρα κόσμε, τι κάνεις σήμερα;\n",
    "مرحبا بالعالم، كيف حالك اليوم؟\n",
    "שלום עולם, מה שלומך היום?\n",
    "नमस्ते दुनिया, आप कैसे हैं?\n",
    "สวัสดีชาวโลก วันนี้อากาศดี\n",
    "Grüße aus München: Straße, Äpfel, Öl, Übung.\n",
    "Où est l'élève ? À la forêt, près du château.\n",
    "El niño comió piñas en la montaña mañana.\n",
    "Dzień dobry, świecie! Zażółć gęślą jaźń.\n",
    "Merhaba dünya, İstanbul'da ılık bir gün.\n",
    "Xin chào thế giới, hôm nay trời đẹp quá.\n",
    "The ferry carries tokens from attention ranks to expert ranks and back again.\n",
    "😀 😂 🚀 🎉 ❤️ 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇯🇵\n",
]

HAND = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\n \n", "\t\t\t", " a", "a ", " a ", "  a", "a  ",
    "   a   b    c     ", "a\n\n\nb", "a \n b", "a\r\nb\rc", "\u00a0", "\u3000", "a\u3000b", "\u2003\u2009x",
    "\u200b", "\ufeff", "a\ufeffb", "\u200d", "\0", "a\0b", "\x01\x02\x7f", "\x85", "\u2028\u2029", "\ufffd",
    "Hello, world!", "hello world", "HELLO WORLD", "Hello", " Hello", "HelloWorld", "helloWorld fooBar", "Tokenizer",
    "I'm you're we've he'll she'd it's don't", "I'M YOU'RE WE'VE HE'LL SHE'D IT'S DON'T", "'s 't 're", "''s", "’s it’s",
    "0", "1", "12", "123", "1234", "12345", "123456789", "3.14159", "1,000,000", "1e-9", "0x1F", "٣٤٥", "½ ⅓ ²³", "Ⅷ",
    "2024-01-31T23:59:59Z", "192.168.0.1:8080", "v1.2.3-rc4", "100%", "$9.99", "€5", "#1", "a1b2c3",
    "你好", "你好,世界!", "你好 world 你好", "一二三四五六七八九十", "こんにちは世界", "カタカナ", "漢字かな交じり文", "龥龦㐀𠀀",
    "한국어", "Ελληνικά", "кириллица", "العربية", "עברית", "हिन्दी", "ไทย", "ქართული", "አማርኛ", "தமிழ்",
    "é", "e\u0301", "a\u030a", "Å", "\u212b", "ﬁ", "n\u0303", "o\u0308\u0304", "\u0301", "\u0301a", "q\u0307\u0323",
    "q\u0323\u0307", "\u1100\u1161\u11a8", "각", "ẛ\u0323", "\u0958", "\u2126", "①②③", "ⓐⓑ", "ＡＢＣ１２３", "ｶﾞ",
    "İstanbul ıI", "ß ẞ", "ǅ", "Σίσυφος ΣΑΣ",
    "😀", "😀😀", "a😀b", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "☺", "1️⃣", "🧑🏿‍🚀 launched", "𝒳𝓎𝓏", "𝟘𝟙𝟚",
    "!", "!!", "!!!", "...", "…", "—", "a—b", "-", "--", "---", "(a)", "[b]", "{c}", "<d>", "\"quoted\"", "'single'",
    "@user #tag", "a@b.com", "http://example.org/a?b=c&d=%20#e", "C:\\path\\to", "/usr/lib/x.so.1", "~/.config",
    "!important", ".method()", "->next", "::std", "a_b_c", "__init__", "$HOME", "x=1", "x == y", "a+=b;", "i++",
    "for (int i = 0; i < n; ++i) { sum += x[i]; }", "def f(x):\n    return x ** 2\n", "if (a && b || !c) return;\n\n",
    "\tif x:\n\t\ty = 1\n\telse:\n\t\ty = 2\n", "SELECT * FROM t WHERE id = 7;", "{\"key\": [1, 2, {\"a\": null}]}",
    "#include <vector>\n#define X(a) a##_b\n", "<a href=\"x\">y</a>", "\\frac{a}{b} \\alpha_{1}^{2}", "`code` **bold** _it_",
    "- item 1\n- item 2\n  - nested\n\n1. one\n2. two", "| a | b |\n|---|---|\n| 1 | 2 |", "a\\nb", "\\u0041",
    "word", "a word here", "words", "sword", "word!", "_word", "word_", "éword", "wordé", "word\u0301", "word word", "wordword",
    "<mask>", "a <mask> b", "a<mask>b", "  <mask>  ", "<sep>  x", "a <sep>\n b", "x  <both>  y", "<both> <both>", "<mask> <sep>",
    "<sep> <mask>", "<mask", "<<mask>>", "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|endoftext",
    "<|im_start|>user\nHi<|im_end|>\n", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>", "<｜User｜> 你好 <｜Assistant｜>", "<think>\nhm\n</think>\n\nYes.", "<s>a</s>",
    "<tool_call>{}</tool_call>", "<｜tool▁calls▁begin｜>", "x<｜tool▁calls▁begin｜>y", "<unk>", "<0x41>", "▁", "▁a▁b", "Ġhello", "Ċ",
    "a" * 100, " " * 100, "\n" * 50, "ab" * 64, "0" * 40, "é" * 40, "你" * 40, "😀" * 20, "- " * 40, "=" * 80, "aA" * 40,
]

FRAGMENTS = [
    "the", "The", "of", "token", "expert", "gate", "Ferry", "latent", "attention", "cache", "unreachable", "filesystem", "word",
    "running", "unbelievable", "internationalization", "I'm", "they'll", "it's", "don't", "x86_64", "foo_bar", "fooBar", "std::vector<int>",
    "->", "==", "!=", "+=", "&&", "||", "//", "/*", "*/", "#", "(", ")", "{", "}", "[", "]", ";", ",", ".", "?", "!", ":", "\"", "'",
    "return", "int", "float", "def", "import", "0", "7", "42", "100", "2024", "31337", "1234567", "3.14", "0xFF", "１２", "٤٢", "½",
    "你好", "世界", "模型", "的", "。", ",", "「", "」", "こんにちは", "カタカナ", "한국", "Привет", "мир", "Ελλάδα", "مرحبا", "שלום", "नमस्ते", "สวัสดี",
    "é", "e\u0301", "ü", "u\u0308", "ñ", "Å", "ß", "ı", "İ", "ﬁ", "\u0301", "\u200d", "\u200b", "\ufe0f", "\u00a0", "\u3000",
    "😀", "🚀", "👍🏽", "👨‍👩‍👧", "🏳️‍🌈", "🇫🇷", "❤️", "☃", "∑", "√", "≤", "→", "€", "£", "°", "©", "™", "“", "”", "’", "–", "…",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<mask>", "<sep>", "<both>", "</s>",
]
SPACES = ["", "", "", " ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n    ", "        ", " \t "]


def random_mix(rng):
    return "".join(rng.choice(FRAGMENTS) + rng.choice(SPACES) for _ in range(rng.randint(1, 10)))


def random_characters(rng):
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x206F)]
    blocks += [(0x20A0, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF)]
    blocks += [(0x10000, 0x107FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF)]
    result = ""
    while len(result) < 12:
        low, high = rng.choice(blocks)
        for c in map(chr, rng.choices(range(low, high + 1), k=rng.randint(1, 4))):
            if unicodedata.category(c) != "Cn":  # classes of unassigned characters change between Unicode versions
                result += c
    return result


def repository_windows(rng, count):
    paths = [p for d in ["base", "cmake"] for p in sorted((REPOSITORY / d).glob("*.*"))] + [REPOSITORY / "LICENSE"]
    texts = [p.read_text() for p in paths]
    for _ in range(count):
        text = rng.choice(texts)
        begin = rng.randrange(max(1, len(text) - 120))
        yield text[begin : begin + rng.randint(20, 120)]


BROKEN = [b"\x80", b"\xff", b"\xc3", b"\xc3(", b"\xe4\xbd", b"\xe4\xbd\xa0\xe5", b"\xf0\x9f\x98", b"\xf0\x9f", b"\xc0\xaf", b"\xe0\x80\xaf"]
BROKEN += [b"\xed\xa0\x80", b"\xed\xb0\x80\xed\xa0\xbd", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xf0\x80\x80\x80"]


def random_broken(rng):
    parts = []
    for _ in range(rng.randint(1, 4)):
        parts += [rng.choice(FRAGMENTS).encode(), rng.choice(BROKEN), rng.choice(SPACES).encode()]
    cut = b"".join(parts)
    return cut[rng.randint(0, 3) :] if rng.random() < 0.5 else cut


def make_strings():
    rng = random.Random(20240131)
    texts = list(HAND) + MULTILINGUAL
    texts += [random_mix(rng) for _ in range(1250)]
    texts += [random_characters(rng) for _ in range(250)]
    texts += list(repository_windows(rng, 350))
    strings = [{"text": t} for t in texts]
    strings += [{"hex": b.hex()} for b in BROKEN] + [{"hex": random_broken(rng).hex()} for _ in range(220)]
    return strings
