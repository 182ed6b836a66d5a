"""One row of every set of the catalogue in the layout of its own Parquet files, and the question it must become.

The rows are made up; names of columns and forms of values are those of the sources that the catalogue names.
"""

from dataclasses import dataclass, field
from typing import Any

ARC = {"text": ["oxygen", "iron", "salt"], "label": ["A", "B", "C"]}


@dataclass(frozen=True)
class Layout:
    """A row, the column that is varied to make other rows of it, and what the row means."""

    row: dict[str, Any]
    vary: str
    question: str
    choices: tuple[str, ...]
    answer: int
    context: str = ""
    types: dict[str, str] = field(default_factory=dict)


def _yes_no(row: dict[str, Any], vary: str, question: str, answer: int, context: str = "") -> Layout:
    return Layout(row, vary, question, ("no", "yes"), answer, context)


def _labelled(question: str, **more: Any) -> dict[str, Any]:
    return {"id": "q1", question: "Which is a metal?", "choices": ARC, "answerKey": "B", **more}


ENDINGS = ("eats.", "sleeps.", "flies.", "reads.")
LAYOUTS = {
    "aqua_rat": Layout(
        {"question": "2 + 3?", "options": ["A)4", "B)5", "C) 6"], "rationale": "Add.", "correct": "B"},
        "question",
        "2 + 3?",
        ("4", "5", "6"),
        1,
    ),
    "arc_challenge": Layout(_labelled("question"), "question", "Which is a metal?", ("oxygen", "iron", "salt"), 1),
    "arc_easy": Layout(
        {"id": "q", "question": "Metal?", "choices": {"text": ["tin", "air"], "label": ["1", "2"]}, "answerKey": "1"},
        "question",
        "Metal?",
        ("tin", "air"),
        0,
    ),
    "math_qa": Layout(
        {"Problem": "half of 5 ?", "Rationale": "", "options": "a ) 2.5 , b ) 1 , c ) none of these", "correct": "c"},
        "Problem",
        "half of 5 ?",
        ("2.5", "1", "none of these"),
        2,
    ),
    "medqa": Layout(
        {"id": "1", "sent1": "A cough?", "sent2": "", **{f"ending{n}": e for n, e in enumerate(ENDINGS)}, "label": 3},
        "sent1",
        "A cough?",
        ENDINGS,
        3,
    ),
    "openbookqa": Layout(_labelled("question_stem"), "question_stem", "Which is a metal?", tuple(ARC["text"]), 1),
    "qasc": Layout(
        _labelled("question", fact1="Iron is one.", fact2="", combinedfact="", formatted_question=""),
        "question",
        "Which is a metal?",
        tuple(ARC["text"]),
        1,
    ),
    "sciq": Layout(
        {
            "question": "A metal?",
            "distractor3": "salt",
            "distractor1": "oxygen",
            "distractor2": "wood",
            "correct_answer": "iron",
            "support": "Iron is a metal.",
        },
        "question",
        "A metal?",
        ("oxygen", "salt", "wood", "iron"),
        3,
    ),
    "art": Layout(
        {
            "observation_1": "It was dry.",
            "observation_2": "It was wet.",
            "hypothesis_1": "It rained.",
            "hypothesis_2": "The sun shone.",
            "label": 1,
        },
        "observation_1",
        "What happened in between?",
        ("It rained.", "The sun shone."),
        0,
        "Beginning: It was dry.\nEnding: It was wet.",
    ),
    "codah": Layout(
        {
            "id": 7,
            "question_category": 2,
            "question_propmt": "A hungry man",
            "candidate_answers": list(ENDINGS),
            "correct_answer_idx": 0,
        },
        "question_propmt",
        "A hungry man",
        ENDINGS,
        0,
    ),
    "commonsense_qa": Layout(
        _labelled("question", question_concept="metal"), "question", "Which is a metal?", tuple(ARC["text"]), 1
    ),
    "copa": Layout(
        {
            "premise": "It rained.",
            "choice1": "It got wet.",
            "choice2": "It got dry.",
            "question": "effect",
            "idx": 3,
            "label": 0,
        },
        "premise",
        "What happened as a RESULT?",
        ("It got wet.", "It got dry."),
        0,
        "It rained.",
    ),
    "hellaswag": Layout(
        {
            "ind": 4,
            "activity_label": "Baking",
            "ctx_a": "A man bakes.",
            "ctx_b": "he",
            "ctx": "[header] A man bakes [title] Bread. he",
            "endings": list(ENDINGS),
            "source_id": "s",
            "split": "train",
            "split_type": "indomain",
            "label": "2",
        },
        "activity_label",
        "Baking:  A man bakes. Bread. he",
        ENDINGS,
        2,
    ),
    "piqa": Layout(
        {"goal": "Cut bread.", "sol1": "With a spoon.", "sol2": "With a knife.", "label": 1},
        "goal",
        "Cut bread.",
        ("With a spoon.", "With a knife."),
        1,
    ),
    "social_i_qa": Layout(
        {
            "context": "Ann fell.",
            "question": "How is Ann?",
            "answerA": "glad",
            "answerB": "hurt",
            "answerC": "late",
            "label": 1,
        },
        "question",
        "How is Ann?",
        ("glad", "hurt", "late"),
        1,
        "Ann fell.",
    ),
    "swag": Layout(
        {
            "video-id": "v",
            "fold-ind": "1",
            "startphrase": "A man sits. He",
            "sent1": "A man sits.",
            "sent2": "He",
            "gold-source": "gold",
            **{f"ending{n}": e for n, e in enumerate(ENDINGS)},
            "label": 3,
        },
        "sent1",
        "A man sits. He",
        ENDINGS,
        3,
    ),
    "com2sense": _yes_no(
        {"id": "a", "sent": "Ice is cold.", "label": "True", "domain": "physical", "numeracy": "False"},
        "sent",
        "Ice is cold.",
        1,
    ),
    "csqa2": _yes_no({"id": "a", "question": "Is ice warm?", "answer": "no"}, "question", "Is ice warm?", 0),
    "mc_taco": _yes_no(
        {"sentence": "Ann slept.", "question": "How long?", "answer": "8 hours", "label": 1, "category": 0},
        "sentence",
        "How long?\nCandidate answer: 8 hours\nIs the candidate answer plausible?",
        1,
        "Ann slept.",
    ),
    "sen_making": Layout(
        {"sentence0": "He ate a stone.", "sentence1": "He ate bread.", "false": 0, "A": "x", "B": "y", "C": "z"},
        "sentence0",
        "Which of the two statements is against common sense?",
        ("He ate a stone.", "He ate bread."),
        0,
    ),
    "strategyqa": _yes_no(
        {"qid": "q", "term": "ice", "question": "Would ice float?", "answer": True, "facts": ["It does."]},
        "question",
        "Would ice float?",
        1,
    ),
    "boolq": _yes_no(
        {"question": "is it red", "answer": False, "passage": "It is blue."}, "question", "is it red", 0, "It is blue."
    ),
    "cicero": Layout(
        {
            "ID": "d-1",
            "Dialogue": ["A: Hi.", "B: I am hungry."],
            "Target": "I am hungry.",
            "Question": "What is the cause?",
            "Choices": list(ENDINGS),
            "Human Written Answer": [1],
            "Correct Answers": [1, 2],
        },
        "Target",
        "What is the cause?\nTarget: I am hungry.",
        ENDINGS,
        1,
        "A: Hi.\nB: I am hungry.",
    ),
    "cicero2": Layout(
        {
            "ID": "d-1",
            "Dialogue": ["A: Hi.", "B: I am hungry."],
            "Target": "I am hungry.",
            "Question": "What is the cause?",
            "Choices": list(ENDINGS),
            "Correct Answers": [2, 3],
        },
        "Target",
        "What is the cause?\nTarget: I am hungry.",
        ENDINGS,
        2,
        "A: Hi.\nB: I am hungry.",
    ),
    "cosmos_qa": Layout(
        {
            "id": "c",
            "context": "It rained .",
            "question": "Why ?",
            **{f"answer{n}": e for n, e in enumerate(ENDINGS)},
            "label": 2,
        },
        "question",
        "Why ?",
        ENDINGS,
        2,
        "It rained .",
    ),
    "dream": Layout(
        {
            "id": 0,
            "dialogue_id": "5-1",
            "dialogue": ["M: Hi.", "W: Hello."],
            "question": "Who speaks first?",
            "choice": ["A man.", "A woman."],
            "answer": "A man.",
        },
        "question",
        "Who speaks first?",
        ("A man.", "A woman."),
        0,
        "M: Hi.\nW: Hello.",
    ),
    "logiqa2": Layout(
        {"id": 1, "text": "All A are B.", "question": "So?", "options": list(ENDINGS), "answer": 1, "type": "{}"},
        "question",
        "So?",
        ENDINGS,
        1,
        "All A are B.",
    ),
    "mctest": Layout(
        {
            "idx": {"story": "mc500.train.0", "question": 0},
            "story": "A dog ran.\\newlineIt sat.",
            "question": "Who ran?",
            "answer_options": dict(zip("ABCD", ENDINGS, strict=True)),
            "answer": "D",
        },
        "question",
        "Who ran?",
        ENDINGS,
        3,
        "A dog ran.\nIt sat.",
    ),
    "multirc": _yes_no(
        {
            "paragraph": "A dog ran.",
            "question": "Who ran?",
            "answer": "A cat",
            "idx": {"paragraph": 0, "question": 0, "answer": 1},
            "label": 0,
        },
        "paragraph",
        "Who ran?\nCandidate answer: A cat\nIs the candidate answer correct?",
        0,
        "A dog ran.",
    ),
    "mutual": Layout(
        {"answers": "C", "options": list(ENDINGS), "article": "m : hello .", "id": "train_1"},
        "article",
        "Which reply should come next in the dialogue?",
        ENDINGS,
        2,
        "m : hello .",
    ),
    "pubmedqa": Layout(
        {
            "pubid": 1,
            "question": "Does it help?",
            "context": {"contexts": ["We asked.", "It did."], "labels": ["A", "B"], "meshes": ["x"]},
            "long_answer": "It does.",
            "final_decision": "maybe",
        },
        "question",
        "Does it help?",
        ("yes", "no", "maybe"),
        2,
        "We asked.\nIt did.",
    ),
    "quail": Layout(
        {
            "id": "f_1",
            "context_id": "f",
            "question_id": "1",
            "domain": "fiction",
            "metadata": {"author": "A", "title": "T", "url": "u"},
            "context": "He left.",
            "question": "Who left?",
            "question_type": "Who",
            "answers": list(ENDINGS),
            "correct_answer_id": 0,
        },
        "question",
        "Who left?",
        ENDINGS,
        0,
        "He left.",
    ),
    "race": Layout(
        {
            "example_id": "high1.txt",
            "article": "He left.",
            "answer": "B",
            "question": "He _ .",
            "options": list(ENDINGS),
        },
        "question",
        "He _ .",
        ENDINGS,
        1,
        "He left.",
    ),
    "reclor": Layout(
        {"context": "All A are B.", "question": "So?", "answers": list(ENDINGS), "label": 3, "id_string": "train_0"},
        "question",
        "So?",
        ENDINGS,
        3,
        "All A are B.",
    ),
    "definite_pronoun_resolution": Layout(
        {"sentence": "Ann met Bea as she left.", "pronoun": "she", "candidates": ["Ann", "Bea"], "label": 1},
        "sentence",
        'Ann met Bea as she left.\nWhat does "she" refer to?',
        ("Ann", "Bea"),
        1,
    ),
    "superglue_wsc": _yes_no(
        {
            "text": "Ann left as she was ill.",
            "span1_index": 0,
            "span2_index": 3,
            "span1_text": "Ann",
            "span2_text": "she",
            "idx": 0,
            "label": 1,
        },
        "text",
        'Ann left as she was ill.\nDoes "she" refer to "Ann"?',
        1,
    ),
    "winogrande": Layout(
        {"sentence": "Ann, not Bea, was ill, so _ left.", "option1": "Ann", "option2": "Bea", "answer": "1"},
        "sentence",
        "Ann, not Bea, was ill, so _ left.",
        ("Ann", "Bea"),
        0,
    ),
    "quarel": Layout(
        {
            "id": "Q",
            "answer_index": 1,
            "logical_forms": ["(x)"],
            "logical_form_pretty": "x",
            "world_literals": {"world1": ["ice"], "world2": ["sand"]},
            "question": "Where is it slower? (A) ice (B) sand",
        },
        "question",
        "Where is it slower?",
        ("ice", "sand"),
        1,
    ),
    "quartz": Layout(
        _labelled("question", para="Iron is heavy.", para_id="p", para_anno={"cause_prop": "x"}),
        "question",
        "Which is a metal?",
        tuple(ARC["text"]),
        1,
        "Iron is heavy.",
    ),
    "wiqa": Layout(
        {
            "question_stem": "suppose it rains, how will it affect MORE mud.",
            "question_para_step": ["Rain falls", "Mud forms"],
            "answer_label": "more",
            "answer_label_as_choice": "A",
            "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
            "metadata_path_len": 1,
        },
        "question_stem",
        "suppose it rains, how will it affect MORE mud.",
        ("more", "less", "no effect"),
        0,
        "Rain falls\nMud forms",
    ),
}
