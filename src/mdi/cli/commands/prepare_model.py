"""Fetch or convert a model, and split it into one chunk per node."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import forget_foreign_variables, sleep_at_barriers
from mdi.cli.parser import Parser, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.prepare_options import PrepareOptions
from mdi.formats import DTYPES, MODES


def build_parser() -> Parser:
    parser = Parser("Make a model ready: fetch it, convert it to litGPT's format, split it.", PrepareOptions)
    option = parser.option
    option(
        "model",
        nargs="?",
        metavar="MODEL",
        help="org/name or a short name on the hub, org/name:Q4_K_M, a folder, a .gguf file, or a .pt file of nanoGPT",
    )
    option("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    shapes = "NanoLlama, gpt2, gpt2-medium, gpt2-large, gpt2-xl, nanoGPT-7, nanoGPT-9 or nanoGPT-12"
    option("--random", metavar="CONFIG", help=f"make a random model of this litGPT shape instead, or {shapes}")
    option("--merge-lora", type=Path, metavar="DIR", help="merge adapters that train.py made into their model")
    option("--n-embd", type=int, metavar="N", help="width of a random nanoGPT (default: 384)")
    option("--context-length", type=int, metavar="N", help="positions of a random nanoGPT (default: 256)")
    option("--ckpt-folder", type=Path, metavar="DIR", help="where the models are kept")
    option("--model-name", metavar="NAME", help="the litGPT configuration to use (default: by the model's name)")
    option("--n-nodes", type=int, metavar="N", help="split the model over N nodes")
    option("--nodes-config", type=Path, metavar="FILE", help="split the model for this network")
    option("--split", metavar="SPLIT", help="auto, table, or layers per node such as 6,8,8")
    option("--hf-token", metavar="TOKEN", help="for gated models (default: HF_TOKEN)")
    dtypes = "float32, float16 or bfloat16 (default: as stored; bfloat16 of a quantized GGUF file)"
    option("--dtype", help=dtypes, values=DTYPES)
    option(
        "--quantize",
        metavar="MODE",
        help="none, int8 or int4: how the chunks hold the weights of linear layers",
        values=MODES,
    )
    option("--chunks-only", action="store_true", help="keep the chunks alone, not the whole model")
    option("--device", help="kept for old command lines: the work is done on the CPU")
    option("--seed", type=int, help="seed of --random")
    option("--list", dest="list_models", action="store_true", help="list the prepared models and the short names")
    option("--remove", metavar="NAME", help="remove a prepared model")
    return parser


def main(signals: Signals) -> None:
    options = options_from(PrepareOptions, build_parser().parse_args())
    set_up_logging(verbose=False, quiet=options.quiet)
    if options.list_models or options.remove is not None:
        _list_or_remove(options)
        return
    forget_foreign_variables()
    sleep_at_barriers()
    from mdi.cli.prepare import prepare  # torch and litgpt take seconds to import

    with signals.raised():
        folder, manifest = prepare(options)
    if manifest is not None:
        layers = ", ".join(f"{len(span)}" for span in manifest.spans)
        print(f"{folder}: layers per node {layers}")
    else:
        print(folder)


def _list_or_remove(options: PrepareOptions) -> None:
    from mdi.cli.model_list import list_models, remove_model

    if options.remove is None:
        print(list_models(options.ckpt_folder))
    else:
        print(f"removed {remove_model(options.ckpt_folder, options.remove)}")


def run() -> NoReturn:
    """What `prepare_model.py` and `mdi-prepare` call."""
    run_script(main)


if __name__ == "__main__":
    run()
