"""llama.cpp as a peer. Runs under any Python that has llama-cpp-python, and imports nothing of ours.

    llama_driver.py quantize SOURCE TARGET Q8_0
    llama_driver.py serve MODEL THREADS [RPC_SERVER GPU_LAYERS]

With an RPC server (host:port) the last layers are there: GPU_LAYERS of them, of which llama.cpp counts the head as one.
`serve` answers JSON lines: {"prompt": ids, "n_samples": n, "n_tokens": n, "exact": bool} -> {"times", "tokens"}, of
each sequence the time at which each token was known and the token. A batch holds one row of every sequence.
"""

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

BATCH = 512
FILE_TYPES = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


class Sequences:
    """`n_samples` sequences in one llama.cpp context."""

    def __init__(self, model: Any, n_threads: int, n_samples: int, context: int, exact: bool) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_samples * -(-context // 256) * 256
        params.n_seq_max = n_samples
        params.n_batch = max(BATCH, n_samples)
        params.n_threads = params.n_threads_batch = n_threads
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.n_samples = n_samples
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(max(BATCH, n_samples), 0, 1)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """`rows` are (token, position, sequence, whether its logits are wanted); returns the wanted tokens."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        return [self._greedy(i) for i, row in enumerate(rows) if row[3]]

    def _greedy(self, i: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).argmax())

    def prefill(self, prompt: Sequence[int]) -> int:
        """Let every sequence begin with `prompt`, which is computed once; the token after it."""
        for start in range(0, len(prompt), BATCH):
            stop = min(start + BATCH, len(prompt))
            rows = [(prompt[p], p, 0, p == len(prompt) - 1) for p in range(start, stop)]
            tokens = self.decode(rows)
        memory = llama_cpp.llama_get_memory(self.context)
        for sequence in range(1, self.n_samples):
            llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        return tokens[0]


def generate(model: Any, n_threads: int, request: dict[str, Any]) -> dict[str, Any]:
    prompt, n_samples, n_tokens = request["prompt"], request["n_samples"], request["n_tokens"]
    sequences = Sequences(model, n_threads, n_samples, len(prompt) + n_tokens, request.get("exact", False))
    times: list[list[float]] = []
    tokens: list[list[int]] = []
    start = time.monotonic()
    first = sequences.prefill(prompt)
    now = time.monotonic()
    tokens += [[first] for _ in range(n_samples)]
    times += [[now] for _ in range(n_samples)]
    for position in range(len(prompt), len(prompt) + n_tokens - 1):
        chosen = sequences.decode([(tokens[s][-1], position, s, True) for s in range(n_samples)])
        now = time.monotonic()
        for sequence, token in enumerate(chosen):
            tokens[sequence].append(token)
            times[sequence].append(now)
    sequences.close()
    return {"start": start, "times": times, "tokens": tokens}


def add_rpc_server(endpoint: str) -> None:
    """Make the devices of an RPC server devices of this process, beside its own processor."""
    # llama-cpp-python wraps nothing of the RPC backend, but whoever has loaded libllama has all of ggml.
    ggml = llama_cpp.llama_cpp._lib
    address, name = ctypes.c_void_p, ctypes.c_char_p
    ggml.ggml_backend_reg_by_name.restype, ggml.ggml_backend_reg_by_name.argtypes = address, [name]
    ggml.ggml_backend_reg_get_proc_address.restype = address
    ggml.ggml_backend_reg_get_proc_address.argtypes = [address, name]
    ggml.ggml_backend_register.restype, ggml.ggml_backend_register.argtypes = None, [address]
    backend = ggml.ggml_backend_reg_by_name(b"RPC")
    if not backend:
        raise SystemExit("llama.cpp was built without its RPC backend")
    add_server = ggml.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_rpc_add_server")
    server = ctypes.CFUNCTYPE(address, name)(add_server)(endpoint.encode())
    if not server:
        raise SystemExit(f"the RPC server {endpoint} offers no device")
    ggml.ggml_backend_register(server)


def serve(path: str, n_threads: int, n_gpu_layers: int = 0) -> None:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(generate(model, n_threads, json.loads(line))), flush=True)


def quantize(source: str, target: str, kind: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.allow_requantize = True  # a downloaded file has few bits already
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp cannot quantize {source}")


def main() -> None:
    llama_cpp.llama_backend_init()
    mode, *arguments = sys.argv[1:]
    if mode == "serve":
        path, n_threads, *rpc = arguments
        if rpc:
            add_rpc_server(rpc[0])
        serve(path, int(n_threads), int(rpc[1]) if rpc else 0)
    else:
        quantize(*arguments)


if __name__ == "__main__":
    main()
