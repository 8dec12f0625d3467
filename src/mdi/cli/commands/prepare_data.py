"""Turn texts into the tokens that a model is trained on."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import forget_foreign_variables
from mdi.cli.parser import Parser, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.training_options import PrepareDataOptions


def build_parser() -> Parser:
    parser = Parser(__doc__ or "", PrepareDataOptions)
    option = parser.option
    option("data", nargs="?", type=Path, metavar="DATA", help="a .txt or .md file, or a folder of them, in UTF-8")
    option("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    option(
        "--tokenizer",
        metavar="KIND",
        help="character or bpe, made from the texts; gpt2; or the folder of a model or of other tokens",
        values=("character", "bpe", "gpt2"),
    )
    option("--vocab-size", type=int, metavar="N", help="tokens of --tokenizer bpe, 500 or 10000, say (default: 1000)")
    option("--out", type=Path, metavar="DIR", help="where the tokens go (default: a folder in datasets/)")
    return parser


def main(signals: Signals) -> None:
    options = options_from(PrepareDataOptions, build_parser().parse_args())
    set_up_logging(verbose=False, quiet=options.quiet)
    forget_foreign_variables()
    from mdi.train.prepare_data import prepare_data  # torch takes seconds to import

    with signals.raised():
        folder, info = prepare_data(options)
    print(f"{folder}: {info.train_tokens} tokens to train on, {info.val_tokens} to validate, of {info.vocab_size}")


def run() -> NoReturn:
    """What `prepare_data.py` and `mdi-prepare-data` call."""
    run_script(main)


if __name__ == "__main__":
    run()
