"""A posterior as a file beside the adapter that it was made of."""

import json
from pathlib import Path

from abmll.adapters.facts import digest
from abmll.adapters.folder import checksum
from abmll.errors import AbmllError
from abmll.files import write_bytes
from abmll.systems.posteriors.base import Posterior
from abmll.tensors import portable, read_header, read_tensors, to_bytes

POSTERIOR_FILE = "posterior.safetensors"


def write_posterior(posterior: Posterior, name: str, folder: Path) -> None:
    """Write what a posterior is besides phi, sealed with the adapter that is in the folder.

    Args:
        posterior: was fitted to the phi of that adapter.
        name: of its kind.
        folder: of the adapter.
    """
    tensors = {key: portable(tensor) for key, tensor in posterior.state().items()}
    text = _text(posterior, name, folder)
    metadata = {"abmll_posterior": text, "sha256": digest(text, tensors)}
    write_bytes(folder / POSTERIOR_FILE, to_bytes(tensors, metadata))


def read_posterior_into(posterior: Posterior, name: str, folder: Path) -> None:
    """The inverse of `write_posterior`; phi is that of the folder's adapter already.

    Raises:
        AbmllError: there is no such file, it is damaged, or it is of another posterior or adapter; says which.
    """
    file = folder / POSTERIOR_FILE
    if not file.is_file():
        raise AbmllError(
            f"{file}: missing, so there is no posterior.name={name} to answer by; adapt again, or answer with "
            "posterior.name=none"
        )
    metadata = read_header(file).metadata
    text, expected = metadata.get("abmll_posterior", ""), _text(posterior, name, folder)
    tensors = read_tensors(file)
    if digest(text, tensors) != metadata.get("sha256"):
        raise AbmllError(f"{file}: damaged (its SHA-256 differs); adapt again")
    if text != expected:
        raise AbmllError(
            f"{file}: of another adapter, or made with other settings of `posterior` than now; answer with those, or "
            "adapt again"
        )
    try:
        posterior.load(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise AbmllError(f"{file}: not the posterior of this adapter ({str(error)[:200]})") from error


def _text(posterior: Posterior, name: str, folder: Path) -> str:
    """Whose it is."""
    settings = posterior.settings.model_dump(mode="json")
    return json.dumps({"name": name, "settings": settings, "adapter": checksum(folder)}, sort_keys=True)
