"""What libraries print that is not ours to show."""

from transformers.utils import logging as transformers_logging


def quieten_libraries() -> None:
    """No progress bars and no advice from transformers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
