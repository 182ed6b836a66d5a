"""Question -> token ids: the seam between prompt and answer, templates, and what gives way where space is short."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from abmll.errors import AbmllError
from abmll.prompts import cutting
from abmll.prompts import encode as prompts
from abmll.prompts.encode import LETTERS, EncodedQuestion, Encoder
from abmll.prompts.seam import ids_of_all, split_at_seam
from abmll.question import Question
from tests.tiny import tiny_tasks, tiny_tokenizer

TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("bpe", "sentencepiece")}
ODD = Question(
    "odd",
    "Which  one is\nthe river?",
    ("Zürich", "a", "A river", "A garden", " two  spaces ", "🦆", ".", "河", "A", "the river, the river and the horse"),
    3,
    "A moon above the garden.\nAnd a stone!  ",
)
QUESTIONS = (ODD, *(task.train[i] for task in tiny_tasks() for i in range(2)))
LONG = Question(
    "long", "which way is the sun?", ("left or right", "up", "seven eight"), 0, " ".join(f"river{i}" for i in range(60))
)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def plain_prompt(question: Question, kind: str) -> str:
    """The plain template, written a second time."""
    head = f"{question.context}\n\n" if question.context else ""
    lines = [f"Question: {question.question}"]
    if kind == "letter":
        lines += [f"{letter}) {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return head + "\n".join([*lines, "Answer:"])


def answers_of(question: Question, kind: str) -> list[str]:
    return list(LETTERS[: len(question.choices)]) if kind == "letter" else list(question.choices)


def whole(encoded: EncodedQuestion) -> list[tuple[int, ...]]:
    return [encoded.prefix + continuation for continuation in encoded.continuations]


# The seam


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_trust_16_ids_are_those_of_the_whole_text_cut_where_the_prompt_ends(
    tokenizer: PreTrainedTokenizerFast, question: Question, kind: str
) -> None:
    encoded = Encoder(tokenizer, kind)(question)
    prompt = plain_prompt(question, kind)
    assert whole(encoded) == [ids_of(tokenizer, f"{prompt} {answer}") for answer in answers_of(question, kind)]
    assert encoded.prefix == ids_of(tokenizer, prompt), "nothing merges over ': ', so the prompt stays whole"
    assert encoded.tokens == len(encoded.prefix) + sum(len(c) for c in encoded.continuations)


@pytest.mark.parametrize(
    ("prompt", "separator", "answers"),
    [
        ("Answer: ", "", ("yes", "no", "A", "Zürich")),  # the space belongs to the answer's first token
        ("Is it (", "", ("A", "B")),
        ("the riv", "", ("er", "al", "er er")),  # the seam in the middle of a word
        ("the river and the sn", "", ("ow", "ow and rain")),
        ("Answer:", " ", ("the river", "the garden", "the")),  # choices that begin alike, one the start of another
        ("Answer:", "", (" ", "  ", "\n")),
        ("", "", ("river", "rain")),
    ],
)
def test_trust_16_no_token_is_torn_at_the_seam(
    tokenizer: PreTrainedTokenizerFast, prompt: str, separator: str, answers: tuple[str, ...]
) -> None:
    prefix, continuations = split_at_seam(lambda text: list(ids_of(tokenizer, text)), prompt, separator, answers)
    rows = [ids_of(tokenizer, prompt + separator + answer) for answer in answers]
    alone = ids_of(tokenizer, prompt)
    assert [prefix + continuation for continuation in continuations] == rows
    longer = len(prefix) + 1  # the prompt keeps all it can
    assert len(alone) < longer or any(row[:longer] != alone[:longer] for row in rows)


@pytest.mark.parametrize("seed", range(8))
def test_trust_16_of_a_long_prompt_the_end_alone_is_tokenised_for_each_answer(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    rng, asked = np.random.default_rng(seed), list[str]()
    words = [
        "river",
        "Zürich",
        "sn",
        "ow",
        "  ",
        "\n",
        "\n\n",
        "42",
        "don't",
        "日本語",
        "A)",
        "\t",
        "é",
        "▁",
        "<s>",
        "rain",
    ]
    prompt = "".join(rng.choice(words) + rng.choice(["", " ", " ", "\n"]) for _ in range(600)) + "Answer:"
    answers = [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(6)]

    def ids(text: str) -> list[int]:
        asked.append(text)
        return list(ids_of(tokenizer, text))

    def inner(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = [list(ids_of(tokenizer, prompt + " " + answer)) for answer in answers]
    assert ids_of_all(ids, prompt, " ", answers, inner) == rows
    if tokenizer is TOKENIZERS["bpe"]:
        assert len(asked) == 2
        assert max(map(len, asked)) <= len(prompt)
    assert split_at_seam(ids, prompt, " ", answers, inner) == split_at_seam(ids, prompt, " ", answers)


def test_trust_16_a_tokenizer_that_reads_the_end_otherwise_alone_reads_whole_texts() -> None:
    """One that begins every text with a sign of its own, which a part must not have."""
    prompt, answers = "a word and " * 200, ("b", "c", "d", "e")
    found = ids_of_all(lambda text: [0, *map(ord, text)], prompt, " ", answers, lambda text: [1, *map(ord, text)])
    assert found == [[0, *map(ord, f"{prompt} {answer}")] for answer in answers]


def test_trust_16_a_space_at_the_end_of_a_prompt_moves_into_the_answer_s_token() -> None:
    bpe = TOKENIZERS["bpe"]
    prefix, continuations = split_at_seam(lambda text: list(ids_of(bpe, text)), "Answer: ", "", ("yes", "A"))
    assert prefix == ids_of(bpe, "Answer:")
    assert [bpe.convert_ids_to_tokens(c) for c in continuations] == [["Ġyes"], ["ĠA"]]


def test_the_sentencepiece_dummy_prefix_and_bos_stand_once_at_the_start() -> None:
    llama = TOKENIZERS["sentencepiece"]
    encoded = Encoder(llama)(Question("q", "Where?", ("river", "garden"), 0))
    assert [row.count(llama.bos_token_id) for row in whole(encoded)] == [1, 1]
    assert [llama.convert_ids_to_tokens(c) for c in encoded.continuations] == [["▁river"], ["▁garden"]]


@pytest.mark.parametrize("kind", ["cloze", "letter"])
def test_an_eos_that_the_tokenizer_appends_is_no_part_of_an_answer(kind: str) -> None:
    closing = tiny_tokenizer("bpe")
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 1), ("<|eos|>", 2)]
    )
    question = QUESTIONS[1]
    assert closing("x")["input_ids"][-1] == closing.eos_token_id
    got, expected = Encoder(closing, kind)(question), Encoder(TOKENIZERS["bpe"], kind)(question)
    assert got == replace(expected, prefix=(1, *expected.prefix))


@pytest.mark.parametrize(
    ("normalisation", "lengths"),
    [("sum", (1.0, 1.0, 1.0)), ("byte", (7.0, 3.0, 5.0)), ("token", None)],
)
def test_lengths_are_one_or_tokens_or_bytes(tokenizer: PreTrainedTokenizerFast, normalisation, lengths) -> None:
    question = Question("q", "Where?", ("Zürich", "yes", " up  "), 0)
    encoded = Encoder(tokenizer, "cloze", normalisation)(question)
    prompt = ids_of(tokenizer, "Question: Where?\nAnswer:")
    rows = [ids_of(tokenizer, f"Question: Where?\nAnswer: {choice}") for choice in question.choices]
    assert encoded.lengths == (lengths or tuple(float(len(row) - len(prompt)) for row in rows))
    assert Encoder(tokenizer, "letter", normalisation)(question).lengths == (1.0, 1.0, 1.0)


# Letters


def test_every_letter_is_one_token_and_they_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    question = Question("q", "Which?", tuple(f"c{i}" for i in range(26)), 25)
    letters = Encoder(tokenizer, "letter", max_tokens=2000)(question).continuations
    assert [tokenizer.decode(c).strip() for c in letters] == list(LETTERS)
    assert {len(c) for c in letters} == {1}


def test_more_options_than_letters_is_an_error_for_letter_only(tokenizer: PreTrainedTokenizerFast) -> None:
    question = Question("q7", "Which?", tuple(f"choice {i}" for i in range(27)), 26)
    with pytest.raises(AbmllError, match=r"'q7' has 27 choices.*use cloze"):
        Encoder(tokenizer, "letter")(question)
    assert len(Encoder(tokenizer, "cloze")(question).continuations) == 27


def characters_only() -> PreTrainedTokenizerFast:
    """Byte-level without merges: " A" takes two tokens."""
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words_only() -> PreTrainedTokenizerFast:
    """A vocabulary without letters: each of them is the unknown token."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "Question": 1, "Answer": 2, ":": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("build", [characters_only, words_only])
def test_letters_that_are_no_single_tokens_of_their_own_are_an_error(build) -> None:
    with pytest.raises(AbmllError, match=r"'letter'.*'tiny0-0'.*likelihood\.kind=cloze"):
        Encoder(build(), "letter")(QUESTIONS[1])


@pytest.mark.parametrize("choices", [("yes", ""), ("", "no")])
def test_trust_15_an_answer_without_a_token_of_its_own_is_an_error(
    tokenizer: PreTrainedTokenizerFast, choices: tuple[str, ...]
) -> None:
    encoder = Encoder(tokenizer, template="{{ question }}\n")
    with pytest.raises(AbmllError, match="'empty': a choice has no token of its own"):
        encoder(Question("empty", "x", choices, 0))


# Templates


def test_the_chat_template_goes_around_the_plain_prompt_and_no_space_before_the_answer() -> None:
    bpe, question = TOKENIZERS["bpe"], QUESTIONS[-1]
    encoder = Encoder(bpe, "letter", template="chat")
    prompt = f"<|user|>\n{plain_prompt(question, 'letter')}<|end|>\n<|assistant|>\n"
    assert encoder.prompt(question) == prompt
    assert whole(encoder(question)) == [ids_of(bpe, prompt + letter) for letter in "ABCDEFG"[: len(question.choices)]]


def test_a_chat_template_that_writes_bos_gets_no_second_one() -> None:
    llama = tiny_tokenizer("sentencepiece")
    llama.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    encoded = Encoder(llama, template="chat")(QUESTIONS[1])
    assert encoded.prefix[0] == llama.bos_token_id
    assert llama.bos_token_id not in encoded.prefix[1:]


@pytest.mark.parametrize(
    "chat_template", [None, "{{ raise_exception('no users here') }}", "{{ messages[0]['content'] + 1 }}", "{{ 1/0 }}"]
)
def test_a_chat_template_that_is_missing_or_fails_is_an_error(chat_template: str | None) -> None:
    llama = tiny_tokenizer("sentencepiece")
    llama.chat_template = chat_template
    with pytest.raises(AbmllError, match="'chat'"):
        Encoder(llama, template="chat")(QUESTIONS[1])


def test_an_own_template_sees_context_question_choices_and_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    own = "{{ context }}|{{ question|upper }}|{{ choices|join('/') }}|{{ letters[1] }}"
    question = Question("q", "why?", ("up", "left"), 0, "Read.")
    encoder = Encoder(tokenizer, template=own)
    assert encoder.prompt(question) == "Read.|WHY?|up/left|B"
    assert whole(encoder(question)) == [ids_of(tokenizer, f"Read.|WHY?|up/left|B {c}") for c in ("up", "left")]


@pytest.mark.parametrize("end", [" ", "\n", "\n\n"])
def test_an_own_template_that_ends_in_white_space_gets_no_second_space(
    tokenizer: PreTrainedTokenizerFast, end: str
) -> None:
    encoded = Encoder(tokenizer, template="{{ question }}" + end)(Question("q", "why?", ("up", "left"), 0))
    assert whole(encoded) == [ids_of(tokenizer, f"why?{end}up"), ids_of(tokenizer, f"why?{end}left")]


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ question.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ choices.append('x') }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_trust_45_a_hostile_template_is_refused(hostile: str) -> None:
    with pytest.raises(AbmllError, match=r"likelihood\.template"):
        Encoder(TOKENIZERS["bpe"], template=hostile + "{{ question }}")(QUESTIONS[1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{{ question", "not a valid template"),
        ("{% if %}", "not a valid template"),
        ("{{ question|shout }}", "shout"),
        ("{{" + "(" * 600 + "1" + ")" * 600 + "}}", "not a valid template"),
        ("{{ contxt }} {{ question }}", "'contxt' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ choices[9].x }}", "'tiny0-0'"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_fails_says_which_and_why(wrong: str, said: str) -> None:
    with pytest.raises(AbmllError, match=r"likelihood\.template") as caught:
        Encoder(TOKENIZERS["bpe"], template=wrong)(QUESTIONS[1])
    assert said in str(caught.value)


# Truncation


def longest(encoded: EncodedQuestion) -> int:
    return max(len(row) for row in whole(encoded))


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("max_tokens", [61, 80, 113, 150])
def test_trust_15_the_longest_end_of_the_context_that_fits_is_kept(
    tokenizer: PreTrainedTokenizerFast, kind: str, max_tokens: int
) -> None:
    starts = [match.start() for match in re.finditer(r"\S+", LONG.context)]  # slow: every end, longest first
    unlimited = Encoder(tokenizer, kind, max_tokens=10_000)
    ends = (unlimited(replace(LONG, context=LONG.context[start:])) for start in starts)
    expected = next(end for end in ends if longest(end) <= max_tokens)
    got = Encoder(tokenizer, kind, max_tokens=max_tokens)(LONG)
    assert (got.prefix, got.continuations) == (expected.prefix, expected.continuations)
    assert got.truncated
    assert "river59" in tokenizer.decode(got.prefix), "the end of the context stays"


@pytest.mark.parametrize("max_tokens", [61, 80, 113, 150])
@pytest.mark.parametrize("cut", ["middle", "end"])
def test_the_middle_or_the_end_of_a_long_context_is_left_out_where_that_is_said(
    tokenizer: PreTrainedTokenizerFast, cut: prompts.Cut, max_tokens: int
) -> None:
    words = re.findall(r"\S+\s*", LONG.context)
    kept = []  # slow: every number of words, most first
    for count in range(len(words) - 1, 0, -1):
        head = count if cut == "end" else count // 2
        tail = words[len(words) - (count - head) :] if count > head else []
        kept.append("".join(words[:head]).rstrip() if cut == "end" else "".join([*words[:head], "[...] ", *tail]))
    unlimited, limited = Encoder(tokenizer, max_tokens=10_000), Encoder(tokenizer, max_tokens=max_tokens)
    limited.cut = cut
    expected = next(one for text in kept if longest(one := unlimited(replace(LONG, context=text))) <= max_tokens)
    got = limited(LONG)
    assert (got.prefix, got.continuations) == (expected.prefix, expected.continuations)
    assert got.truncated
    text = tokenizer.decode(got.prefix)
    assert (words[0].strip() in text, words[-1].strip() in text) == (True, cut == "middle")


@pytest.mark.parametrize("cut", ["start", "middle", "end"])
def test_a_script_without_spaces_is_cut_within_its_runs(tokenizer: PreTrainedTokenizerFast, cut: prompts.Cut) -> None:
    text = "".join(chr(0x4E00 + n) for n in range(200))
    encoder = Encoder(tokenizer, max_tokens=120)
    encoder.cut = cut
    got = encoder(replace(LONG, context=text))
    assert 60 < longest(got) <= 120
    kept = tokenizer.decode(got.prefix)
    assert (text[:9] in kept, text[-9:] in kept) == {
        "start": (False, True),
        "middle": (True, True),
        "end": (True, False),
    }[cut]


def test_a_long_context_is_cut_in_few_trials() -> None:
    context = " ".join("w" * (i % 7 + 1) for i in range(5000))
    trials: list[str] = []

    def size(text: str) -> int:
        trials.append(text)
        return 40 + sum(len(word) for word in text.split())

    whole = size(context)
    trials.clear()
    kept = cutting.longest_fitting(context, "start", whole, size, 500)
    assert len(trials) <= 6  # halving takes 13,
    assert sum(map(len, trials)) < len(context) / 4  # and reads as much as the context
    assert size(kept) <= 500
    assert size(context[: -len(kept)].split()[-1] + " " + kept) > 500


def test_another_answer_may_be_the_longest_once_the_context_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(encoder: Encoder, text: str) -> list[int]:  # a token a letter; uncut, "no" is three tokens shorter
        return [ord(letter) for letter in (text[3:] if text.startswith("S") and text.endswith("no") else text)]

    monkeypatch.setattr(Encoder, "_ids", ids)
    question = Question("run", "?", ("no", "y"), 0, context="S" + "x" * 100)
    encoder = Encoder(TOKENIZERS["bpe"], max_tokens=80)
    got = encoder(question)
    kept = "".join(map(chr, got.prefix)).split("\n")[0]
    prompt = encoder.prompt(replace(question, context=kept))
    assert len(ids(encoder, prompt + " no")) == 80, "of a run without spaces the longest end is kept"
    assert longest(got) == 80


words = st.lists(st.text("aeinrst\u00e9河 ", min_size=1, max_size=9), max_size=30)


@settings(max_examples=40, deadline=None)
@given(context=words, separator=st.sampled_from([" ", "\n", "  "]), max_tokens=st.integers(45, 90))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_trust_15_whatever_the_context_the_rest_fits_and_is_whole(kind, context, separator, max_tokens) -> None:
    tokenizer, question = TOKENIZERS[kind], replace(LONG, context=separator.join(context))
    encoder = Encoder(tokenizer, max_tokens=max_tokens)
    got, bare = encoder(question), Encoder(tokenizer)(replace(question, context=""))
    assert longest(bare) <= 45
    assert longest(got) <= max_tokens
    assert got.continuations == bare.continuations
    assert got.truncated == (longest(Encoder(tokenizer, max_tokens=10_000)(question)) > max_tokens)
    assert encoder.truncated == ({question} if got.truncated else set())


def test_a_context_without_spaces_is_cut_too_and_not_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    question = replace(LONG, context="河" * 60 + "川。 終")
    got = Encoder(tokenizer, max_tokens=120)(question)
    assert 115 < longest(got) <= 120
    assert "河河河川。 終" in tokenizer.decode(got.prefix)


@pytest.mark.parametrize("context", ["", "One two three."])
@pytest.mark.parametrize("kind", ["cloze", "letter"])
def test_trust_15_stem_and_choices_stay_whole_even_where_they_alone_are_too_long(
    tokenizer: PreTrainedTokenizerFast, kind: str, context: str
) -> None:
    encoder = Encoder(tokenizer, kind, max_tokens=8)
    question = replace(LONG, context=context)
    got = encoder(question)
    bare = Encoder(tokenizer, kind)(replace(question, context=""))
    assert (got.prefix, got.continuations) == (bare.prefix, bare.continuations)
    assert longest(got) > 8
    assert got.truncated == bool(context)
    assert len(encoder.truncated) == (1 if context else 0)


def test_truncated_questions_of_two_tasks_are_two_even_with_one_id(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, max_tokens=60)
    other = replace(LONG, question="which way is the moon?")
    for question in (LONG, other, LONG, replace(LONG, context="short")):
        encoder(question)
    assert encoder.truncated == {LONG, other}


def test_a_question_beyond_the_model_s_positions_is_an_error_and_one_at_the_limit_is_not(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    question = replace(LONG, context="")
    needed = longest(Encoder(tokenizer)(question))
    assert longest(Encoder(tokenizer, max_tokens=8, limit=needed)(question)) == needed
    with pytest.raises(AbmllError, match=rf"'long' needs {needed} tokens.*has {needed - 1} positions"):
        Encoder(tokenizer, limit=needed - 1)(question)


def test_the_model_s_positions_cut_a_context_too(tokenizer: PreTrainedTokenizerFast) -> None:
    assert longest(Encoder(tokenizer, max_tokens=512, limit=100)(LONG)) <= 100


# Cache and keys


def test_a_question_is_encoded_once(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    first = encoder(ODD)
    assert encoder(replace(ODD)) is first
    assert encoder(replace(ODD, context="")) is not first
    assert encoder(replace(ODD, answer=0)).answer == 0
    assert encoder(replace(ODD, answer=None)).answer == -1


def test_keys_name_a_question_by_all_that_the_model_reads(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    variants = [ODD, replace(ODD, id="x"), replace(ODD, question="x"), replace(ODD, choices=("a", "b"), answer=0)]
    variants += [replace(ODD, context=""), replace(ODD, choices=("b", "a"), answer=0)]
    keys = [encoder(question).key for question in variants]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**32 for key in keys)
    assert encoder(replace(ODD, answer=None)).key == encoder(ODD).key
    assert encoder(QUESTIONS[1]).key == 943583453, "noise would change between releases"
