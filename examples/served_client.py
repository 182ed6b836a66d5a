"""Believable probabilities from somebody else's server: what `abmll export --calibrated` wrote, applied by a client.

    python served_client.py http://localhost:8000 served/calibration.json rows.jsonl > answers.jsonl

The server is any that answers POST /v1/completions with log-probabilities (llama.cpp's, vLLM). Rows are questions with
choices, as {"question": "Is it late?", "choices": ["no", "yes"]}. Nothing but Python is needed.
"""

import json
import math
import sys
import urllib.request
from pathlib import Path


def probabilities(scores, calibration):
    """Scores of the choices -> their probabilities; see `use` in calibration.json."""
    q = softmax([score / calibration["temperature"] for score in scores])
    if (learned := calibration.get("task_temperature")) is None:
        return q
    pairs = list(zip(learned["log_temperatures"], learned["weights"], strict=True))
    parts = [[w * p for p in softmax([math.log(max(p, 1e-30)) * math.exp(-x) for p in q])] for x, w in pairs]
    return [sum(column) for column in zip(*parts, strict=True)]


def softmax(scores):
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def prompt_of(row):
    """The template `plain` of letters; a run with a template of its own has it in calibration.json."""
    context = row["context"] + "\n\n" if row.get("context") else ""
    options = "".join(f"{letter}) {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"{context}Question: {row['question']}\n{options}Answer:"


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter_scores(url, prompt, count, model="mine"):
    """Log-probabilities of the letters as the next token; for one that the server does not list, the least listed."""
    asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20}
    request = urllib.request.Request(
        url + "/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        listed = json.load(reply)["choices"][0]["logprobs"]["top_logprobs"][0]
    return [listed.get(" " + letter, min(listed.values())) for letter in LETTERS[:count]]


def main(url, calibration_file, rows_file):
    calibration = json.loads(Path(calibration_file).read_text(encoding="utf-8"))
    likelihood = calibration["likelihood"]
    if (likelihood["kind"], likelihood["template"]) != ("letter", "plain"):
        sys.exit("this client asks for letters by the plain template; adapt with likelihood.kind=letter")
    for row in map(json.loads, Path(rows_file).read_text(encoding="utf-8").splitlines()):
        scores = letter_scores(url, prompt_of(row), len(row["choices"]))
        print(json.dumps({**row, "probabilities": probabilities(scores, calibration)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
