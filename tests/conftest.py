"""What every test runs under: no network, one thread per worker, the annotations of `abmll` enforced."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub, which reads it then
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read where a kernel is defined

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)  # tiny tensors gain nothing from more, and workers would fight over the cores

install_import_hook("abmll", "beartype.beartype")  # from here on: annotations of abmll are enforced
