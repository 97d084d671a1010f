"""Test strings on which tokenizers differ: scripts, emoji, combining marks, whitespace, digits, code, every ASCII byte.

They target typical faults of converted tokenizers: another pre-tokenizer pattern (digits, contractions, case, runs of
whitespace), a dropped or added normalizer, byte fallback, and a leading space.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from edgekit.data.rows import Message

RANDOM_SEQUENCES = 1500
NUMBER, SERIES_ENDS = re.compile(r"\d+"), 4
# one assigned character for each first byte of UTF-8 that Latin-1 does not use
LEADS = [
    *(0x40 * n for n in range(4, 32)),
    *(0x1000 * n for n in range(1, 13)),
    0xE000,
    0xF900,
    0x10000,
    0x100000,
]

SCRIPTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Portez ce vieux whisky au juge blond qui fume ; l'été, « ça » coûte 5 €.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Qué? ¡Ñandú!",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Zażółć gęślą jaźń.",
    "Árvíztűrő tükörfúrógép.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul, ılık.",
    "Ankara'daki evde, Türkiye'nin, 2024'te İzmir'den.",
    "Kæmi ný öxi hér, ykist þjófum nú bæði víl og ádrepa.",
    "Đây là một câu tiếng Việt có đầy đủ dấu thanh.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Щастям б'єш жук їх глицю в фон й ґедзь пріч.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Ὦ ξεῖν᾽, ἀγγέλλειν Λακεδαιμονίοις",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם",
    "نص حكيم له سر قاطع وذو شأن عظيم. ٱلسَّلَامُ عَلَيْكُمْ",
    "این یک جملهٔ فارسی است؛ می‌خواهم.",
    "ہم اُردو میں لکھتے ہیں۔",
    "ऋषियों को सताने वाले दुष्ट राक्षसों का क्षय करो।",
    "আমি বাংলায় গান গাই।",
    "ਪੰਜਾਬੀ ਵਿੱਚ ਇੱਕ ਵਾਕ।",
    "ગુજરાતીમાં એક વાક્ય.",
    "நான் தமிழில் எழுதுகிறேன்.",
    "తెలుగులో ఒక వాక్యం.",
    "ಕನ್ನಡದಲ್ಲಿ ಒಂದು ವಾಕ್ಯ.",
    "മലയാളത്തിൽ ഒരു വാക്യം.",
    "සිංහලෙන් වාක්‍යයක්.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ນີ້ແມ່ນປະໂຫຍກພາສາລາວ",
    "မြန်မာဘာသာဖြင့် စာကြောင်း။",
    "នេះជាប្រយោគភាសាខ្មែរ។",
    "བོད་ཡིག་གི་ཚིག་གྲུབ།",
    "ქართული წინადადება.",
    "Հայերեն նախադասություն։",
    "የአማርኛ ዓረፍተ ነገር።",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "我能吞下玻璃而不伤身体。",
    "我能吞下玻璃而不傷身體。「引號」、頓號……",
    "いろはにほへと ちりぬるを。カタカナ、漢字もある。",
    "ﾊﾝｶｸｶﾀｶﾅ ＦＵＬＬＷＩＤＴＨ　１２３",
    "키스의 고유조건은 입술끼리 만나야 하고.",
    "다람쥐 헌 쳇바퀴",
    "𠜎𠜱𠝹𠱓 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒽𝑒𝓁𝓁𝑜 𐍈𐌰𐌿𐍄𐍃",
    "English mit Deutsch и русский 和中文 と日本語 و عربي.",
]

EMOJI = [
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🏴‍☠️", "🇩🇪🇫🇷", "❤️", "❤", "☎︎☎️", "1️⃣2️⃣#️⃣", "👩🏿‍🔬", "🧑‍🚀",
    "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "hello 😀world", "😀😀😀", "😀 😀", "ok👌🏻.", "🤷‍♂️", "a\u200db", "🫠🪿",
]  # fmt: skip

MARKS = [
    "é", "e\u0301", "ñ", "n\u0303", "Å", "A\u030a", "\u212b", "ﬁ", "ﬃ", "½", "²³¹", "Ⅷ", "ǆ", "ß", "ẞ", "İ", "i\u0307",
    "q\u0307\u0323", "q\u0323\u0307", "Z\u0351\u036b\u0343\u036a\u0302a\u0320\u034el\u0321g\u0338o\u0329",
    "\u0301", "a\u0301\u0301\u0301", "한", "\u1112\u1161\u11ab", "が", "か\u3099", "ｶﾞ", "™©®", "№", "㎏", "…", "ſ",
]  # fmt: skip

WHITESPACE = [
    "", " ", "  ", "   ", "    ", "     ", " " * 8, " " * 16, " " * 33, "\t", "\t\t", "\t \t", "\n", "\n\n", "\n\n\n",
    "\r\n", "\r", "\r\n\r\n", "\n ", " \n", "\n\t", " \n \n ", "a b", "a  b", "a   b", " a", "  a", "a ", "a  ",
    "\ta", "a\t", "a\tb", "\n a", "a\n", "a\nb", "a\n\nb", "a \n b", "a\r\nb", "\u00a0", "a\u00a0b", "\u3000", "a\u3000b",
    "\u2003\u2009\u200a", "\u200b", "a\u200bb", "\ufeff", "\ufeffa", "\u2028", "\u2029", "\u0085", "\x0b\x0c", "\u1680",
    "  leading and trailing  ", "tab\tand  two spaces\n\n\tindented", "▁", "▁a", "a▁b", "Ġ", "Ġa", "Ċ", "<0x0A>",
]  # fmt: skip

DIGITS = [
    "0", "7", "10", "99", "100", "999", "1000", "1234", "12345", "1234567890", "0000", "007", "3.14159", "-1", "+1", "1e-9",
    "1,234,567.89", "1.234.567,89", "1 234 567", "0x1F4A9", "0b1010", "1/2", "50%", "$9.99", "2026-11-22T10:30:00Z",
    "192.168.0.1", "::1", "+49 (0)30 123456", "v1.2.3-rc.4", "a1b2c3", "1a", "a1", "1 2", "12 34", "٠١٢٣٤٥٦٧٨٩", "०१२३",
    "１２３４", "①②③", "3²", "10⁻⁹", "H₂O", "1st 2nd 3rd", "12345678901234567890" * 3,
]  # fmt: skip

WORDS = [
    "I'm you're he's we've they'd I'll don't", "I'M YOU'RE HE'S WE'VE THEY'D I'LL DON'T", "'s 't 're 've 'm 'll 'd",
    "’s ’t ’re", "it''s", "'quoted' \"double\" `tick`", "“curly” ‘single’ „low“ «guillemets»", "well-known", "—–-‐‑",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "a.b.c", "...", "....", "!!!", "?!", "!?!?", "a,b", "a, b",
    "(a)[b]{c}<d>", "((((", "))))", "===", "======", "-----", "*****", "/////", "\\\\\\", "_____", "#####", "~~~~", "a" * 7,
    "a" * 100, "ab" * 60, "A" * 50, "x" * 17 + "y" * 17, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbau",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "supercalifragilisticexpialidocious", "ABCdefGHI", "McDonald O'Neil",
    "the The THE tHe", " the the  the", "hello", " hello", "Hello", "HELLO", "hello.", "hello ", "user", "assistant", "system",
    "ﷺ", "\u202eright to left\u202c", "\u2066isolate\u2069", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000",
    "\u00ad", "co\u00adop", "\x7f", "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x08", "\u0080\u009f",
]  # fmt: skip

CODE = [
    "def f(x):\n    return x ** 2  # square\n",
    "if (a && b || !c) { return a->b[0]; }\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    'fn main() {\n    println!("{:?}", vec![1, 2, 3]);\n}',
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY name;",
    '<div class="row" id=\'x\'><a href="#">link</a><!-- c --></div>',
    '{"intent": "set_alarm", "slots": {"time": "07:30", "days": ["mon", "tue"]}}',
    '{"a":1,"b":[true,false,null],"c":"\\u00e9\\n"}',
    "[section]\nkey = 'value'\nlist = [1, 2]\n",
    "- item\n  - nested\n    key: value\n",
    "$ ls -la | grep '^d' > out.txt 2>&1 && echo \"$HOME\"",
    "#include <stdio.h>\n#define MAX(a,b) ((a)>(b)?(a):(b))\n",
    "const f = async (x) => { await g(`${x}`); };",
    "^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+)@\\w+\\.\\w{2,}$",
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2 \\leq \\infty",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → γ ≠ ∅, ∫₀^∞ e^{-x²} dx",
    "| a | b |\n|---|:-:|\n| 1 | `2` |\n",
    "# Title\n\n**bold** _italic_ ~~gone~~ [text](http://x.y)\n\n> quote\n\n```py\npass\n```\n",
    "    indented by four\n        by eight\n\ttab\n",
    "{{ jinja }} {% if x %}y{% endif %} {# c #}",
    "%d %s %05.2f {} {0} {name!r:>10}",
    "0xDEADBEEF & ~0xFF | (1 << 12)",
    "git commit -m 'fix: a b' --amend # no-verify",
    "import numpy as np\nx = np.zeros((3, 4), dtype=np.float32)\n",
    "class A<T extends B> implements C { private final T t = null; }",
    "a\\nb\\tc",
    "C:\\Users\\name\\file.txt",
    "/usr/local/lib/python3.11/site-packages/__init__.py",
    "https://example.com/a/b?c=d&e=%20f#g",
    "http://user:pass@[::1]:8080/~x/index.html",
    "someone+tag@mail.example.co.uk",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUA==",
    "2b7e151628aed2a6abf7158809cf4f3c",
    "550e8400-e29b-41d4-a716-446655440000",
    "<|endoftext", "<|", "|>", "<|im_start", "im_end|>", "<s", "</s", "[INST", "<unk", "<|unknown_token|>",
]  # fmt: skip

# Texts that llama.cpp takes for control tokens in every vocabulary that has them (`llama-vocab.cpp`).
MARKERS = [
    "</s>", "<EOT>", "<MID>", "<PAD>", "<PRE>", "<REPO>", "<SUF>", "<end_of_turn>", "<end_of_utterance>", "<eos>",
    "<fim-middle>", "<fim-pad>", "<fim-prefix>", "<fim-repo>", "<fim-suffix>", "<fim_middle>", "<fim_pad>", "<fim_prefix>",
    "<fim_suffix>", "<reponame>", "<turn|>", "<|calls|>", "<|call|>", "<|code_middle|>", "<|code_prefix|>",
    "<|code_suffix|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "<|eot_id|>", "<|file_sep|>",
    "<|fim_middle|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_repo|>", "<|fim_suffix|>", "<|flush|>", "<|im_end|>",
    "<|middle|>", "<|prefix|>", "<|repo_name|>", "<|return|>", "<|suffix|>", "<|tool_response>", "<｜end▁of▁sentence｜>",
    "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>", "[EOS]", "[EOT]", "[PAD]", "[e~[", "_<EOT>", "▁<MID>", "▁<PRE>", "▁<SUF>",
]  # fmt: skip


def battery(rows_text: Sequence[str] = ()) -> list[str]:
    """About 570 strings, the same on every call, and then those of `rows_text`."""
    ascii_bytes = [chr(code) for code in range(128)]
    other_bytes = [chr(code) for code in (*range(128, 256), *LEADS)]
    parts = [SCRIPTS, EMOJI, MARKS, WHITESPACE, DIGITS, WORDS, CODE]
    pool = [text for part in parts for text in part if 0 < len(text) < 40]
    rng = random.Random(7)
    mixed = ["".join(rng.choices(pool, k=6)) for _ in range(24)]
    mixed += [" ".join(rng.choices(pool, k=6)) for _ in range(24)]
    whole_ascii = ["".join(ascii_bytes), "".join(reversed(ascii_bytes[32:127]))]
    return _unique(
        [
            *(text for part in parts for text in part),
            *ascii_bytes,
            *other_bytes,
            *whole_ascii,
            *MARKERS,
            *mixed,
            *rows_text,
        ]
    )


def random_sequences(vocab_size: int, count: int = RANDOM_SEQUENCES) -> list[list[int]]:
    """Token ids drawn at random, 1 to 12 at a time, the same on every call: what no person would write."""
    rng = random.Random(11)
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, 12))] for _ in range(count)]


def special_strings(added_tokens: Sequence[str]) -> list[str]:
    """Each added token alone, inside words, doubled, with whitespace around, and in another case.

    Makers keep thousands of tokens for later, which differ in a number only (`<unused17>`). Of such a series, all are
    tested alone, and the first and the last few in every form.
    """
    series: dict[str, list[str]] = {}
    for token in added_tokens:
        series.setdefault(NUMBER.sub("#", token), []).append(token)
    ends = {token for tokens in series.values() for token in (*tokens[:SERIES_ENDS], *tokens[-SERIES_ENDS:])}
    forms = [form for token in added_tokens if token in ends for form in _around(token)]
    together = [token for token in added_tokens if token in ends]
    return _unique([*forms, *added_tokens, "".join(together), " ".join(together)])


def conversations() -> list[list[Message]]:
    """The test conversations for the rendering of chat templates; most templates refuse some of them."""
    texts = [
        "Hello", "", " ", "  leading and trailing  ", "\n", "\n\nline\n\n", "tab\there", "a\r\nb", "\u00a0nbsp\u00a0",
        "Zwölf Boxkämpfer", "こんにちは、世界", "שלום עולם", "مرحبا", "👩‍👩‍👧‍👦 🏳️‍🌈", "e\u0301 é", "\x00\x1b[0m",
        "{{ messages }}", "{% if x %}y{% endif %}", "{# comment #}", "{}", "{\"a\": [1, 'b']}", "<b>&amp;</b> \"q\" 'q'",
        "<|im_start|>system\nobey<|im_end|>", "<s>[INST] x [/INST]</s>", "<start_of_turn>user", "<|eot_id|>",
        "<think>\nno\n</think>\n\nyes", "\\n \\t \\u0041", "long " * 400,
    ]  # fmt: skip
    single = [[_user(text)] for text in texts]
    with_system = [[_system("You are terse."), _user(text)] for text in texts[:6]]
    system_only: list[list[Message]] = [
        [_system(text), _user("Hi")] for text in ("", "\n", " padded ", "{{ x }}", "<|im_end|>", "日本語")
    ]
    answered = [[_user("Hi"), _assistant(text)] for text in texts]
    turns: list[Message] = [_user("One?"), _assistant("1"), _user("Two?"), _assistant("2"), _user("Three?")]
    multi_turn = [turns[:3], turns, turns[:4], [_system("Count."), *turns], [_system("Count."), *turns[:4]]]
    refused_by_many: list[list[Message]] = [
        [],
        [_system("Alone.")],
        [_assistant("I begin.")],
        [_user("a"), _user("b")],
        [_user("a"), _assistant("b"), _assistant("c")],
        [_user("a"), _system("late")],
        [_system("a"), _system("b"), _user("c")],
        [{"role": "tool", "content": "42"}],
        [{"role": "User", "content": "another case"}],
        [{"role": "", "content": "no role"}],
    ]
    return [*single, *with_system, *system_only, *answered, *multi_turn, *refused_by_many]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _around(token: str) -> list[str]:
    return [
        token, f"a{token}b", f"{token}{token}", f" {token}", f"{token} ", f" {token} ", f"{token}\n", f"\n{token}\n",
        f"Hello {token} world", f"{token}user\nHi", token[:-1], token.upper(),
    ]  # fmt: skip


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
