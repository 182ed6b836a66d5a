"""A model's architecture without its weights: for counting, in no memory."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from abmll.models.gguf_header import read_header
from abmll.models.gguf_weights import read_config
from abmll.models.load import find_folder, find_gguf
from abmll.models.pretrained import FAILURES, explain
from abmll.models.shapes import shape_config


def load_skeleton(source: str | None, *, shape: str | None = None, revision: str | None = None) -> PreTrainedModel:
    """The model on the meta device: every layer and shape, no weight.

    Raises:
        AbmllError: the configuration cannot be had, or needs remote code.

    >>> load_skeleton(None, shape="llama-3-8b").num_parameters()
    8030261248
    """
    if source is None:
        assert shape is not None
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(shape_config(shape))
    parts = find_gguf(source, revision)
    header = None if parts is None else read_header(parts)
    folder = source if parts else find_folder(source, revision) or source
    try:
        if header is not None:
            config = read_config(header)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, revision=revision)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except FAILURES as error:
        raise explain(source, error) from error
