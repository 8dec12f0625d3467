"""Steps of training on one device or several, with validation and checkpoints."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric

from mdi.config.options import TrainOptions
from mdi.errors import TrainingError
from mdi.train.batches import Batch, Batches
from mdi.train.checkpoints import Progress, TrainingLog, save_best, save_state
from mdi.train.schedule import learning_rate

log = logging.getLogger(__name__)


class Trainer:
    """One process of a run. `model` and `optimizer` are Fabric's; all processes make the same steps."""

    def __init__(
        self,
        fabric: Fabric,
        model: Any,
        optimizer: Any,
        batches: Batches,
        options: TrainOptions,
        progress: Progress,
        folder: Path,
    ) -> None:
        self._fabric, self._model, self._optimizer = fabric, model, optimizer
        self._batches, self._options, self._folder = batches, options, folder
        self.progress = progress
        self._log = TrainingLog(folder, progress.step) if fabric.is_global_zero else None
        self._n_tokens, self._began_s = 0, time.monotonic()

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Train to the end, or until `is_stopped` in any process, and save. Raises `TrainingError`, `StorageError`."""
        options, progress = self._options, self.progress
        while progress.step < options.max_iters and not self._any_process(is_stopped()):
            loss = self._step()
            if progress.step % options.log_interval == 0:
                self._log_loss(loss)
            if progress.step % options.ckpt_interval == 0 or progress.step == options.max_iters:
                self._validate()
                if options.patience is not None and progress.n_worse >= options.patience:
                    self._say("stopped: no better validation loss in %d validations", progress.n_worse)
                    return
        self._save()

    def _any_process(self, flag: bool) -> bool:
        if self._fabric.world_size == 1:
            return flag
        return bool(self._fabric.all_reduce(torch.tensor(float(flag), device=self._fabric.device), reduce_op="max") > 0)

    def _step(self) -> float:
        """One step of the optimizer; the mean loss of its micro-batches in this process."""
        options, step = self._options, self.progress.step
        began_s = time.monotonic()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                lr=options.lr,
                min_lr=options.lr / 10,
                warmup_iters=min(options.warmup_iters, options.max_iters // 10),
                max_iters=options.max_iters,
            )
        total = 0.0
        for micro in range(options.grad_acc_steps):
            number = micro * self._fabric.world_size + self._fabric.global_rank
            is_last = micro + 1 == options.grad_acc_steps
            with self._fabric.no_backward_sync(self._model, enabled=not is_last):
                loss = self._loss(self._batches.draw(options.seed, step, number))
                self._fabric.backward(loss / options.grad_acc_steps)
            total += loss.item()
        self._check_finite(total)
        self._fabric.clip_gradients(self._model, self._optimizer, max_norm=options.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - began_s
        return total / options.grad_acc_steps

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs, targets = (part.to(self._fabric.device, non_blocking=True) for part in batch)
        logits = self._model(inputs)
        self._n_tokens += inputs.numel()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.progress.step}: try a smaller --lr, or --dtype float32; the last"
                f" checkpoint is in {self._folder}"
            )

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The mean loss over the same windows each time, shared out among the processes."""
        self._model.eval()
        total, n_own = 0.0, 0
        for number, batch in enumerate(self._batches.validation(self._options.eval_iters * self._fabric.world_size)):
            if number % self._fabric.world_size == self._fabric.global_rank:
                total, n_own = total + self._loss(batch).item(), n_own + 1
        self._model.train()
        return self._mean(total / n_own)

    def _mean(self, value: float) -> float:
        if self._fabric.world_size == 1:
            return value
        return float(self._fabric.all_reduce(torch.tensor(value, device=self._fabric.device), reduce_op="mean"))

    def _validate(self) -> None:
        loss, progress = self.validation_loss(), self.progress
        is_best = loss < progress.best_loss
        progress.n_worse = 0 if is_best else progress.n_worse + 1
        progress.best_loss = min(loss, progress.best_loss)
        self._say("step %d: validation loss %.4f, perplexity %.2f", progress.step, loss, math.exp(min(loss, 700)))
        if self._log is not None:
            self._log.write(
                iter=progress.step,
                seconds=f"{progress.seconds:.3f}",
                val_loss=repr(loss),
                perplexity=f"{math.exp(min(loss, 700)):.4f}",
            )
            if is_best or self._options.always_update:
                save_best(self._folder, self._model.module)
        self._save()

    def _save(self) -> None:
        if self._fabric.is_global_zero:
            optimizer = getattr(self._optimizer, "optimizer", self._optimizer)
            save_state(self._folder, self._model.module, optimizer, self.progress, self._options.settings)
        self._fabric.barrier()

    def _log_loss(self, loss: float) -> None:
        loss, progress = self._mean(loss), self.progress
        speed = self._n_tokens * self._fabric.world_size / max(time.monotonic() - self._began_s, 1e-9)
        self._n_tokens, self._began_s = 0, time.monotonic()
        self._say("step %d: loss %.4f, %.0f tokens/s", progress.step, loss, speed)
        if self._log is not None:
            self._log.write(
                iter=progress.step,
                seconds=f"{progress.seconds:.3f}",
                train_loss=repr(loss),
                lr=f"{self._optimizer.param_groups[0]['lr']:.3e}",
                tokens_per_s=f"{speed:.1f}",
            )

    def _say(self, text: str, *values: object) -> None:
        if self._fabric.is_global_zero:
            log.warning(text, *values)
