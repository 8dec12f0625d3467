"""A node measures itself for a model, once: what it found is kept until something changes that it depends on."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mdi import __version__
from mdi.checkpoint.config import config_from_dict
from mdi.checkpoint.disk_speed import disk_speed
from mdi.cluster.budget import usable_bytes
from mdi.cluster.stage_times import StageTimer
from mdi.control.measurement import StageRequest, StageTimes
from mdi.documents import read_json
from mdi.errors import ConfigError, ControlError, StorageError
from mdi.files import write_text
from mdi.formats import BackendChoice, KvDtype, Mode
from mdi.liveness import no_tick
from mdi.machine import cache_bytes, return_freed_memory
from mdi.model.architecture import ModelConfig
from mdi.model.backends.select import make_head, make_span_engine, prepare
from mdi.model.build import Placement
from mdi.model.devices import free_memory_bytes, pick_dtype
from mdi.model.quant import resolve
from mdi.model.tensors import TORCH_DTYPES, dtype_name
from mdi.model.threads import CoreShare
from mdi.strings import digest_of, format_bytes

log = logging.getLogger(__name__)

FORMAT = 5  # of what is kept; another one is measured anew
_MAX_FILE_BYTES = 1 << 16
_USUAL_ROWS = 4  # of a message, for backends that choose a layout by it


@dataclass
class NodeMeter:
    """Measures this node. Called only from the compute thread, each `measure` with a `keep_busy` after it."""

    device: torch.device
    dtype: str | None = None  # that the node was started with
    quantize: Mode | None = None
    kv_dtype: KvDtype | None = None
    backend: BackendChoice = "auto"
    folder: Path | None = None  # where measurements are kept, and chunks beside them; None: nowhere
    memory_limit_bytes: int | None = None  # that the node may take for a model
    free_bytes: Callable[[], int] | None = None  # what a session may take; None: what is free on the device
    make_room: Callable[[], None] = no_tick  # gives back what an earlier session has left in memory
    tick: Callable[[], None] = no_tick
    _timer: StageTimer | None = field(default=None, init=False)  # that goes on for others of the machine

    def measure(self, request: StageRequest) -> StageTimes:
        """What was measured before, or else now. Raises `ConfigError` where the memory does not suffice.

        What a node was timed with stays in memory until `keep_busy` where others are on its machine.
        """
        self._timer = None
        config, placement = config_from_dict(request.config), self._placement(request)
        cores = CoreShare(request.nodes_on_host)
        path = self._path(request, placement)
        times = None if path is None or request.again else _kept(path)
        if times is None:
            times = self._measure(request, config, placement, cores)
            if path is not None:
                _keep(path, times)
        else:
            times = replace(times, free_memory_bytes=self._free_bytes())
        return replace(times, memory_limit_bytes=self.memory_limit_bytes)

    def keep_busy(self, is_needed: Callable[[], bool]) -> None:
        """Go on computing what was timed just now for as long as others are timed beside it, then free its memory.

        A slower node makes its weights more slowly too, and is timed for longer: in the end it would have the memory of
        the machine for itself, and seem faster than it is in a ring. Where times were kept, or nobody else is on the
        machine, nothing is computed.

        Args:
            is_needed: asked before each message.
        """
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.keep_busy(is_needed)
            del timer
            return_freed_memory()

    def _placement(self, request: StageRequest) -> Placement:
        mode = resolve(request.stored, self.quantize or request.quantize, "the model")
        dtype = pick_dtype(self.dtype or request.dtype, self.device)
        kv_dtype = self.kv_dtype or request.kv_dtype
        return Placement(self.device, dtype, mode, kv_dtype, _USUAL_ROWS, backend=self.backend, tick=self.tick)

    def _measure(
        self, request: StageRequest, config: ModelConfig, placement: Placement, cores: CoreShare
    ) -> StageTimes:
        self.make_room()
        room_bytes = usable_bytes(self._free_bytes(), self.memory_limit_bytes)
        timer = StageTimer(
            config,
            TORCH_DTYPES[request.stored_dtype],
            placement,
            make_span_engine,
            make_head,
            room_bytes=room_bytes,
            cache_bytes=(cache_bytes() if self.device.type == "cpu" else None) or math.inf,
        )
        self._check_memory(timer.needed_bytes, room_bytes)
        cores.settle()
        # Now all nodes of the machine have given back what they held, and none has made the weights that it times.
        free_bytes = self._free_bytes()
        read_bytes_s, write_bytes_s = self._disk_speed()
        message_s = timer.message_s()
        times = StageTimes(
            device=str(self.device),
            dtype=dtype_name(placement.dtype),
            mode=placement.quantize,
            kv_dtype=placement.kv_dtype,
            threads=torch.get_num_threads(),
            has_kernels=prepare(self.device, self.backend),
            layers=timer.layers(message_s),
            head=timer.head() if request.has_head else (),
            message_s=message_s,
            frame_s=timer.frame_s(),
            disk_read_bytes_s=read_bytes_s,
            disk_write_bytes_s=write_bytes_s,
            free_memory_bytes=free_bytes,  # it changes, and is asked for each time; so is the limit
        )
        if request.nodes_on_host > 1:
            self._timer = timer
        return times

    def _free_bytes(self) -> int:
        return free_memory_bytes(self.device) if self.free_bytes is None else self.free_bytes()

    def _check_memory(self, needed_bytes: int, room_bytes: float) -> None:
        if needed_bytes > room_bytes:
            more = "end other programs" if self.memory_limit_bytes is None else "allow it more (--memory-limit)"
            raise ConfigError(
                f"timing a layer of this model takes {format_bytes(needed_bytes)} of memory, and"
                f" {format_bytes(room_bytes)} may be used: {more}, or try --quantize int8"
            )

    def _disk_speed(self) -> tuple[float | None, float | None]:
        speed = None if self.folder is None else disk_speed(self.folder, self.tick)
        return (None, None) if speed is None else (speed[1], speed[0])

    def _path(self, request: StageRequest, placement: Placement) -> Path | None:
        """Where it is kept: under the digest of all that it depends on."""
        if self.folder is None:
            return None
        computes = [dtype_name(placement.dtype), placement.quantize, placement.kv_dtype, self.backend]
        known: dict[str, Any] = asdict(replace(request, again=False, dtype=None, quantize=None, kv_dtype=None)) | {
            "format": FORMAT,
            "program": __version__,
            "device": _name_of(self.device),
            "computes": [*computes, torch.get_num_threads()],
        }
        return self.folder / f"{digest_of(known)}.json"


def _name_of(device: torch.device) -> str:
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def _kept(path: Path) -> StageTimes | None:
    """What was measured before; None where there is nothing, or nothing that can be used."""
    if not path.is_file():
        return None
    try:
        return StageTimes.from_json(read_json(path, _MAX_FILE_BYTES, StorageError))
    except (StorageError, ControlError) as exc:
        log.warning("measuring again: %s", exc)
        return None


def _keep(path: Path, times: StageTimes) -> None:
    """A folder that cannot be written costs seconds at the next time, and nothing else."""
    try:
        write_text(path, json.dumps(asdict(times)))
    except StorageError as exc:
        log.warning("the measurement is not kept: %s", exc)
