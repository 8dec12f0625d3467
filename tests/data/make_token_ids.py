"""Writes the token ids that llama.cpp gives to varied strings, for the tests to compare with.

    python tests/data/make_token_ids.py SmolLM2-135M-Instruct.Q4_1.gguf tests/data

smollm2_token_ids.json.gz: 1,000 strings with the vocabulary of that model. pre_tokenizer_ids.json.gz: 400 strings with
a small vocabulary whose merges cross every word boundary, once for each way to cut a text into words.
Needs `pip install llama-cpp-python gguf tokenizers` (llama-cpp-python 0.3.36 was used), which the tests do not.
"""

import gzip
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

N_STRINGS = 1000
N_SHORT_LIST = 400
PRE_TOKENIZERS = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2"]

WRITTEN_BY_HAND = [
    "",
    " ",
    "\n",
    "\r\n\r\n\t",
    "Hello, world!",
    " leading and trailing ",
    "I'm sure they'll say it's what we'd've done; DON'T YOU'RE WE'VE",
    "don’t — “quoted” … ½ ² ³ Ⅷ ① ٣ ४ 〇",
    "3.14159 1,000,000 0x1F 2026-11-21T03:15:44Z 192.168.0.1 12345678901234567890",
    "x" * 60,
    " " * 40,
    "a  b   c    d     e",
    "\t\tif (a\t== b) {\n\t\t\treturn;\n\t\t}\n",
    "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x_y%';--",
    "<div class=\"a\">&nbsp;&lt;b&gt;</div><!-- c -->",
    "#include <stdio.h>\nint main(void){printf(\"%d\\n\",42);}",
    "{\"k\":[1,2.5,-3e10,null,true],\"u\":\"\\u00e9\"}",
    "$\\frac{a}{b} \\leq \\sum_{i=0}^{n} x_i^2$",
    "Die Straße größer Äpfel, ÄÖÜ ß ẞ; İstanbul ığüşöç; Ångström; naïve café",
    "Москва́ — столица России, ёжик; Київ; Ελληνικά ΰ ϊ; Հայերեն; ქართული",
    "我喜欢吃苹果。日本語のテキスト、カタカナ、ひらがな。한국어 문장입니다. 繁體中文",
    "العربية مع تَشْكِيل ١٢٣؛ עִבְרִית; हिन्दी में क्षत्रिय १२३; தமிழ்; ไทยไม่มีเว้นวรรค; བོད་ཡིག; አማርኛ; မြန်မာ",
    "e\u0301 a\u030a\u0323 n\u0303o Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 👨🏿‍🚀 🇫🇷🇯🇵 ❤️ ☕︎ 🧑‍🤝‍🧑 🫠 1️⃣ ©®™",
    "\u200b\u200d\ufeff\u00a0\u2003\u3000\u2028\u2029\u0085 \x0b\x0c\x00\x1b[0m\x7f",
    "𝕳𝖊𝖑𝖑𝖔 𝟘𝟙 𐍈 𓂀 🜁 \U0010ffff \ue000",
    "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_end|><|endoftext|>",
    "a<|im_end|>b <|im_end|> c",
    "<|im_end|",
    "<|im_<|im_end|>end|>",
    "<repo_name>x<file_sep>y<reponame><filename>f.py<gh_stars>10<issue_start><empty_output>",
    "<jupyter_code>print(1)<jupyter_output>1<jupyter_text>",
    "<s></s><unk><pad>[INST] [/INST]",
    "http://example.com/a/b?c=d&e=%20#f me@example.org C:\\Windows\\System32",
    "CamelCaseAndsnake_case_AND_SCREAMING-kebab-case",
    "!!!???...,,,;;;:::---___===+++***///\\\\\\|||~~~```'''\"\"\"",
    "((((([[[[[{{{{{<<<<<>>>>>}}}}}]]]]])))))",
    "1st 2nd 3rd 4th 10% $5 €6 £7 ¥8 5°C 6′2″ a² H₂O",
]  # fmt: skip

SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n\r",
    "    ",
    ".,;:!?'\"()[]{}<>-_=+*/\\|@#$%^&~`",
    "àâäçéèêëîïôöùûüÿñßøåæœłżź",
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "的一是不了人我在有他这为之大来以个中上们",
    "あいうえおかきくけこアイウエオカキクケコー",
    "가나다라마바사아자차카타파하",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "कखगघचछजझटठडढणतथदधनािीुू्",
    "กขคงจฉชซฌญฎฏฐฑฒณดตถทธน",
    "😀😂🤔🎉🔥👍🏽‍❤️🚀🌍🇩🇪",
    "\u0300\u0301\u0302\u0308\u0323\u200d\ufe0f",
    "٠١٢٣४५६½¼²³ⅣⅫ①",
]

WORDS = """the of and to in is that it was for on are as with his they be at one have this from or had by hot but some
what there we can out other were all your when up use word how said an each she 's 're 've n't 'LL I'm
return class import self. while( != => -> ++ && /* */ // ## ** `` ``` </p> <br/> \\n \\t {} [] () 42 007 3.5 1e-9
<|im_start|> <|im_end|> <|endoftext|> <file_sep> <|im_ |im_end|>"""


def varied_strings(n: int, seed: int = 20) -> list[str]:
    """`n` different strings: the ones above, then mixtures of words, scripts, code marks and control tokens."""
    draw = random.Random(seed)
    strings = dict.fromkeys(WRITTEN_BY_HAND)
    while len(strings) < n:
        strings[_mixture(draw) if draw.random() < 0.6 else _sentence(draw)] = None
    return list(strings)[:n]


def _mixture(draw: random.Random) -> str:
    runs = []
    for _ in range(draw.randint(1, 8)):
        script = draw.choice(SCRIPTS)
        runs.append("".join(draw.choices(script, k=draw.randint(1, 9))))
    return "".join(runs)


def _sentence(draw: random.Random) -> str:
    pieces = draw.choices(WORDS.split(), k=draw.randint(2, 14))
    return "".join(piece + draw.choice([" ", " ", " ", "", "  ", "\n"]) for piece in pieces)


def llama_cpp_ids(model: Path, strings: list[str]) -> list[list[int]]:
    from llama_cpp import Llama

    llama = Llama(str(model), vocab_only=True, verbose=False)
    return [llama.tokenize(text.encode("utf-8"), add_bos=False, special=True) for text in strings]


def small_vocabulary(strings: list[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges learnt from whole strings, spaces, digits and line ends included."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=byte_level.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(strings, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    return sorted(learnt["vocab"], key=learnt["vocab"].get), [" ".join(pair) for pair in learnt["merges"]]


def write_vocabulary(path: Path, pre: str, tokens: list[str], merges: list[str]) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"model": "gpt2", "pre": pre}.items():
        writer.add_string(f"tokenizer.ggml.{key}", value)
    for key, items in {"tokens": tokens, "merges": merges, "token_type": [1] * len(tokens)}.items():
        writer.add_array(f"tokenizer.ggml.{key}", items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def pre_tokenizer_ids() -> dict[str, Any]:
    strings = [text for text in varied_strings(N_STRINGS, seed=21) if "<|" not in text][:N_SHORT_LIST]
    tokens, merges = small_vocabulary(strings)
    with tempfile.TemporaryDirectory() as folder:
        ids = {
            pre: llama_cpp_ids(write_vocabulary(Path(folder) / f"{pre}.gguf", pre, tokens, merges), strings)
            for pre in PRE_TOKENIZERS
        }
    return {"tokens": tokens, "merges": merges, "strings": strings, "ids": ids}


def save(path: Path, document: dict[str, Any]) -> None:
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def main(model: str, folder: str) -> None:
    strings = varied_strings(N_STRINGS)
    ids = llama_cpp_ids(Path(model), strings)
    save(Path(folder) / "smollm2_token_ids.json.gz", {"model": Path(model).name, "strings": strings, "ids": ids})
    save(Path(folder) / "pre_tokenizer_ids.json.gz", pre_tokenizer_ids())


if __name__ == "__main__":
    main(*sys.argv[1:])
