"""What can be known of a model's text files before the model is prepared."""

import logging
from pathlib import Path

from mdi.errors import CheckpointError
from mdi.text.tokenizer import load_tokenizer
from mdi.text.vocabulary import find_vocabulary
from mdi.text.worker_client import find_template
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)


def check_text(folder: Path, worker: TextWorker) -> None:
    """Raise `CheckpointError` where a folder has a vocabulary that cannot be used.

    A vocabulary that is not there is a warning: it may be put there later. A chat template that cannot be used is one
    too: the model may have another style, or be used without any.
    """
    try:
        find_vocabulary(folder)
    except CheckpointError as exc:
        log.warning("%s; without it the model can be split, but not asked", exc)
    else:
        load_tokenizer(folder, worker)
    try:
        find_template(folder, worker)
    except CheckpointError as exc:
        log.warning("%s", exc)
