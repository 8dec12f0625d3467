"""The embedding and the head by native kernels: the head packed, and an embedding that is tied to it read from there.

Shapes: N rows in the message, C = n_embd.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mdi.errors import LocalProtocolError
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.backends.native import library as native
from mdi.model.backends.native.blocks import Packer
from mdi.model.backends.native.mapping import FileMapper
from mdi.model.backends.native.packing import FILL, layout_of
from mdi.model.build import ModuleBuilder, Placement
from mdi.model.devices import memory_errors
from mdi.model.embedding import hidden_states, kept_table
from mdi.model.litgpt_modules import do_softcapping


class NativeHead:
    """A `Head` of kernels for this CPU."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Raises as `NativeSpan` does.

        Args:
            library: the compiled kernels; None: those for this CPU.
        """
        self.config, self._dtype = config, placement.dtype
        self._library = library = library or native.load_library()
        self._architecture = architecture = architecture_of(config)
        empty: Any = architecture.build_ends(config)
        with memory_errors("the weights of the head"):
            builder = ModuleBuilder(weights, "the embedding and the head", placement)
            self._kept = placement.packed.part("head", layout_of(library), FileMapper(library))
            packer = Packer(library, builder, placement, self._kept)
            self._norm = packer.norm(architecture.norm_path, empty["norm"])
            self._packed = packer.linear(architecture.head_path, empty["head"])
            self._table = self._own_table(builder, packer, empty["embedding"].weight.shape)
            self._positions = self._own_positions(builder, packer, empty)
        pointers = ctypes.byref(self._norm.structure), ctypes.byref(self._packed.structure)
        self._head = library.mdi_head_new(*pointers)
        weakref.finalize(self, library.mdi_head_delete, self._head)

    def _own_table(self, builder: ModuleBuilder, packer: Packer, shape: torch.Size) -> torch.Tensor | None:
        """The embedding in the smaller dtype; None where the packed head is the same weight in floating point."""
        name = self._architecture.embedding
        if builder.is_tied(name, f"{self._architecture.head_path}weight") and not self._packed.is_quantized:
            return None
        return packer.tensor(name, lambda: kept_table(builder.find(name, shape), self._dtype))

    def _own_positions(self, builder: ModuleBuilder, packer: Packer, empty: Any) -> torch.Tensor | None:
        """The learned positions; None where the model has none."""
        if (name := self._architecture.positions) is None:
            return None
        shape = empty["positions"].weight.shape
        return packer.tensor(name, lambda: kept_table(builder.find(name, shape), self._dtype))

    @property
    def weights_bytes(self) -> int:
        """What the weights hold."""
        tables = [table for table in (self._table, self._positions) if table is not None]
        return self._packed.n_bytes + sum(table.nbytes for table in tables)

    @property
    def mapped_bytes(self) -> int:
        """Of these, what lies in a file that is mapped."""
        return self._kept.mapped_bytes

    @torch.inference_mode()
    def embed(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Token ids (N), each at a position of its sequence -> hidden states (N, C)."""
        x = hidden_states(self._rows(ids).to(self._dtype), positions, self._positions, self.config)
        self._kept.check()
        return x

    def _rows(self, ids: Sequence[int]) -> torch.Tensor:
        if self._table is not None:
            return self._table[torch.tensor(ids)]
        if not all(0 <= token < self.config.padded_vocab_size for token in ids):
            raise LocalProtocolError(f"a token that is not below {self.config.padded_vocab_size}")
        x = torch.empty(len(ids), self.config.n_embd)
        self._library.mdi_head_embed(self._head, (ctypes.c_int32 * len(ids))(*ids), len(ids), x.data_ptr())
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary) in float32."""
        if x.dim() != 2 or x.size(1) != self.config.n_embd:
            raise LocalProtocolError(f"hidden states of {tuple(x.shape)}, not (N, {self.config.n_embd})")
        with memory_errors(f"the logits of {len(x)} rows"):
            n_vocabulary = self._packed.structure.outputs
            x = x.to("cpu", torch.float32).contiguous()
            y = torch.empty(len(x), n_vocabulary + -n_vocabulary % FILL)
            n_threads = torch.get_num_threads()
            if self._library.mdi_head_logits(self._head, x.data_ptr(), y.data_ptr(), len(x), n_threads):
                raise RuntimeError("out of memory for the logits")
            self._kept.check()
            y = y[:, :n_vocabulary]
            return y if self.config.final_logit_softcapping is None else self._capped(y)

    def _capped(self, y: torch.Tensor) -> torch.Tensor:
        capped: torch.Tensor = do_softcapping(y, self.config.final_logit_softcapping)
        return capped
