"""The registry of methods: one name, one class."""

from typing import Any

from pydantic import ValidationError

from abmll.errors import AbmllError, unknown_name
from abmll.methods.abmll import ABMLL
from abmll.methods.base import Method, Settings
from abmll.methods.first_order import FOMAML
from abmll.methods.lora import LoRA, Pretrained, Reptile, StructuredLoRA

__all__ = ["METHODS", "Method", "Settings", "method_class", "resolve_settings"]

METHODS: dict[str, type[Method]] = {
    "pretrained": Pretrained,
    "lora": LoRA,
    "structured": StructuredLoRA,
    "reptile": Reptile,
    "fomaml": FOMAML,
    "abmll": ABMLL,
}


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        AbmllError: no such method; names the nearest.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


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
        lines = [f"method.{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        raise AbmllError("\n".join(lines)) from error
