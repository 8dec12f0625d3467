"""Texts -> a folder of tokens, with the tokenizer that made them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mdi.config.paths import DATASETS_DIR
from mdi.config.training_options import PrepareDataOptions
from mdi.errors import CheckpointError, ConfigError
from mdi.files import partial_folder
from mdi.progress import progress_bar
from mdi.strings import quoted
from mdi.text.tokenizer import tokenizer_for
from mdi.text.worker_client import WorkerVocabulary
from mdi.text.worker_process import TextWorker
from mdi.train.corpus import Corpus, open_corpus, pieces_of
from mdi.train.dataset import DATASET_FILE, DatasetInfo, write_tokens
from mdi.train.vocabulary import write_vocabulary


def prepare_data(options: PrepareDataOptions) -> tuple[Path, DatasetInfo]:
    """Write the tokens of the texts; return their folder and what is in it.

    The same texts and options give the same files. An interrupted run leaves nothing that looks finished. Raises
    `ConfigError` for texts that cannot be used, `CheckpointError` for a tokenizer that cannot, `StorageError`.
    """
    assert options.data is not None  # `PrepareDataOptions` has checked it
    corpus = open_corpus(options.data)
    target = options.out or DATASETS_DIR / f"{options.data.resolve().stem}-{_kind(options)}"
    if target.is_dir() and any(target.iterdir()) and not (target / DATASET_FILE).is_file():
        raise ConfigError(f"--out {target}: holds other files than tokens: choose another folder")
    with TextWorker() as worker, partial_folder(target) as folder:
        write_vocabulary(options.tokenizer, options.vocab_size, _texts(corpus), folder)
        encoder = _Encoder(folder, worker, options.tokenizer)
        with progress_bar(corpus.n_bytes, "encoding", "B") as advance:
            info = write_tokens(folder, _encoded(corpus, encoder, advance), encoder.vocab_size)
    return target, info


def _kind(options: PrepareDataOptions) -> str:
    """What the folder of tokens is called after its texts: `character`, `bpe1000`, or the model's name."""
    name = Path(options.tokenizer).resolve().name if "/" in options.tokenizer else options.tokenizer
    return f"{name}{options.vocab_size or ''}"


def _texts(corpus: Corpus) -> Iterator[str]:
    with progress_bar(corpus.n_bytes, "reading", "B") as advance:
        for file in corpus.files:
            yield from pieces_of(file, advance)


def _encoded(corpus: Corpus, encoder: "_Encoder", advance: Callable[[int], object]) -> Iterator[Sequence[int]]:
    """Token ids, a piece of a file at a time; each file of several ends in the token that ends a text, if any."""
    for file in corpus.files:
        for text in pieces_of(file, advance):
            encoder.check(text, file)
            yield encoder.encode(text)
        if len(corpus.files) > 1 and encoder.eos_id is not None:
            yield [encoder.eos_id]


class _Encoder:
    """The tokenizer in a folder, which refuses characters that it has no token for.

    Without that they would silently be missing from what the model learns.
    """

    def __init__(self, folder: Path, worker: TextWorker, name: str) -> None:
        self._vocabulary = WorkerVocabulary(folder, worker)
        self._name = name
        self._known: set[str] = set()
        self.eos_id = tokenizer_for(folder, self._vocabulary).eos_id
        self.vocab_size = self._vocabulary.n_ids
        self.encode = self._vocabulary.encode

    def check(self, text: str, file: Path) -> None:
        """Raise `ConfigError` for a character without a token."""
        for char in sorted(set(text) - self._known):
            if not self._has_token(char):
                raise ConfigError(
                    f"{file}: the tokenizer {self._name} has nothing for the character {quoted(char)}"
                    f" (U+{ord(char):04X}): remove it from the text, or choose another --tokenizer"
                )
        self._known.update(text)

    def _has_token(self, char: str) -> bool:
        """A vocabulary of characters refuses others; some leave out what they do not know, or have a token for it."""
        try:
            return any(map(self._vocabulary.token_bytes, self.encode(char)))
        except CheckpointError:
            return False
