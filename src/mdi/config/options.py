"""The command lines of nodes, and of what talks to them -> frozen dataclasses, with every check on what a user types.

Errors name the flag and what is allowed.

A command line is flat, so the options of a script are one dataclass whose fields are its flags. It inherits them from
*sections*, each of which is also a value of its own: `SamplingOptions(n_tokens=5)` needs no command line, and
`starter_options.sampling` is the part that a function about sampling takes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mdi.config.addresses import DEFAULT_HTTP_PORT
from mdi.config.bounds import SAMPLING_BOUNDS, Interval, LogitBias, check_sampling, parse_size
from mdi.config.paths import SETTINGS_DIR
from mdi.config.section import (
    Section,
    at_least,
    check_device,
    check_dtype,
    check_kv_dtype,
    check_quantize,
    flag_of,
    section_of,
)
from mdi.errors import ConfigError
from mdi.formats import BACKEND_CHOICES, QUANTIZED, BackendChoice, KvDtype, Mode
from mdi.net.sockets import MAX_PORT

LOG_FORMATS = ("text", "json")
MAX_BATCH_TOKENS = 65536
MAX_SAMPLES = 100_000  # of a run; each is held in memory from the start
MAX_OPEN_REQUESTS = 1024  # of a server, in slots, and again in its queue: each has a thread
OBJECTIVES = ("throughput", "latency")  # of a plan
LINKS = ("gigabit", "100mbit", "wifi")  # between the machines of a plan without machines
MAX_DISCOVER_S = 600.0
TWO_NETWORKS = "--nodes, --discover and --nodes-config each say which nodes there are: give one of them"


@dataclass(frozen=True)
class SeedOption(Section):
    """`--seed`, which every node accepts, so that one command line serves all of them."""

    seed: int = 10137

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: does not fit in 64 bits")


@dataclass(frozen=True)
class PrecisionOptions(Section):
    """`--dtype`, `--quantize`, `--kv-dtype`: the starter's choice for the whole ring, or a secondary's for itself."""

    dtype: str | None = None
    quantize: Mode | None = None
    kv_dtype: KvDtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        check_quantize(self.quantize)
        check_kv_dtype(self.kv_dtype)


@dataclass(frozen=True)
class MixedPrecisionOptions(PrecisionOptions):
    """Also `--allow-quantize`: a plan may choose for each node how it holds its weights."""

    allow_quantize: Mode | None = None  # the least exact mode that it may choose

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.allow_quantize not in (None, *QUANTIZED):
            raise ConfigError(f"--allow-quantize {self.allow_quantize}: expected one of {', '.join(QUANTIZED)}")
        if self.allow_quantize is not None and self.quantize is not None:
            raise ConfigError(
                f"--quantize {self.quantize} is for all nodes, and --allow-quantize lets the plan choose: give one of"
                " them"
            )


@dataclass(frozen=True)
class ModelOptions(Section):
    """Where the model's files are."""

    ckpt: Path | None = None
    chunk: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and not self.chunk.is_file():
            raise ConfigError(f"--chunk {self.chunk}: no such file")


@dataclass(frozen=True)
class MemoryOption(Section):
    """`--memory-limit`: how much of its machine's memory a node may take for a model."""

    memory_limit: str | None = None  # as it was typed: 3GB

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.memory_limit_bytes

    @property
    def memory_limit_bytes(self) -> int | None:
        """None: no limit but the memory that is free. Raises `ConfigError` for what is not a size."""
        return None if self.memory_limit is None else parse_size(self.memory_limit, "--memory-limit")


@dataclass(frozen=True)
class NodeOptions(MemoryOption):
    """How one node computes and logs."""

    verbose: bool = False
    quiet: bool = False
    debug: bool = False
    log_format: str = "text"
    compile: bool = False
    backend: BackendChoice = "auto"
    device: str | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quiet and self.verbose:
            raise ConfigError("--quiet and --verb: give one of them")
        check_device(self.device)
        if self.backend not in BACKEND_CHOICES:
            raise ConfigError(f"--backend {self.backend}: expected one of {', '.join(BACKEND_CHOICES)}")
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"--log-format {self.log_format}: expected one of {', '.join(LOG_FORMATS)}")


@dataclass(frozen=True)
class NetworkOptions(Section):
    """Which nodes there are, and where the starter listens if no file says it."""

    nodes_config: Path = SETTINGS_DIR / "configuration.json"
    nodes: str | None = None
    discover: float | None = None
    save_nodes: Path | None = None
    port: int = 0
    ring_port: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_port("--port", self.port)
        _check_port("--ring-port", self.ring_port)
        has_file = self.nodes_config != type(self).nodes_config
        if [self.nodes is not None, self.discover is not None, has_file].count(True) > 1:
            raise ConfigError(TWO_NETWORKS)
        _check_discover(self.discover)
        for flag, value in (("--save-nodes", self.save_nodes), ("--port", self.port), ("--ring-port", self.ring_port)):
            if value and self.is_of_file:
                raise ConfigError(f"{flag} {value}: is for --nodes and --discover; the file of --nodes-config has it")

    @property
    def is_of_file(self) -> bool:
        """Whether a nodes configuration says which nodes there are."""
        return self.nodes is None and self.discover is None


@dataclass(frozen=True)
class SamplingOptions(SeedOption):
    """How the tokens of a sample are chosen, and when it ends."""

    n_tokens: int = 300
    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: LogitBias = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--n-tokens", self.n_tokens, 1)
        check_sampling(self, flag_of)


@dataclass(frozen=True)
class PromptOptions(Section):
    """What is asked, how often, and in which style."""

    prompt: str = "Who are you?"
    n_samples: int = 3
    prompt_style: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Interval(1, MAX_SAMPLES).check("--n-samples", self.n_samples)


@dataclass(frozen=True)
class RingOptions(MixedPrecisionOptions):
    """How the model is spread over the nodes, what a session may hold, and how long a lost node is waited for."""

    split: str = "auto"
    sequence_length: int | None = None
    max_slots: int | None = None
    max_batch_tokens: int = 128
    peer_timeout_s: float = 5.0
    node_timeout_s: float = 60.0
    keep_nodes: bool = False
    rebalance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length is not None:
            at_least("--sequence-length", self.sequence_length, 1)
        if self.max_slots is not None:
            Interval(1, MAX_SAMPLES).check("--max-slots", self.max_slots)
        if self.allow_quantize is not None and self.split != "measured":
            raise ConfigError(f"--allow-quantize {self.allow_quantize}: needs --split measured, which chooses")
        if self.rebalance and self.split != "measured":
            raise ConfigError("--rebalance: needs --split measured, by which it compares splits")
        at_least("--max-batch-tokens", self.max_batch_tokens, 1)
        if self.max_batch_tokens > MAX_BATCH_TOKENS:
            raise ConfigError(f"--max-batch-tokens {self.max_batch_tokens}: must be at most {MAX_BATCH_TOKENS}")
        at_least("--peer-timeout", self.peer_timeout_s, 0.1)
        at_least("--node-timeout", self.node_timeout_s, 1)


@dataclass(frozen=True)
class OutputOptions(Section):
    """What a run shows and leaves behind."""

    stream: bool | None = None
    output: Path | None = None
    time_run: Path | None = None
    plots: bool = False
    timeline: Path | None = None


@dataclass(frozen=True)
class ServeOptions(Section):
    """Whether users are served over HTTP, and which of them."""

    serve: str | None = None
    api_key: tuple[str, ...] = ()
    api_key_file: Path | None = None
    insecure: bool = False
    cors: tuple[str, ...] = ()
    max_queue: int = 64
    drain_timeout_s: float = 30.0
    drain_delay_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Interval(0, MAX_OPEN_REQUESTS).check("--max-queue", self.max_queue)
        at_least("--drain-timeout", self.drain_timeout_s, 0)
        if not 0 <= self.drain_delay_s <= self.drain_timeout_s:
            raise ConfigError(
                f"--drain-delay {self.drain_delay_s:g}: must be from 0 to --drain-timeout, {self.drain_timeout_s:g}"
            )


@dataclass(frozen=True)
class SecondaryOptions(NodeOptions, ModelOptions, PrecisionOptions, SeedOption):
    """The options of `secondary.py`."""

    nodes_config: Path | None = None
    index: int | None = None
    port: int = DEFAULT_HTTP_PORT
    ring_port: int = 0
    announce: bool = True
    join: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.join is not None and self.nodes_config is not None:
            raise ConfigError(f"--join {self.join}: is for a node without a file; {self.nodes_config} names its ring")
        for flag, value, default in (("--port", self.port, DEFAULT_HTTP_PORT), ("--ring-port", self.ring_port, 0)):
            _check_port(flag, value)
            if value != default and self.nodes_config is not None:
                raise ConfigError(f"{flag} {value}: {self.nodes_config} has the ports of this node")


@dataclass(frozen=True)
class StarterOptions(
    NodeOptions, NetworkOptions, ModelOptions, PromptOptions, SamplingOptions, RingOptions, OutputOptions, ServeOptions
):
    """The options of `starter.py`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logprobs is not None and self.output is None:
            raise ConfigError(f"--logprobs {self.logprobs}: needs --output, the file that they are written to")
        if self.serve is not None and self.max_slots is not None:
            Interval(1, MAX_OPEN_REQUESTS).check("--max-slots of a server", self.max_slots)

    @property
    def node(self) -> NodeOptions:
        return section_of(NodeOptions, self)

    @property
    def model(self) -> ModelOptions:
        return section_of(ModelOptions, self)

    @property
    def prompts(self) -> PromptOptions:
        return section_of(PromptOptions, self)

    @property
    def sampling(self) -> SamplingOptions:
        return section_of(SamplingOptions, self)

    @property
    def ring(self) -> RingOptions:
        return section_of(RingOptions, self)

    @property
    def outputs(self) -> OutputOptions:
        return section_of(OutputOptions, self)

    @property
    def serving(self) -> ServeOptions:
        return section_of(ServeOptions, self)


@dataclass(frozen=True)
class SampleOptions(StarterOptions):
    """The options of `sample.py`: one long sample on this machine alone."""

    nodes_config: Path = SETTINGS_DIR / "standalone.json"
    n_samples: int = 1
    n_tokens: int = 800


@dataclass(frozen=True)
class ChatOptions(PrecisionOptions):
    """The options of `chat.py`: the server to talk to, or what it is to be made of, and how answers are chosen."""

    verbose: bool = False
    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    system: str | None = None
    n_tokens: int | None = None
    temperature: float = SamplingOptions.temperature
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    ckpt: Path | None = None
    nodes_config: Path | None = None
    nodes: str | None = None
    discover: float | None = None
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if [self.nodes, self.discover, self.nodes_config].count(None) < 2:
            raise ConfigError(TWO_NETWORKS)
        _check_discover(self.discover)
        if self.n_tokens is not None:
            at_least("--n-tokens", self.n_tokens, 1)
        for name in ("temperature", "top_k", "top_p"):
            if (value := getattr(self, name)) is not None:
                SAMPLING_BOUNDS[name].check(flag_of(name), value)
        check_device(self.device)
        own = [flag for flag, value in self._of_own_server.items() if value]
        if own and self.starts_server and self.url is not None:
            raise ConfigError(f"--url names a server, and {own[0]} is for one that is started here: give one of them")
        if own and not self.starts_server:
            raise ConfigError(f"{own[0]} is for a server that is started here: give --ckpt too")

    @property
    def starts_server(self) -> bool:
        """Whether the chat starts a server for itself."""
        return any(value is not None for value in (self.ckpt, self.nodes_config, self.nodes, self.discover))

    @property
    def _of_own_server(self) -> dict[str, object]:
        return {
            "--ckpt": self.ckpt,
            "--nodes-config": self.nodes_config,
            "--nodes": self.nodes,
            "--discover": self.discover,
            "--device": self.device,
            "--compile": self.compile,
            "--dtype": self.dtype,
            "--quantize": self.quantize,
            "--kv-dtype": self.kv_dtype,
        }


@dataclass(frozen=True)
class PlannerOptions(NetworkOptions, MixedPrecisionOptions, MemoryOption):
    """The options of `plan.py`: for what a ring is planned, and of which nodes."""

    verbose: bool = False
    quiet: bool = False
    ckpt: Path | None = None
    device: str | None = None
    backend: BackendChoice = "auto"
    what_if: str | None = None
    link: str = "gigabit"
    objective: str = "throughput"
    n_samples: int = PromptOptions.n_samples
    sequence_length: int | None = None
    max_batch_tokens: int = RingOptions.max_batch_tokens
    measure: bool = False
    json: bool = False
    node_timeout_s: float = RingOptions.node_timeout_s

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"--objective {self.objective}: expected one of {', '.join(OBJECTIVES)}")
        if self.link not in LINKS:
            raise ConfigError(f"--link {self.link}: expected one of {', '.join(LINKS)}")
        if self.what_if is not None and self.measure:
            raise ConfigError("--what-if is for machines that are not there, and --measure measures: give one of them")
        at_least("--node-timeout", self.node_timeout_s, 1)
        Interval(1, MAX_SAMPLES).check("--n-samples", self.n_samples)
        Interval(1, MAX_BATCH_TOKENS).check("--max-batch-tokens", self.max_batch_tokens)
        if self.sequence_length is not None:
            at_least("--sequence-length", self.sequence_length, 1)
        check_device(self.device)


@dataclass(frozen=True)
class MonitorOptions:
    """The options of `mem_monitor.py`."""

    command: str = ""
    output: Path = Path("memory.csv")
    interval_s: float = 1.0
    img: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.interval_s) and self.interval_s > 0):
            raise ConfigError(f"--interval {self.interval_s}: must be a positive number of seconds")


def _check_discover(seconds: float | None) -> None:
    if seconds is not None:
        Interval(0.1, MAX_DISCOVER_S).check("--discover", seconds)


def _check_port(flag: str, port: int) -> None:
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"{flag} {port}: must be from 0 to {MAX_PORT}, where 0 is any free port")
