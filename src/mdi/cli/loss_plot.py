"""The losses of a training as a plot."""

from pathlib import Path

from mdi.cli.plots import plot_curves
from mdi.train.records import read_log

PLOT_FILE = "training.png"
_CURVES = {"training": "train_loss", "validation": "val_loss"}


def plot_losses(folder: Path) -> None:
    """Draw the losses in the log of a folder over the steps. Raises `StorageError`."""
    rows = read_log(folder)
    curves = {
        label: points
        for label, name in _CURVES.items()
        if (points := [(int(row["iter"]), float(row[name])) for row in rows if row[name]])
    }
    title = folder.resolve().name
    plot_curves(folder / PLOT_FILE, curves, title=title, x_label="step", y_label="loss (nats per token)")
