"""The normal forms of text: what is read of a value, and what two values are compared by. All of it is here.

| form | for | what it takes away |
|---|---|---|
| `trimmed` | stems, passages | forms of one character (NFC); spaces and invisible characters at both ends |
| `tidy` | labels, choices, answers, ids | the same; invisible characters inside, unusual spaces, spaces in a row |
| `same_form` | comparing these, and names of columns | the same; joiners, variation selectors, runs of white space |
| `gist` | whether two rows ask the same | the same; case, punctuation, compatible characters (full width) |
| `alike` | remarks about labels and choices | as `same_form`; case, full width, letters that look like Latin ones |

A model reads full-width letters, case and punctuation as something else, so values that differ in them are two values.
"""

import re
import unicodedata
from collections.abc import Iterable

# Nobody sees these, and they change no letter beside them: soft hyphen, zero-width space, byte order mark, marks of the
# direction of writing, word joiner, fillers, controls of shorthand and music.
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff"
_INVISIBLE += "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
# Nobody sees these by themselves, but they may change their neighbours: joiners, variation selectors, tags.
_JOINING = "\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff"
_INSIDE = re.compile(f"[{_INVISIBLE}]")
_ALL_INVISIBLE = re.compile(f"[{_INVISIBLE}{_JOINING}]")
_WHITE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
_ODD_SPACES = re.compile(r"[^\S\t\n\v\f\r ]")
_RUNS = re.compile(r"(?<=\S) {2,}(?=\S)")
_WORDS = re.compile(r"\w+|[+*/=<>%^]|-(?=\s*\d)")
_BEFORE_A_SIGN = re.compile(
    rf"\A[\s\x00-\x20\x7f-\xa0{_INVISIBLE}{_JOINING}\"\u201c-\u201f\u00ab\u00bb\u2039\u203a\u2018-\u201b`\u00b4]+"
)
_CYRILLIC = "АВЕКМНОРСТУХІЈЅаеорсухіјѕһԁԛԝ", "ABEKMHOPCTYXIJSaeopcyxijshdqw"
_GREEK = "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυ", "ABEZHIKMNOPTYXaiknopu"
_OTHERS = "ıȷ\u2010\u2011\u2012\u2013\u2212\u2018\u2019", "ij-----''"
_LOOKALIKES = str.maketrans(*("".join(parts) for parts in zip(_CYRILLIC, _GREEK, _OTHERS, strict=True)))


def _expanded(ranges: str) -> str:
    """The characters of a regular expression's set.

    >>> _expanded("ac-e")
    'acde'
    """
    return re.sub("(.)-(.)", lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))), ranges)


_BEFORE, _BEHIND = _WHITE + _expanded(_INVISIBLE + _JOINING), _WHITE + _expanded(_INVISIBLE) + "\u200c\u200d"
"""What nobody sees at the ends of a text; a variation selector or a tag at its end belongs to the sign before it."""


def trimmed(text: str) -> str:
    """A stem or a passage: composed characters (NFC), nothing but text at both ends.

    >>> trimmed("\\ufeff  Cafe\\u0301 au  lait?\\u200b\\n")
    'Café au  lait?'
    """
    return text.strip() if text.isascii() else _bare(unicodedata.normalize("NFC", text))


def _bare(text: str) -> str:
    return text.lstrip(_BEFORE).rstrip(_BEHIND)


def tidy(text: str) -> str:
    """A label, a choice, an answer or an id, as it is kept and as the model reads it.

    Line ends and what a line is indented by stay, for choices may be code.

    >>> tidy(" New\\u00a0 York\\u200b "), tidy("if x:\\n    return")
    ('New York', 'if x:\\n    return')
    """
    if text.isascii():
        return _RUNS.sub(" ", text.strip())
    visible = unicodedata.normalize("NFC", _INSIDE.sub("", text))
    return _RUNS.sub(" ", _bare(_ODD_SPACES.sub(" ", visible)))


def same_form(text: str) -> str:
    """What a label, a choice or the name of a column is compared by: equal where no reader sees a difference.

    >>> same_form("Cafe\\u0301  noir ") == same_form("Café\\u00a0noir"), same_form("a") == same_form("A")
    (True, False)
    """
    visible = text if text.isascii() else unicodedata.normalize("NFC", _ALL_INVISIBLE.sub("", text))
    return " ".join(visible.split())


def gist(text: str) -> str:
    """What a stem, a passage or a choice is compared by where two rows may ask the same: words, numbers, arithmetic.

    >>> gist("Which  metal\\u2019s \\u201cred\\u201d?"), gist("2 + 2 = ?"), gist("met\\u200bal")
    ('which metal s red', '2 + 2 =', 'metal')
    """
    folded = unicodedata.normalize("NFKC", _ALL_INVISIBLE.sub("", text)).casefold()
    return " ".join(_WORDS.findall(folded) or folded.split())


def alike(text: str) -> str:
    """What two labels share that a reader may take for one: case, full width, and letters of scripts that look alike.

    >>> alike("P\\u0430ris") == alike("PARIS") == alike("\\uff30aris"), alike("Paris") == alike("London")
    (True, False)
    """
    return unicodedata.normalize("NFKC", same_form(text)).translate(_LOOKALIKES).casefold()


def first_sign(text: str) -> str:
    """The first character that a program may take for the first of a cell: not a space, a quotation mark, a control
    character or an invisible one; in its compatible form, so that a full-width = is =. "" if there is none.

    >>> first_sign("\\ufeff\\t\\uff1d1"), first_sign('"=1'), first_sign("\\u2212 1"), first_sign(" x")
    ('=', '=', '-', 'x')
    """
    rest = _BEFORE_A_SIGN.sub("", text, count=1)
    first = unicodedata.normalize("NFKC", rest[:1])[:1]
    return "-" if first == "\u2212" else first  # the minus sign, which has no compatible form


def lookalikes(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different texts that a reader may take for one.

    >>> lookalikes(["good", "bad", "Good"])
    [('good', 'Good')]
    """
    first: dict[str, str] = {}
    pairs = [(first.setdefault(alike(text), text), text) for text in texts]
    return [(one, other) for one, other in pairs if one != other]
