"""Families about English words and spelling."""

from collections.abc import Iterable, Iterator

from abmll.tasks.builtin.family import Item, draw, entries, family, words

ARTICLES = ("a", "an")
PARTS_OF_SPEECH = ("noun", "verb", "adjective", "adverb")
VOWELS = "aeiou"


def _word_pairs(kind: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for part, text in words("language.yaml")[kind].items():
        found = [tuple(entry.split()) for entry in entries(text)]
        yield part, [(first, second) for first, second in found]


@family("opposites")
def opposites() -> Iterator[Item]:
    for part, found in _word_pairs("opposites"):
        everything = {word for pair in found for word in pair}
        for pair in found:
            for word, right in (pair, pair[::-1]):
                wrong = everything.difference(pair)
                yield Item(f"{part} {' '.join(pair)}", f"What is the opposite of '{word}'?", right, wrong)


@family("synonyms", choices=3)
def synonyms() -> Iterator[Item]:
    for part, found in _word_pairs("synonyms"):
        everything = {word for pair in found for word in pair}
        for pair in found:
            stem = f"Which word means almost the same as '{pair[0]}'?"
            yield Item(f"{part} {pair[0]}", stem, pair[1], everything.difference(pair))


@family("past-tenses", choices=3)
def past_tenses() -> Iterator[Item]:
    for entry in entries(words("language.yaml")["irregular_verbs"]):
        base, past, participle = entry.split()
        wrong = [regular_past(base), participle if participle not in (base, past) else third_person(base)]
        yield Item(base, f"What is the past tense of '{base}'?", past, wrong)


def regular_past(verb: str) -> str:
    """The verb as if it were regular.

    >>> [regular_past(verb) for verb in ("go", "write", "fly", "run")]
    ['goed', 'writed', 'flied', 'runned']
    """
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in VOWELS:
        return verb[:-1] + "ied"
    doubled = len(verb) > 2 and verb[-1] not in VOWELS + "wxy" and verb[-2] in VOWELS and verb[-3] not in VOWELS
    return verb + verb[-1] * doubled + "ed"


@family("plurals", choices=3)
def plurals() -> Iterator[Item]:
    for entry in entries(words("language.yaml")["plural_nouns"]):
        noun, _, given = entry.partition("=")
        right = given or regular_plural(noun)
        wrong = [text for text in _plural_guesses(noun) if text != right][:2]
        yield Item(noun, f"What is the plural of '{noun}'?", right, wrong)


def regular_plural(noun: str) -> str:
    """The plural by the rules of spelling.

    >>> [regular_plural(noun) for noun in ("day", "city", "box", "photo")]
    ['days', 'cities', 'boxes', 'photos']
    """
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _plural_guesses(noun: str) -> Iterable[str]:
    """Wrong plurals a learner may try, the likeliest first."""
    if noun.endswith("man"):
        yield noun + "s"
        yield noun[:-2] + "ens"
    if noun.endswith("y"):
        yield noun[:-1] + "ies"
    if noun.endswith(("f", "fe")):
        yield noun.removesuffix("e")[:-1] + "ves"
    if noun.endswith(("sis", "us", "ss", "x", "ch", "sh", "ies")):
        yield noun + "es"
        yield noun
    yield noun + "s"
    if noun.endswith(("o", "f", "y")):
        yield noun + "es"
    yield noun + "'s"
    yield noun


@family("spelling", choices=3)
def spelling() -> Iterator[Item]:
    for entry in entries(words("language.yaml")["spellings"]):
        right, *wrong = entry.split()
        first, second, third = draw([right, *wrong], 3, "spelling", right)
        yield Item(right, f"Which is spelled correctly: {first}, {second} or {third}?", right, wrong)


@family("articles", labels=ARTICLES)
def articles() -> Iterator[Item]:
    found = {article: entries(text) for article, text in words("language.yaml")["articles"].items()}
    for article, texts in found.items():
        for text in draw(texts, min(map(len, found.values())), "articles"):
            yield Item(text, f"Which word goes before '{text}', 'a' or 'an'?", article, ())


@family("agreement", choices=3)
def agreement() -> Iterator[Item]:
    subjects = {"The boys": 0, "My sister": 1, "They": 0, "The teacher": 1, "We": 0, "She": 1}
    for entry in entries(words("language.yaml")["agreement"]):
        verb, rest = entry.split("=")
        forms = (verb, third_person(verb), _ing(verb))
        for subject in draw(subjects, 3, "agreement", verb):
            right = forms[subjects[subject]]
            stem = f"Which word is missing: {subject} ___ {rest}."
            yield Item(verb, stem, right, [form for form in forms if form != right])


def third_person(verb: str) -> str:
    """The form of he, she and it.

    >>> [third_person(verb) for verb in ("play", "carry", "watch", "go")]
    ['plays', 'carries', 'watches', 'goes']
    """
    return verb + "es" if verb.endswith("o") else regular_plural(verb)


def _ing(verb: str) -> str:
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    doubled = verb in ("run", "sit", "swim", "get", "stop")
    return verb + verb[-1] * doubled + "ing"


@family("parts-of-speech", labels=PARTS_OF_SPEECH, held_out=True)
def parts_of_speech() -> Iterator[Item]:
    for part in PARTS_OF_SPEECH:
        for word in entries(words("language.yaml")["parts_of_speech"][part]):
            yield Item(word, f"Which part of speech is the word '{word}'?", part, ())
