"""Base models that own rows are adapted to without any training: which are known to work, and the run made of one.

Importing this module loads no model library: the command line looks names up with it.
"""

import glob
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from abmll.config import RunConfig, check, load_config
from abmll.errors import AbmllError
from abmll.files import open_regular, write_text

FILE = Path(__file__).with_name("bases.yaml")
CONFIG_FILE = "config.yaml"
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w./-]+\.gguf)?")
NO_OWNERS = ("runs",)
"""First parts of paths that are folders of this library, whether they are there or not, and no owners on the hub."""
OF_PARTS = re.compile(r"\d+-of-\d+")
PART = re.compile(r"-\d+-of-\d+$|[^A-Za-z0-9._-]+")
NEW_LORA = {"name": "pretrained", "inner_lr": 3e-4}
"""How a base model is adapted: a LoRA that begins at zero, at the rate of the pilot (1.5 billion weights, letters).

At 1e-3 the loss of `cloze` was not finite there; the 1.6e-3 of `pretrained` is of 135 million weights.
"""
LONGER = {"steps": 20, "batch_size": 2, "samples": 1}


@dataclass(frozen=True)
class Base:
    """A base model that is known to work well for own rows.

    Attributes:
        name: short; commands take it for the run.
        source: of `model.source`.
        parameters: their number, in words.
        gigabytes: of the file or folder.
        licence: its SPDX name.
        likelihood: what answers are read by.
        languages: that it reads.
        measured: whether it was measured, and where that stands.
        sha256: of the file that was measured.
        run: adapter that comes along for it, if there is one.
    """

    name: str
    source: str
    parameters: str
    gigabytes: float
    licence: str
    likelihood: str
    languages: str
    measured: str
    sha256: str | None = None
    run: str | None = None

    @property
    def command(self) -> str:
        """What adapts it to labelled rows."""
        return f"abmll adapt {self.run or self.name} my.csv --save mytask"


@cache
def known_bases() -> tuple[Base, ...]:
    """The bases that `abmll bases` lists.

    >>> [base.name for base in known_bases()][:2]
    ['smollm2-135m', 'qwen2.5-coder-0.5b']
    """
    return tuple(Base(**entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8")))


def find_base(run: Path | str) -> str | None:
    """The model source that a user means where a run is asked for; None if it is no base model.

    A name of `abmll bases`; here a GGUF file, parts of one, or a folder with a model; or an id of the hub, that of a
    GGUF file in it included. Whether the hub has it is found out when it is loaded.

    >>> find_base("smollm2-135m"), find_base("runs/mine")
    ('smollm2-135m-instruct', None)
    """
    text, path = str(run), Path(run).expanduser()
    named = {base.name.lower(): base.source for base in known_bases()}
    if text.lower() in named:
        return named[text.lower()]
    if path.is_dir():
        return text if (path / "config.json").is_file() and not (path / CONFIG_FILE).is_file() else None
    if path.is_file():
        return text if _is_gguf(path) else None
    if glob.has_magic(text) and glob.glob(str(path)):  # noqa: PTH207
        return text
    owner = text.partition("/")[0]
    is_path = owner in NO_OWNERS or Path(owner).exists()
    return text if HUB.fullmatch(text) and not is_path else None


def base_name(source: str) -> str:
    """What a command takes for the base model of a run: its name in `abmll bases`, or else the source itself.

    >>> base_name("smollm2-135m-instruct"), base_name("/models/mine.gguf")
    ('smollm2-135m', '/models/mine.gguf')
    """
    return next((base.name for base in known_bases() if base.source == source), source)


def _is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file by its beginning, or a part of one by its name."""
    if OF_PARTS.search(path.name):
        return True
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def is_untouched(folder: Path) -> bool:
    """Whether a run directory holds nothing but the configuration that `base_run` wrote."""
    if [path.name for path in folder.iterdir()] != [CONFIG_FILE]:
        return False
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    source = load_config(RunConfig, folder / CONFIG_FILE).model.source
    return source is not None and text == base_config(source).to_sealed_yaml()


def base_config(source: str) -> RunConfig:
    """The run that a base model makes without training: a LoRA from zero on q and v, rank 8, likelihood by the rows.

    Raises:
        AbmllError: no configuration can name such a source.

    >>> base_config("Qwen/Qwen2.5-Coder-1.5B-Instruct").likelihood.kind
    'auto'
    """
    sections = {
        "name": run_name(source),
        "note": "A base model as it is: nothing was meta-trained.",
        "model": {"source": source},
        "likelihood": {"kind": "auto"},
        "method": NEW_LORA,
        "adaptation": LONGER,
    }
    return check(RunConfig, sections, source)


def run_name(source: str) -> str:
    """What the run directory of a base model is called.

    >>> run_name("Qwen/Some-GGUF/some-q4_k_m-00001-of-00002.gguf")
    'some-q4_k_m'
    """
    last = Path(source).expanduser().name
    stem = last.removesuffix(".gguf") if last.endswith(".gguf") else last
    return PART.sub("", stem).strip("._-")[:80] or "base"


def base_run(source: str) -> Path:
    """`runs/NAME` of a base model, made with its configuration unless it is there.

    Raises:
        AbmllError: a run of another model has that name.
    """
    config = base_config(source)
    folder = Path("runs") / config.name
    if not (folder / CONFIG_FILE).is_file():
        write_text(folder / CONFIG_FILE, config.to_sealed_yaml())
    elif load_config(RunConfig, folder / CONFIG_FILE).model.source != config.model.source:
        raise AbmllError(f"{folder}: is a run of another model than {source}; give the folder itself, or rename it")
    return folder
