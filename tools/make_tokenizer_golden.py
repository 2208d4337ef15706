#!/usr/bin/env python3
"""Writes tests/golden/text/tokenizer_*.json: small byte-level BPEs and the ids that Hugging Face gives.

Usage: make_tokenizer_golden.py [FOLDER]   (needs the Python package tokenizers)

tokenizer_<kind>.json is a tokenizer.json trained here with the pre-tokenizer of that kind;
tokenizer_texts.json holds the texts, tokenizer_<kind>_ids.json the ids of each, and
tokenizer_options.json patches of one tokenizer.json with the ids that each patch leads to.
"""
import copy
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

CORPUS = """The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all; it's too warm to run.
We've measured 1234 samples at 25.5 degrees; they're within 0.01% of what I'd expected, and you'll see why.
A compiler reads source text, builds a tree and writes machine code. An assembler does the last part only.
for (int i = 0; i < 10; ++i) { total += values[i] * 2; }  // sums the first ten values
def mean(values):\n    return sum(values) / len(values)\n\n\nprint(mean([1, 2, 3]))
{"name": "flashloom", "version": [0, 1, 0], "url": "https://example.org/a?b=c&d=e#f"}
Die Würde des Menschen ist unantastbar; größere Übungen für ältere Schüler folgen übermorgen.
Où est la bibliothèque ? L'été dernier, nous avons déjà mangé des crêpes près de la forêt.
El niño pequeño comió una manzana; mañana irá al colegio con su compañero.
Быстрая коричневая лиса прыгает через ленивую собаку, а собака спит и видит сны.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.
السماء زرقاء والشمس مشرقة في هذا اليوم الجميل. العدد ١٢٣٤٥.
השמים כחולים והשמש זורחת ביום היפה הזה.
敏捷的棕色狐狸跳过了懒狗。今天天气很好,我们去公园散步吧。
素早い茶色の狐はのろまな犬を飛び越える。カタカナとひらがなを混ぜて書く。
다람쥐 헌 쳇바퀴에 타고파. 오늘은 날씨가 참 좋습니다.
सभी मनुष्य जन्म से स्वतंत्र हैं। संख्या १२३ है।
สวัสดีครับ วันนี้อากาศดีมาก
😀 😃 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ emoji in a row 😀😃😄
THE PROGRAM'S OUTPUT ISN'T WHAT WE'VE SEEN BEFORE. IT'LL CHANGE.
\tindented with a tab\n        indented with eight spaces\r\nand a line that ends as on Windows\r\n
"""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def train(kind, merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind == "gpt2":
        tokenizer.pre_tokenizer = byte_level()
    elif kind == "smollm2":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level()])
    elif kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = split(QWEN2)
    elif kind == "llama3":
        tokenizer.pre_tokenizer = split(LLAMA3)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIAL) + merges, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    lines = CORPUS.splitlines(keepends=True)
    words = sorted(set(CORPUS.split()))
    tokenizer.train_from_iterator(lines * 3 + [" ".join(words)], trainer)
    if kind == "llama3":
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B",
                special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))])])
    return tokenizer


SPACES = [0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
          0x202F, 0x205F, 0x3000]


def texts(seed=1):
    found = CORPUS.splitlines(keepends=True) + [CORPUS, ""]
    found += [chr(c) for c in (*range(0, 33), 127, 128, 0xA0, 0xAD, 0xFEFF, 0xFFFD, 0xFFFF, 0x10FFFF)]
    for space in map(chr, SPACES):
        found += [space, space * 3, "a" + space + "b", space + "1" + space, "x" + space * 4 + "y",
                  space + " ?", " " + space + "\n" + space + "z"]
    found += [chr(c).join(("a", "1 ", "b")) for c in (0x1C, 0x1F, 0x180E, 0x200B, 0x200D, 0x2060, 0xFEFF)]
    found += ["I'm I'M i'Ll he'D THEY'RE we'VE it'S don'T 'tis 'S's''s ' s 're'r 'v", "'ſ a'ſ 'ſt l'l'L 'ﬆ 'K",
              "’s it’s", "'s't're've'm'll'd", " 's  't\t'm\n're", "a'sb'tc'red 'lls", "'l", "'", "''", " '", "'S"]
    found += ["1", "12", "123", "1234", "12345678901234567890", " 1", "  1", "a1b22c333", "3.14159e-10",
              "1,000,000.00", "٣٤٥٦٧", "Ⅷ Ⅸ ⅷ", "½ ¾ ²³ ①②③", "१२३४", "𝟘𝟙𝟚𝟛", "1\n2\r\n3", "x²y³",
              "\U00011DE0\U00011DE1 \U00016FF4", "\U00010D40\U00010D41\U0001CCF0"]
    found += ["é e\u0301 \u0301e", "a\u0323\u0307 a\u0307\u0323", "ſ\u0323\u0307", "\u1E9B\u0323", "Å Å A\u030A",
              "가 \u1100\u1161 \u1100\u1161\u11A8 각 \uAC00\u11A8", "\u0344", "\u0958", "\uFB1D \u2126 \u212A",
              "क\u093C \u0929 न\u093C", "\U0001D15E \U0001D157\U0001D165", "豈 更 \uFA30 \U0002F800",
              "q\u0345\u0898\u0334", "a\u0898\u0301", "\U00011935\U00011930", "\U00011938", "a" + "\u0316\u0300" * 40,
              "\u0300\u0316 \u0300", "e\u0302\u0323\u0301 ệ\u0301", "\u1FBE \u1FEF \u2000 \u2001", "ᾼ Άͅ",
              "ộ" + "\u0323", "\u0CC6\u0CC2\u0CD5", "\u0DD9\u0DCF\u0DCA", "\u1B05\u1B35", "ﬁ ﬂ ﷺ"]
    found += ["👩‍👩‍👧‍👦👨🏿‍🚀🏳️‍🌈", "🇩🇪🇫🇷🇯🇵", "1️⃣2️⃣#️⃣", "😀a😀 b 😀", "مرحبا بالعالم، كيف الحال؟", "שלום, עולם! \u200Fabc\u200E",
              "你好世界。我是学生!", "全角ABC123 ", "한국어 조선말", "𠀀𠀁𪚥", "ไทยภาษาไทย", "ŠĐČĆŽ", "ǅ ǈ ʰ ª º ㊀ 〇 〆",
              "a\u0000b\u0001c", "\u202Eabc\u202C", "x" * 300, "aaaaab" * 50, "-" * 200, " " * 100, "\n" * 50,
              "\t\n" * 20, " \n \n  x", "\r\n\r\n x", "   \n", "\n   ", "!!!\n\n\nabc", "...\r\n", " ...\r\n ", "9" * 64,
              "的" * 120, "😀" * 40, "\u0301" * 60, "ab " * 60, "_snake_case __init__", "CamelCaseWord", "a+b=c;//d",
              "http://x.y/z?q=%20&r=1", "tab\tand  two", "end with space ", " begin", "\u00a0nbsp", "a\u2028b"]
    for token in SPECIAL:
        found += [token, "a" + token + "b", " " + token + " ", token + token, "x  " + token + "\n\n y", token[:-1],
                  token[1:], "<" + token + ">", token.upper(), "e\u0301" + token + "\u0301"]
    found += ["<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_<|im_end|>start|>", "<|im_start", "<|"]
    nasty = random.Random(seed)
    pool = (SPACES + [ord(c) for c in "aAsStTlLmMdDrReEvVzZ''''..,!?-_<|>0123456789  \n\r\t"] +
            [ord(c) for c in "éÉßñжЖλшا٣中文字あア한ไทक१्"] +
            [0x301, 0x323, 0x308, 0x1100, 0x1161, 0x11A8, 0x200B, 0x200D, 0xFE0F, 0x1F600, 0x1F3FD, 0x17F, 0x212A,
             0x2160, 0xBD, 0xB2, 0x180E, 0x1C, 0x0, 0x85, 0xE000, 0x10FFFF, 0x1D7D8, 0xA7DC])
    for _ in range(120):
        found.append("".join(chr(nasty.choice(pool)) for _ in range(nasty.randint(1, 40))))
    words = CORPUS.split()
    for _ in range(40):  # pieces of known words, so that merges start and fail in many ways
        part = []
        for _ in range(nasty.randint(1, 12)):
            word = nasty.choice(words)
            begin = nasty.randrange(len(word))
            part.append(word[begin:begin + nasty.randint(1, 8)])
        found.append(nasty.choice(["", " "]).join(part))
    return found


def ids_of(tokenizer, text, special=True):
    return tokenizer.encode(text, add_special_tokens=special).ids


def template(tokenizer):
    """What encode puts around a text."""
    one = ids_of(tokenizer, "a", special=False)
    whole = ids_of(tokenizer, "a")
    return {"prefix": whole[:whole.index(one[0])], "suffix": whole[whole.index(one[0]) + 1:]}


def golden(tokenizer, given):
    ids = [ids_of(tokenizer, text, special=False) for text in given]
    decoded = [tokenizer.decode(i, skip_special_tokens=False) for i in ids]
    skipped = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
    tokenizer.encode_special_tokens = True
    plain = [ids_of(tokenizer, text, special=False) for text in given]
    tokenizer.encode_special_tokens = False
    different = {str(i): p for i, p in enumerate(plain) if p != ids[i]}
    # Single tokens and halves of characters, for decode alone.
    chance = random.Random(2)
    size = tokenizer.get_vocab_size()
    loose = [[chance.randrange(size) for _ in range(chance.randint(1, 12))] for _ in range(60)]
    return {
        **template(tokenizer),
        "ids": ids,
        "ids_special_as_text": different,
        "decoded": {str(i): d for i, d in enumerate(decoded) if d != given[i]},
        "decoded_without_special": {str(i): d for i, d in enumerate(skipped) if d != decoded[i]},
        "loose_ids": loose,
        "loose_text": [tokenizer.decode(i, skip_special_tokens=False) for i in loose],
    }


def options(base, given):
    """Patches (RFC 7396) of the base tokenizer.json, each with the ids of every text."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    gpt2 = dict(level, use_regex=True)

    def sequence(*steps):
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}

    def cut(pattern, behavior, invert=False, kind="Regex"):
        return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}

    def added(*entries):
        vocabulary, tokens = dict(base["model"]["vocab"]), []
        for content, flags in entries:
            tokens.append(dict(id=vocabulary.setdefault(content, len(vocabulary)), content=content, single_word="w" in flags,
                               lstrip="l" in flags, rstrip="r" in flags, normalized="n" in flags, special="s" in flags))
        return {"added_tokens": base["added_tokens"] + tokens}

    found = []
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        found.append(sequence(cut(r"[aeiou]|\s|,", behavior), level))
        found.append(sequence(cut(r"\p{L}+", behavior, invert=True), level))
    found += [
        sequence(cut(" ", "MergedWithNext", kind="String"), level),
        sequence(cut("a.b", "Isolated", kind="String"), level),
        sequence(cut(r"x*", "Isolated"), level),
        sequence(cut(r"(?=[A-Z])", "Isolated"), level),
        sequence(cut(r"^", "Isolated"), gpt2),
        # The pattern of GPT-4o, which no scanner knows.
        sequence(cut(r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll"
                     r"|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve"
                     r"|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", "Isolated"), level),
        sequence({"type": "Digits", "individual_digits": False}, gpt2),
        sequence({"type": "Digits", "individual_digits": True}, level),
        sequence({"type": "Digits", "individual_digits": True}, dict(gpt2, add_prefix_space=True)),
        sequence(cut(r"\p{N}{1,3}", "Isolated"), cut(r"\p{L}{1,5}", "Isolated"), gpt2),
        {"pre_tokenizer": dict(gpt2, add_prefix_space=True)},
        {"pre_tokenizer": level},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        dict(added(("  ", "n"), ("    ", "n"), ("   ", "n"), ("the", "nw"), ("[MASK]", "sl"), ("[X]", "sr"), ("[Y]", "lr"),
                   ("quick brown", "n"), ("quick", "n"), ("é", "n"), ("e\u0301x", "n"), ("ing", "w"), ("!!", "")),
             normalizer={"type": "NFC"}),
        dict(added(("[MASK]", "sl"), (" [X]", "sr"), ("<|im_end|>\n", "s"), ("\n", "n")),
             pre_tokenizer=dict(gpt2, add_prefix_space=True)),
        {"model": {"ignore_merges": True}},
        {"post_processor": {"type": "TemplateProcessing", "pair": [], "single": [
            {"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "E", "type_id": 0}}], "special_tokens": {
                "B": {"id": "B", "ids": [1, 0], "tokens": ["<|im_start|>", "<|endoftext|>"]},
                "E": {"id": "E", "ids": [2], "tokens": ["<|im_end|>"]}}}},
        {"model": {"merges": [m for m in base["model"]["merges"]][::-1]}},  # ranks that no training gives
        {"model": {"merges": [" ".join(m) for m in base["model"]["merges"]]}},
    ]
    # Vocabularies without some bytes: unknown tokens, one each or fused, and byte fallback.
    letters = ["z", "q", "\u0120", "\u0142", "\u00c3", "!"]
    shrunk = copy.deepcopy(base)
    keep = [m for m in base["model"]["merges"] if not any(c in "".join(m) for c in letters)]
    gone = {t: None for t in base["model"]["vocab"] if any(c in t for c in letters)}
    for fuse in (False, True):
        found.append({"model": {"merges": keep, "vocab": dict(gone), "unk_token": "<|endoftext|>", "fuse_unk": fuse}})
    found.append({"model": {"merges": keep, "vocab": dict(gone)}})
    fallback = {f"<0x{b:02X}>": len(base["model"]["vocab"]) + b for b in range(256)}
    for missing in ((), (0xC4, 0x7A)):
        vocabulary = {k: v for k, v in fallback.items() if k not in [f"<0x{b:02X}>" for b in missing]}
        for fuse in (False, True):
            found.append({"model": {"merges": keep, "vocab": {**gone, **vocabulary}, "unk_token": "<|endoftext|>",
                                    "byte_fallback": True, "fuse_unk": fuse}})
    result = []
    for patch in found:
        patched = merge_patch(copy.deepcopy(base), patch)
        tokenizer = Tokenizer.from_str(json.dumps(patched))
        result.append({"patch": patch, "ids": [ids_of(tokenizer, text) for text in given]})
    return result


def merge_patch(target, patch):
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge_patch(target[key], value)
        else:
            target[key] = value
    return target


OPTION_TEXTS = [
    "The quick brown fox can't jump over 12345 dogs!!  It's THE  thing.", "aXbYc  a.b.c xxabxx x", "", " ", "zqz !z! q",
    "thethe the [MASK]  the   [MASK][X]   [X] [Y]  a [Y]b", "quick brown quickbrown quick\tbrown", "cre\u0301me e\u0301x éx é",
    "<|im_end|>\n <|im_start|>\n\nuser", "singing sing ing.ing", "a    b     c  d\n\n e", "ÃÃ łł 中文 zÃ q", "été\u0323 Ünï",
    "values[i] * 2; // sums 0x1F 3.14", "日本語とEnglishの混在 текст", "  lead", "trail  ", "\r\n\t x", "HTTPServer's fooBar",
    "ab" * 60 + "z" * 10 + "the" * 30,
]


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/golden/text"
    folder.mkdir(parents=True, exist_ok=True)
    given = texts()
    write(folder / "tokenizer_texts.json", given)
    for kind in ("gpt2", "smollm2", "qwen2", "llama3"):
        tokenizer = train(kind, 1200)
        write(folder / f"tokenizer_{kind}.json", json.loads(tokenizer.to_str()))
        write(folder / f"tokenizer_{kind}_ids.json", golden(tokenizer, given))
    base = json.loads(train("gpt2", 300).to_str())
    write(folder / "tokenizer_options.json", {"base": base, "texts": OPTION_TEXTS, "cases": options(base, OPTION_TEXTS)})


if __name__ == "__main__":
    main()
