"""The base models: loaded from a hub id, a folder or a GGUF file, or built with random weights in a known shape."""

from abmll.models.language_model import LanguageModel, count_parameters, weight_bytes
from abmll.models.load import load_model, random_model
from abmll.models.shapes import SHAPES
from abmll.models.skeleton import load_skeleton

__all__ = ["SHAPES", "LanguageModel", "count_parameters", "load_model", "load_skeleton", "random_model", "weight_bytes"]
