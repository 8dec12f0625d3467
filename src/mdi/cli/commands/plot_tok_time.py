"""Draw the tokens over time of runs with 1, 2, ... nodes into one plot, from what `starter.py -p` wrote."""

from typing import NoReturn

from mdi.cli.parser import Parser
from mdi.cli.plots import plot_token_times
from mdi.cli.script import run_script
from mdi.cli.signals import Signals
from mdi.cli.token_times import comparison_image, rate_of, read_token_csv, run_names
from mdi.config.paths import IMAGES_DIR, LOGS_DIR
from mdi.errors import ConfigError
from mdi.installation import program_name
from mdi.strings import count

MAX_NODES = 64


def build_parser() -> Parser:
    parser = Parser(__doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="name of the model, as in the file names")
    parser.add_argument("--n-samples", type=int, default=3, metavar="N", help="samples of the runs (default: 3)")
    parser.add_argument("--note", metavar="TEXT", help="a second line for the title")
    return parser


def main(signals: Signals) -> None:
    arguments = build_parser().parse_args()
    curves = {}
    for n_nodes in range(1, MAX_NODES + 1):
        csv, _ = run_names(LOGS_DIR, IMAGES_DIR, n_nodes, arguments.model, arguments.n_samples)
        if csv.is_file():
            points = read_token_csv(csv)
            curves[f"{count(n_nodes, 'node')}, {rate_of(points):.2f} tokens/s"] = points
    if not curves:
        pattern, _ = run_names(LOGS_DIR, IMAGES_DIR, 1, arguments.model, arguments.n_samples)
        raise ConfigError(
            f"no runs of {arguments.model} to draw: there is no file like {pattern};"
            f" run {program_name('starter')} -p first"
        )
    has_note = bool(arguments.note)
    image = comparison_image(IMAGES_DIR, arguments.model, arguments.n_samples, has_note=has_note)
    with signals.raised():
        title = f"{arguments.model}, {count(arguments.n_samples, 'sample')}"
        plot_token_times(image, curves, "\n".join(filter(None, [title, arguments.note])))
    print(image)


def run() -> NoReturn:
    """What `plot_tok_time.py` and `mdi-plot` call."""
    run_script(main)


if __name__ == "__main__":
    run()
