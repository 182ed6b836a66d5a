"""The registry of methods: one name, one class."""

from typing import Any

from pydantic import ValidationError

from abmll.errors import AbmllError, unknown_name
from abmll.methods.abmll import ABMLL
from abmll.methods.base import Group, Method, Settings, Terms
from abmll.methods.core import CoreABMLL
from abmll.methods.first_order import FOMAML
from abmll.methods.lora import LoRA, Pretrained, Reptile, StructuredLoRA
from abmll.methods.rivals.anil import ANIL
from abmll.methods.rivals.imaml import IMAML
from abmll.methods.rivals.lift import LiFT
from abmll.methods.rivals.maml import MAML, MAMLenLLM
from abmll.methods.rivals.meta_sgd import MetaSGD
from abmll.methods.rivals.metaicl import MetaICL
from abmll.registry import Registry

__all__ = [
    "METHODS",
    "Group",
    "Method",
    "Settings",
    "Terms",
    "method_class",
    "register_method",
    "resolve_settings",
]


def _check_method(name: str, method: object) -> None:
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise AbmllError(f"method {name!r}: {method!r} is no subclass of abmll.Method")
    if missing := sorted(getattr(method, "__abstractmethods__", ())):
        raise AbmllError(f"method {name!r}: {method.__name__} does not define {', '.join(missing)}")
    if "default" not in method.presets:
        raise AbmllError(f"method {name!r}: {method.__name__}.presets has no 'default'")


METHODS: Registry[type[Method]] = Registry(
    "method",
    "abmll.methods",
    {
        "pretrained": Pretrained,
        "lora": LoRA,
        "structured": StructuredLoRA,
        "reptile": Reptile,
        "fomaml": FOMAML,
        "abmll": ABMLL,
        "core": CoreABMLL,
        "metaicl": MetaICL,
        "meta-sgd": MetaSGD,
        "anil": ANIL,
        "maml": MAML,
        "maml-en-llm": MAMLenLLM,
        "imaml": IMAML,
        "lift": LiFT,
    },
    check=_check_method,
    guide="docs/add-a-method.md",
)
"""Every method that a recipe can name in `method.name`."""


def register_method(name: str, method: type[Method]) -> None:
    """Let recipes name a method that is not the library's own, in this process.

    An installed package does without: it declares the class as an entry point of the group `abmll.methods`.

    Args:
        name: what `method.name` is then.
        method: a final subclass of `Method`; `abmll.testing.check_method(name)` tests it.

    Raises:
        AbmllError: the name is taken, or the class is no complete method.

    >>> register_method("reptile", METHODS["lora"])
    Traceback (most recent call last):
    abmll.errors.AbmllError: method 'reptile' is abmll's own; choose another name
    """
    METHODS.register(name, method)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        AbmllError: no such method; names the nearest. Or it is that of a package that cannot be used.
    """
    return METHODS.lookup(name)


def resolve_settings(name: str, preset: str = "default", given: dict[str, Any] | None = None) -> Settings:
    """Settings of a method: its defaults, then a preset, then what was given.

    Raises:
        AbmllError: unknown method, preset or setting, or a value out of range; says which and what is known.

    >>> resolve_settings("reptile", given={"inner_steps": 3}).outer_lr
    0.22
    """
    cls = method_class(name)
    if preset not in cls.presets:
        raise unknown_name(f"preset of {name}", preset, cls.presets)
    values = {**cls.presets[preset], **(given or {})}
    for key in values:
        if key not in cls.settings_class.model_fields:
            raise unknown_name(f"setting of method {name}", key, cls.settings_class.model_fields)
    try:
        return cls.settings_class(**values)
    except ValidationError as error:
        raise AbmllError("\n".join(map(_in_words, error.errors()))) from error


def _in_words(fault: Any) -> str:
    """A setting that cannot be, by name."""
    setting = ".".join(map(str, ("method", *fault["loc"])))
    return f"{setting}: {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"
