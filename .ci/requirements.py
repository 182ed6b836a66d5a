"""Print what pyproject.toml asks for, the tools for tests included, one requirement per word.

Spaces go, so the comparisons of a marker stand in parentheses: (a == "b") and (c == "d").
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
print(*(r.replace(" ", "") for r in project["dependencies"] + project["optional-dependencies"]["dev"]))
