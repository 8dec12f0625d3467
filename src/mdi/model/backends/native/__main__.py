"""Compile the kernels for this machine: what `make venv` calls, so that no run has to."""

from mdi.model.backends.native.library import UnavailableError, load_library

if __name__ == "__main__":
    try:
        load_library()
    except UnavailableError as exc:
        raise SystemExit(f"no native kernels, torch will compute instead: {exc}") from exc
