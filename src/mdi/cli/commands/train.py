"""Train a model on tokens that prepare_data.py made: from scratch, resumed, or beginning with a prepared model."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import forget_foreign_variables, sleep_at_barriers
from mdi.cli.loss_plot import plot_losses
from mdi.cli.parser import Parser, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.lora import parse_lora
from mdi.config.training_options import INITS, STRATEGIES, TrainOptions
from mdi.formats import DTYPES

GRACE_S = 120.0  # a checkpoint of a large model takes a while to write


def build_parser() -> Parser:
    parser = Parser(__doc__ or "", TrainOptions)
    option = parser.option
    option("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    parser.section("the model")
    option("--ckpt", type=Path, metavar="DIR", help="the folder that the model and its checkpoints are in")
    option("--dataset", type=Path, metavar="DIR", help="the tokens: a folder that prepare_data.py made")
    option("--init", metavar="HOW", help="scratch, resume, hf or finetune: what training begins with", values=INITS)
    option("--model", metavar="NAME", help="scratch: nanoGPT-7, gpt2, pythia-14m, ...; finetune: a prepared folder")
    option("--context-length", dest="context", type=int, metavar="N", help="tokens of a window (default: the model's)")
    lora = "train adapters of rank R alone, scaled by A/R, with dropout D, such as 8,16,0.05"
    option("--lora", type=parse_lora, metavar="R,A,D", help=lora)
    parser.section("the run")
    option("--batch-size", type=int, metavar="N", help="windows that are computed at a time on each device")
    option("--grad-acc-steps", type=int, metavar="N", help="such batches for one step of the optimizer")
    option("--max-iters", type=int, metavar="N", help="steps of the optimizer")
    option("--patience", type=int, metavar="N", help="end after so many validations without a better one")
    option("--ckpt-interval", type=int, metavar="N", help="steps between two validations, each with a checkpoint")
    option("--log-interval", type=int, metavar="N", help="steps between two lines of the log")
    option("--eval-iters", type=int, metavar="N", help="batches of a validation")
    option("-au", "--always-update", action="store_true", help="replace the best model also where it was better")
    option("-F", "--force-old", "--force-old-settings", action="store_true", help="resume with the former settings")
    option("--seed", type=int, help="seed of the first weights and of the windows")
    parser.section("the optimizer")
    option("--lr", type=float, metavar="X", help="greatest learning rate of the cosine, whose least is a tenth of it")
    option("--warmup-iters", type=int, metavar="N", help="steps until then, at most a tenth of all")
    option("--weight-decay", type=float, metavar="X", help="of matrices and embeddings")
    option("--grad-clip", type=float, metavar="X", help="greatest norm of the gradients")
    parser.section("the devices")
    option("--device", help="cpu, mps, cuda or cuda:N (default: the best there is)", values=("cpu", "mps", "cuda"))
    option("--devices", type=int, metavar="N", help="how many of them, or on the CPU processes")
    option("--strategy", help="auto, ddp, or fsdp: each device has a part of the model", values=STRATEGIES)
    option("--dtype", help="float32, or float16 or bfloat16 for mixed precision (default: by device)", values=DTYPES)
    option("-c", "--compile", action="store_true", help="compile the model with torch.compile")
    return parser


def main(signals: Signals) -> None:
    options = options_from(TrainOptions, build_parser().parse_args())
    set_up_logging(verbose=False, quiet=options.quiet)
    forget_foreign_variables()
    sleep_at_barriers()
    from mdi.train.run import train  # torch and lightning take seconds to import

    with signals.passed_to(lambda number: None):
        result = train(options, lambda: signals.came)
        if result is not None and options.ckpt is not None:
            plot_losses(options.ckpt)
    if result is not None:
        print(result)
    signals.check()


def run() -> NoReturn:
    """What `train.py` and `mdi-train` call."""
    run_script(main, grace_s=GRACE_S)


if __name__ == "__main__":
    run()
