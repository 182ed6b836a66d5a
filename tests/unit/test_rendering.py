"""Templates that others wrote: what they take is bounded, what they see is their values."""

import os
import time
from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.prompts import rendering
from abmll.prompts.encode import Encoder
from tests.tiny import tiny_tasks, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = tiny_tasks()[0].train[0]
HOGS = {
    "a loop of 10^9": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a number that is computed on compiling": "{{ 10 ** (10 ** 10) }}",
    "a text of 10^10": "{{ 'x' * 10 ** 10 }}",
    "a text that doubles": (
        "{% set x = namespace(y='x' * 999) %}{% for i in range(60) %}{% set x.y = x.y ~ x.y %}{% endfor %}"
    ),
    "padding": "{{ '{:>9999999999}'.format(1) }}",
    "a long text": "{{ 'x' * 9999999 }}",
}


@pytest.mark.parametrize("hog", HOGS.values(), ids=HOGS)
def test_trust_45_a_template_that_takes_too_much_is_stopped_in_time_and_the_next_one_works(
    hog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    began = time.perf_counter()
    with pytest.raises(AbmllError, match=r"likelihood\.template .*(was stopped|MiB|longer than)"):
        Encoder(TOKENIZER, template=hog + "{{ question }}")(QUESTION)
    assert time.perf_counter() - began < 5  # the machine may be busy
    assert Encoder(TOKENIZER, template="{{ question }}").prompt(QUESTION) == QUESTION.question


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (HOGS["a loop of 10^9"], "was stopped"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe|underscore"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_trust_45_a_hostile_chat_template_is_refused(hostile: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = hostile
    with pytest.raises(AbmllError, match=f"chat template fails: .*({said})"):
        Encoder(tokenizer, template="chat").prompt(QUESTION)


def test_a_chat_template_gives_what_the_tokenizer_itself_makes_of_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{%- for m in messages %}\n  {% generation %}{{ m.content | tojson }}{% endgeneration %}\n"
        "{% if loop.last %}{% break %}{% endif %}{%- endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    plain = Encoder(tokenizer).prompt(QUESTION)
    message = [{"role": "user", "content": plain}]
    expected = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert "<|bos|>" in expected
    assert Encoder(tokenizer, template="chat").prompt(QUESTION) == expected


def test_trust_47_a_template_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    rendering._end_child()
    rendering.render("{{ a }}", {"a": 1})
    child = rendering._children[os.getpid()].process.pid
    assert b"hf_planted" not in Path(f"/proc/{child}/environ").read_bytes()


def test_the_process_for_templates_ends_with_its_input_which_ends_with_its_parent() -> None:
    child = rendering._Child()
    assert child.ask({"kind": "own", "template": "a", "values": {}, "seconds": 2}) == {"text": "a"}
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(timeout=20) == 0
    child.end()
