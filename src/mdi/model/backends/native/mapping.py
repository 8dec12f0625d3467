"""Bytes of a file, mapped: read from the disk where they are needed, and held once for all processes that map them."""

import ctypes
import errno
import os
import weakref

import torch


class FileMapper:
    """Maps files in such a way that one which cannot be read any more does not end the process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def map(self, file: int, start: int, n_bytes: int) -> "FileMapping":
        """Bytes of an open file, which may be closed then. Raises `OSError`."""
        return FileMapping(self._library, file, start, n_bytes)

    @property
    def n_lost(self) -> int:
        """How many mappings of this process have been lost."""
        return int(self._library.mdi_n_lost_mappings())


class FileMapping:
    """Some bytes of a file, mapped for as long as this object, or a tensor over them, lives."""

    def __init__(self, library: ctypes.CDLL, file: int, start: int, n_bytes: int) -> None:
        """Raises `OSError` where the system does not map the file."""
        handle = library.mdi_map(file, start, n_bytes)
        if handle is None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        buffer = (ctypes.c_uint8 * n_bytes).from_address(library.mdi_mapped_data(handle))
        # Not at exit: whoever still computes then may read it.
        weakref.finalize(buffer, library.mdi_unmap, handle).atexit = False
        self._library, self._handle = library, handle
        self.data = torch.frombuffer(buffer, dtype=torch.uint8)  # which holds the buffer

    @property
    def is_lost(self) -> bool:
        """Whether the file could not be read at some time, and zeros have been in its place since."""
        return bool(self._library.mdi_mapping_is_lost(self._handle))
