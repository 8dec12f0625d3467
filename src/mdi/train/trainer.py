"""Steps of training on one device or several, with validation and checkpoints."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric

from mdi.config.training_options import TrainOptions
from mdi.errors import TrainingError
from mdi.train.batches import Batch, Batches, seed_of
from mdi.train.checkpoints import Checkpoints, Progress, State
from mdi.train.flops import Peak
from mdi.train.processes import Processes, whole
from mdi.train.records import Records
from mdi.train.schedule import learning_rate
from mdi.train.sharding import whole_optimizer, whole_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What is trained. `model` and `optimizer` are Fabric's."""

    model: Any
    optimizer: Any
    is_weight: Callable[[str], bool]  # whether a tensor of the model, by its name, is saved
    flops_per_token: float
    peak: Peak  # of each device


class Trainer:
    """One process of a run; all processes make the same steps."""

    def __init__(
        self,
        fabric: Fabric,
        trained: Trained,
        batches: Batches,
        options: TrainOptions,
        progress: Progress,
        checkpoints: Checkpoints,
    ) -> None:
        self._fabric, self._processes = fabric, Processes(fabric)
        self._trained, self._model, self._optimizer = trained, trained.model, trained.optimizer
        self._batches, self._options, self._checkpoints = batches, options, checkpoints
        self.progress = progress
        self._records: Records | None = None  # of the first process
        self._saved_step = progress.step or None  # that of a new run is not saved
        self._n_tokens, self._seconds = 0, 0.0  # of the steps since the last line of the log

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Train to the end, or until `is_stopped` in any process, and save. Raises `TrainingError`, `StorageError`."""
        self._processes.write(self._begin_records)
        try:
            self._run(is_stopped)
        finally:
            if self._records is not None:
                self._records.close()

    def _begin_records(self) -> None:
        self._records = Records(self._checkpoints.folder, self.progress.step)

    def _run(self, is_stopped: Callable[[], bool]) -> None:
        options, progress = self._options, self.progress
        self.save()  # so there is a whole checkpoint from the first step on, and a full disk is noticed here
        while progress.step < options.max_iters and not self._processes.any(is_stopped()):
            loss = self._step()
            if progress.step % options.log_interval == 0:
                self._log_loss(loss)
            if progress.step % options.ckpt_interval == 0 or progress.step == options.max_iters:
                self._validate()
                if options.patience is not None and progress.n_worse >= options.patience:
                    self._say("stopped: no better validation loss in %d validations", progress.n_worse)
                    break
        self.save()

    # ---- steps

    def _step(self) -> float:
        """One step of the optimizer; the mean loss of all its micro-batches."""
        options, n_micro = self._options, self._options.grad_acc_steps
        began_s = time.monotonic()
        self._set_learning_rate()
        total = sum(self._train_on(micro, is_last=micro + 1 == n_micro) for micro in range(n_micro))
        loss = self._processes.mean(total / n_micro)
        norm = self._fabric.clip_gradients(
            self._model, self._optimizer, max_norm=options.grad_clip, error_if_nonfinite=False
        )
        self._check_finite(loss, float(whole(norm)))
        self._optimizer.step()
        self._optimizer.zero_grad()
        seconds = time.monotonic() - began_s
        self._seconds += seconds
        self.progress.seconds += seconds
        self.progress.step += 1
        return loss

    def _set_learning_rate(self) -> None:
        options = self._options
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(
                self.progress.step,
                lr=options.lr,
                min_lr=options.lr / 10,
                warmup_iters=min(options.warmup_iters, options.max_iters // 10),
                max_iters=options.max_iters,
            )

    def _train_on(self, micro: int, *, is_last: bool) -> float:
        """Add the gradients of one micro-batch of this process; its loss."""
        options, step = self._options, self.progress.step
        number = micro * self._processes.n + self._processes.rank
        torch.manual_seed(seed_of(options.seed, step, number))  # what dropout leaves out, in a resumed run too
        batch = self._batches.draw(options.seed, step, number)
        self._n_tokens += batch[0].numel()
        with self._fabric.no_backward_sync(self._model, enabled=not is_last):
            loss = self._loss(batch)
            self._fabric.backward(loss / options.grad_acc_steps)
        return loss.item()

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs, targets = (part.to(self._fabric.device, non_blocking=True) for part in batch)
        logits = self._model(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _check_finite(self, loss: float, norm: float) -> None:
        """Raise `TrainingError` before such numbers get into the weights. All processes have the same ones."""
        # In float16 gradients may overflow: the scaler leaves that step out, and lowers its scale.
        overflows = not math.isfinite(norm) and not self._scaler_state()
        if math.isfinite(loss) and not overflows:
            return
        what = f"the norm of the gradients is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise TrainingError(
            f"{what} at step {self.progress.step}: try a smaller --lr, or --dtype float32; the last checkpoint is in"
            f" {self._checkpoints.folder}"
        )

    def _scaler_state(self) -> dict[str, Any]:
        """How losses are scaled in float16, so that their gradients do not vanish; empty for other types."""
        state: dict[str, Any] = self._fabric.strategy.precision.state_dict()
        return state

    # ---- validation

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The mean loss over the same windows each time, shared out among the processes."""
        n, rank = self._processes.n, self._processes.rank
        self._model.eval()
        batches = self._batches.validation(self._options.eval_iters * n)
        own = [self._loss(batch).item() for number, batch in enumerate(batches) if number % n == rank]
        self._model.train()
        return self._processes.mean(sum(own) / len(own))

    def _validate(self) -> None:
        loss, progress = self.validation_loss(), self.progress
        is_best = loss < progress.best_loss
        progress.n_worse = 0 if is_best else progress.n_worse + 1
        progress.best_loss = min(loss, progress.best_loss)
        perplexity = math.exp(min(loss, 700))
        self._say("step %d: validation loss %.4f, perplexity %.2f", progress.step, loss, perplexity)
        self._record(val_loss=repr(loss), perplexity=f"{perplexity:.4f}")
        # Before the state, which says that there is such a model.
        if is_best or self._options.always_update:
            weights = self._weights()
            self._processes.write(lambda: self._checkpoints.save_best(weights))
        self.save()

    # ---- files

    def save(self) -> None:
        """Write the state of the run, unless that of this step is written."""
        if self._saved_step == self.progress.step:
            return
        state = State(
            model=self._weights(),
            optimizer=whole_optimizer(self._optimizer.optimizer),
            scaler=self._scaler_state(),
            progress=self.progress,
            settings=self._options.settings,
        )
        self._processes.write(lambda: self._checkpoints.save_state(state))
        self._saved_step = self.progress.step

    def _weights(self) -> dict[str, torch.Tensor]:
        return whole_weights(self._model.module, self._trained.is_weight)

    def _log_loss(self, loss: float) -> None:
        speed = self._n_tokens / max(self._seconds, 1e-9)  # of each device
        self._n_tokens, self._seconds = 0, 0.0
        utilisation, total = speed * self._trained.flops_per_token / self._trained.peak.flops, speed * self._processes.n
        values = (self.progress.step, loss, total, 100 * utilisation, self._trained.peak)
        self._say("step %d: loss %.4f, %.0f tokens/s, %.1f%% of the %s", *values)
        self._record(
            train_loss=repr(loss),
            lr=f"{self._optimizer.param_groups[0]['lr']:.3e}",
            tokens_per_s=f"{total:.1f}",
            mfu=f"{utilisation:.4f}",
        )

    def _record(self, **values: str) -> None:
        def write() -> None:
            assert self._records is not None  # in the first process, which calls this
            self._records.write(iter=self.progress.step, seconds=f"{self.progress.seconds:.3f}", **values)

        self._processes.write(write)

    def _say(self, text: str, *values: object) -> None:
        if self._processes.is_first:
            log.warning(text, *values)
