"""The frozen config of a run: one object for the form, the API, the command line, the worker and the checkpoint.

Every setting carries its unit, range, the paper's value and a help text as field metadata (`trainer.settings.setting`), so that the launch
form, the settings page and the checks all read the same lines. Defaults are the paper's (METHOD sections 1-3) unless a
help text says otherwise.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from trainer.endpoint_checks import read_extra, refused_settings
from trainer.errors import ConfigError
from trainer.settings import build, setting

PRESETS = Path(__file__).parent / "presets"

SCRATCH_MODEL = "scratch-llama"
"""The student made from random weights: a small Llama over bytes, for the demo and the tests."""

OFFLINE_URL = "offline"
"""A base URL that means: the offline teacher of trainer.demo; the command line starts it for the time of the run."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The loop itself: how many iterations, what is hard, and what is new."""

    iterations: int = setting(
        3,
        label="Iterations",
        unit="iterations",
        low=0,
        high=50,
        paper="3",
        help="Adversarial iterations after the first imitation on the seed pool.",
    )
    new_per_iteration: int = setting(
        6000, label="New instructions per iteration", unit="instructions", low=1, high=1_000_000, paper="6,000"
    )
    ratio: str = setting(
        "1:1",
        label="Hard : easy",
        choices=("1:0", "2:1", "1:1", "1:2", "0:1"),
        paper="1:1",
        help="Share of the new instructions made from hard and from easy parents.",
    )
    tau: float = setting(
        1.0,
        label="Threshold tau",
        unit="points",
        low=-9,
        high=9,
        paper="1.0",
        help="An instruction is hard when the teacher's mean score minus the student's is at least tau.",
    )
    parents: str = setting(
        "by_verdict",
        label="Choice of parents",
        choices=("by_verdict", "random", "uniform"),
        paper="by_verdict",
        help="by_verdict: hard parents for hard, easy for easy. random: both operators, any parent. "
        "uniform: the hard operator alone, any parent.",
    )
    train_pool: str = setting(
        "replace",
        label="Train pool",
        choices=("replace", "accumulate"),
        paper="replace",
        help="Each iteration is tuned on the new instructions alone, or on all so far.",
    )
    student_start: str = setting(
        "last",
        label="Each imitation starts from",
        choices=("last", "base"),
        paper="last",
        help="The last checkpoint, or the base student again.",
    )
    similarity: float = setting(
        0.7, label="ROUGE-L limit", low=0, high=1, paper="0.7", help="A new instruction too close to a known one is rejected."
    )
    similarity_rule: str = setting(
        "below",
        label="Keep when similarity is",
        choices=("below", "at_most"),
        paper="below",
        help="below the limit (the paper) or at most the limit (the authors' code).",
    )
    candidate_rules: str = setting(
        "paper",
        label="Other rejection rules",
        choices=("paper", "code", "strict"),
        paper="paper",
        help="paper: similarity, empty and cut-off only. code: also the filters of the authors' code "
        "(3 words or fewer, the word 'instruction', odd first character). strict: also fewer than three words, what is no instruction (a "
        "refusal, talk about the task, an answer to it) and what is in another language than its parent.",
    )
    decontaminate: bool = setting(
        True,
        label="Decontamination",
        help="Reject what shares 13 words in a row with an item of a benchmark, or is above 0.7 ROUGE-L of its question: the benchmarks of "
        "the run and, on the web, all that were imported.",
    )
    attempts_per_new: float = setting(
        4.0,
        label="Attempts per new instruction",
        unit="attempts",
        low=1,
        high=100,
        help="A stage that cannot reach its number ends after this many attempts for each one wanted. The paper has no cap.",
    )


@dataclass(frozen=True, kw_only=True)
class DiscriminationConfig:
    """How the cache pool is judged; the threshold is `loop.tau`. By default as in the paper: all of it, jointly, in both orders, once."""

    scoring: str = setting(
        "joint",
        label="Scoring",
        choices=("joint", "pointwise"),
        paper="joint",
        help="joint: the referee reads both responses and scores both. pointwise: it reads each alone, and there is no order to prefer.",
    )
    orders: str = setting(
        "both",
        label="Orders",
        choices=("both", "teacher_first", "student_first"),
        paper="both",
        help="both: each instruction is judged twice with the responses swapped, and the means are compared. One order costs half, and "
        "what the referee prefers by place stays in the verdicts. Pointwise scoring has no order.",
    )
    samples: int = setting(
        1, label="Samples of each judgement", unit="judgements", low=1, high=20, paper="1", help="Several are averaged; each is paid."
    )
    panel: str = setting(
        "",
        label="Panel of referees",
        paper="",
        help="Endpoints with their weights, as `gpt: 2, other: 1`: each of them judges in the referee's place, and d is their weighted "
        "mean. Name the referee's endpoint too where it is to judge with them. Empty: the referee alone.",
    )
    sample: int = setting(
        0,
        label="Judge at most",
        unit="instructions",
        low=0,
        high=10_000_000,
        paper="0",
        help="A random sample of so many of the cache pool in each iteration. 0: all of it.",
    )
    most_quarantined: float = setting(
        0.2,
        label="Most quarantined",
        unit="share",
        low=0,
        high=1,
        help="Where more of what was judged could not be scored, the stage stops and asks: try again, score by hand or leave out.",
    )

    @property
    def weights(self) -> dict[str, float]:
        """Endpoint -> weight of a panel; empty where the referee judges alone. Raises ValueError where the panel cannot be read."""
        return read_panel(self.panel)


def read_panel(text: str) -> dict[str, float]:
    """`gpt: 2, other` as {"gpt": 2.0, "other": 1.0}. Raises ValueError, with a sentence a form can show."""
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = (piece.strip() for piece in part.rpartition(":")) if ":" in part else (part, "", "1")
        try:
            value = float(weight)
        except ValueError:
            raise ValueError(f"{weight!r} is no weight. Write endpoints with their weights, as `gpt: 2, other: 1`.") from None
        if not name or name in weights:
            raise ValueError(f"{name or part!r} stands twice in the panel." if name else f"{part!r} names no endpoint.")
        if not 0 < value < math.inf:
            raise ValueError(f"The weight of {name} must be above 0.")
        weights[name] = value
    return weights


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An OpenAI-compatible server and a model on it. The key stays in the environment; here is the variable's name."""

    base_url: str = setting("https://api.openai.com/v1", label="Base URL")
    model: str = setting("gpt-3.5-turbo", label="Model", paper="gpt-3.5-turbo")
    key_env: str = setting(
        "OPENAI_API_KEY",
        label="Variable with the key",
        help="Name of the environment variable that holds the key; empty where the server wants none.",
    )
    price_input: float = setting(0.0, label="Price of input", unit="$ per million tokens", low=0, high=10_000)
    price_cached: float = setting(
        0.0, label="Price of cached input", unit="$ per million tokens", low=0, high=10_000, help="0: as dear as other input."
    )
    price_output: float = setting(0.0, label="Price of output", unit="$ per million tokens", low=0, high=10_000)
    rpm: int = setting(
        0, label="Requests a minute", unit="requests", low=0, high=10_000_000, help="0: as the server's headers say, else found by trying."
    )
    input_tpm: int = setting(0, label="Input tokens a minute", unit="tokens", low=0, high=10_000_000_000, help="0: no such limit is known.")
    output_tpm: int = setting(
        0, label="Output tokens a minute", unit="tokens", low=0, high=10_000_000_000, help="0: no such limit is known."
    )
    max_at_once: int = setting(
        16, label="Calls at once", unit="calls", low=1, high=512, help="The most under way at one time, of all workers together."
    )
    timeout_s: float = setting(120.0, label="Timeout", unit="s", low=1, high=3600, help="For a whole answer.")
    connect_timeout_s: float = setting(10.0, label="Timeout to connect", unit="s", low=0.1, high=300)
    retries: int = setting(
        5,
        label="Retries",
        unit="retries",
        low=0,
        high=50,
        paper="5",
        help="After a timeout, a lost connection or a 5xx, with growing waits; then the item is quarantined. A 429 does not count.",
    )
    structured: str = setting(
        "text",
        label="Structured output",
        choices=("text", "json_schema", "json_object"),
        help="How referee and generator ask for their replies; text works everywhere. A server that refuses it is asked for text.",
    )
    length_parameter: str = setting(
        "max_tokens",
        label="Name of the length limit",
        choices=("max_tokens", "max_completion_tokens"),
        help="Newer OpenAI models want the second.",
    )
    send_seed: bool = setting(False, label="Send the sample number as `seed`", help="For servers that sample reproducibly by it.")
    extra: str = setting(
        "",
        label="Extra parameters",
        help='A JSON object that is sent along, for instance {"reasoning_effort": "low"}; a null leaves a parameter out.',
    )
    batch_api: bool = setting(False, label="Offers the Batch API", help="OpenAI's: files and batches, within a day, at half the price.")

    def extra_parameters(self) -> dict[str, Any]:
        """`extra` as data. Raises ValueError, with a sentence a form can show, where it is no JSON object."""
        return read_extra(self.extra)


@dataclass(frozen=True, kw_only=True)
class RoleConfig:
    """How a role samples from its endpoint. `endpoint` is a name in `RunConfig.endpoints`."""

    endpoint: str = setting("teacher", label="Endpoint")
    temperature: float = setting(0.7, label="Temperature", low=0, high=2)
    top_p: float = setting(1.0, label="Top p", low=0, high=1, paper="1.0")
    max_tokens: int = setting(1024, label="Longest reply", unit="tokens", low=1, high=32_768)
    asks: int = setting(
        3, label="Asks before quarantine", unit="calls", low=1, high=20, help="How often an unusable reply is asked for again."
    )
    batch: bool = setting(
        False,
        label="Batch mode",
        help="Calls go through the endpoint's Batch API: half the price, answered within a day. It must offer one.",
    )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(RoleConfig):
    """The teacher's sampling."""

    temperature: float = setting(0.7, label="Temperature", low=0, high=2, paper="0.7")
    max_tokens: int = setting(1024, label="Longest response", unit="tokens", low=1, high=32_768, paper="1024")


@dataclass(frozen=True, kw_only=True)
class RefereeConfig(RoleConfig):
    """The referee's sampling."""

    temperature: float = setting(0.2, label="Temperature", low=0, high=2, paper="0.2")
    max_tokens: int = setting(512, label="Longest judgement", unit="tokens", low=1, high=32_768, paper="512")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(RoleConfig):
    """The generator's sampling."""

    temperature: float = setting(1.0, label="Temperature", low=0, high=2, paper="1.0")
    max_tokens: int = setting(1024, label="Longest instruction", unit="tokens", low=1, high=32_768)
    tokens_per_word: float = setting(
        4.0,
        label="Tokens for each word of the parent",
        unit="tokens",
        low=0,
        high=1000,
        paper="4",
        help="A new instruction may be this much longer than its parent; what is cut off is rejected. 0: no such limit.",
    )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RoleConfig):
    """The judge of the Vicuna benchmark; it is opened where a benchmark needs one. The paper's is GPT-4."""

    endpoint: str = setting("", label="Endpoint", help="Empty: the referee's.")
    temperature: float = setting(0.2, label="Temperature", low=0, high=2)
    max_tokens: int = setting(1024, label="Longest judgement", unit="tokens", low=1, high=32_768)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Which open model is tuned, and how its weights are held."""

    model: str = setting(
        "huggyllama/llama-7b",
        label="Student",
        paper="LLaMA-7B",
        help=f"A Hub name, a local folder, or {SCRATCH_MODEL} for a small Llama from random weights.",
    )
    revision: str = setting("", label="Revision", help="Branch, tag or commit of a Hub model.")
    template: str = setting(
        "paper",
        label="Prompt form",
        choices=("paper", "chat"),
        paper="paper",
        help="The paper's '### Instruction' form, or the model's own chat template.",
    )
    method: str = setting(
        "full",
        label="Tuning",
        choices=("full", "lora", "qlora"),
        paper="full",
        help="All weights, an adapter (LoRA), or an adapter on a base held in 4 bits (QLoRA: needs a CUDA card and bitsandbytes).",
    )
    lora_rank: int = setting(16, label="LoRA rank", low=1, high=1024)
    lora_alpha: float = setting(32.0, label="LoRA alpha", low=1, high=4096)
    lora_dropout: float = setting(0.0, label="LoRA dropout", low=0, high=0.9)
    precision: str = setting("bf16", label="Precision", choices=("fp32", "bf16", "fp16"), paper="bf16")
    scratch_width: int = setting(128, label="Width of the scratch student", unit="features", low=16, high=4096)
    scratch_layers: int = setting(3, label="Layers of the scratch student", unit="layers", low=1, high=64)
    scratch_heads: int = setting(4, label="Heads of the scratch student", unit="heads", low=1, high=64)


@dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """Fine-tuning on the teacher's responses, with the loss on the response tokens alone."""

    preflight: bool = setting(
        True,
        label="Preflight",
        help="Before the teacher is asked anything, see that the student can be read, fits in memory and has room on disk.",
    )
    epochs: float = setting(3.0, label="Epochs", unit="epochs", low=0.01, high=1000, paper="3")
    first_steps: int = setting(0, label="Steps in iteration 0", unit="steps", low=0, high=10_000_000, help="0: as many as the epochs make.")
    steps: int = setting(0, label="Steps per later iteration", unit="steps", low=0, high=10_000_000, help="0: as many as the epochs make.")
    batch_size: int = setting(128, label="Batch size", unit="examples", low=1, high=65_536, paper="128")
    device_batch_size: int = setting(
        2, label="Batch on one device", unit="examples", low=1, high=4096, paper="2", help="The rest is gradient accumulation."
    )
    learning_rate: float = setting(2e-5, label="Learning rate", low=0, high=1, paper="2e-5")
    schedule: str = setting("cosine", label="Schedule", choices=("cosine", "linear", "constant"), paper="cosine")
    warmup: float = setting(0.03, label="Warm-up", unit="share of steps", low=0, high=1, paper="0.03")
    weight_decay: float = setting(0.0, label="Weight decay", low=0, high=1, paper="0")
    max_length: int = setting(1024, label="Longest example", unit="tokens", low=8, high=1_048_576, paper="1024")
    too_long: str = setting(
        "cut",
        label="Longer examples are",
        choices=("cut", "leave_out"),
        paper="cut",
        help="cut: the student then learns no end from them. leave_out: they teach nothing. Either way they are counted.",
    )
    batches: str = setting(
        "auto",
        label="Device batches",
        choices=("auto", "grouped", "packed"),
        help="grouped: examples of like length, padded. packed: one after the other without padding, which FlashAttention makes fast; "
        "auto takes it where that is installed. The loss is the same.",
    )
    gradient_checkpointing: bool = setting(
        False, label="Gradient checkpointing", help="Less memory for activations, a third more time: they are computed twice."
    )
    processes: int = setting(
        0, label="Processes", unit="processes", low=0, high=4096, paper="8", help="0: one for each GPU of the worker, one on a CPU."
    )
    sharding: str = setting(
        "none",
        label="Sharding",
        choices=("none", "full"),
        paper="full",
        help="none: each process holds the whole student (DDP). full: weights, gradients and optimizer are shared out among them (FSDP).",
    )
    data_workers: int = setting(
        0, label="Data workers", unit="processes", low=0, high=256, help="They prepare batches; texts are tokens by then, so 0 will do."
    )
    save_steps: int = setting(600, label="Save every", unit="steps", low=1, high=10_000_000, paper="600")
    log_steps: int = setting(10, label="Log every", unit="steps", low=1, high=10_000)


@dataclass(frozen=True, kw_only=True)
class RespondConfig:
    """How the student answers the cache pool."""

    temperature: float = setting(0.7, label="Temperature", low=0, high=2, paper="0.7", help="0 is greedy.")
    max_new_tokens: int = setting(1024, label="Longest response", unit="tokens", low=1, high=32_768, paper="1024")
    batch_size: int = setting(
        64,
        label="Batch",
        unit="responses",
        low=1,
        high=4096,
        help="The most responses written at once; fewer where memory is short. As one ends, the next prompt takes its place.",
    )
    server: str = setting(
        "",
        label="Server",
        help="Empty: the student answers in the worker. The base URL of an OpenAI-compatible server that serves the checkpoint, such as "
        "http://gpu1:8000/v1. vllm: the worker starts and stops vLLM, where it is installed.",
    )
    server_model: str = setting(
        "",
        label="Model on the server",
        help="What the server calls the checkpoint; {iteration} stands for the iteration's number. Empty: the first model it lists.",
    )
    server_key_env: str = setting(
        "", label="Variable with the server's key", help="Name of the environment variable that holds the key; empty where it wants none."
    )
    at_once: int = setting(64, label="Requests at once", unit="requests", low=1, high=4096, help="To the server, if there is one.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured after each imitation."""

    benchmarks: tuple[str, ...] = setting(
        (), label="Benchmarks", choices=("demo_skills",), help="demo_skills: 60 held-out items of each demo task, exact match."
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does. Two runs of one config give the same pools and verdicts."""

    name: str = setting("run", label="Name")
    seed: int = setting(1, label="Seed", low=0, high=2**31 - 1)
    seed_pool: str = setting("demo", label="Seed pool", help="'demo', or a JSON or JSONL file in the Alpaca or Self-Instruct format.")
    loop: LoopConfig = field(default_factory=LoopConfig)
    discrimination: DiscriminationConfig = field(default_factory=DiscriminationConfig)
    endpoints: Mapping[str, EndpointConfig] = field(default_factory=lambda: {"teacher": EndpointConfig()})
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    referee: RefereeConfig = field(default_factory=RefereeConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    respond: RespondConfig = field(default_factory=RespondConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def as_dict(self) -> dict[str, Any]:
        """The config as JSON-ready data; `config_from_dict` gives an equal config back."""
        return {**asdict(self), "endpoints": {name: asdict(endpoint) for name, endpoint in self.endpoints.items()}}


ROLES = ("teacher", "referee", "generator", "judge")
"""The roles that answer through an endpoint."""


def endpoint_of(config: RunConfig, role: str) -> str:
    """The name of a role's endpoint; the judge has the referee's unless it is given its own."""
    name: str = getattr(config, role).endpoint
    return name or (config.referee.endpoint if role == "judge" else "")


def sections() -> dict[str, type]:
    """The sections of a run's config: name -> class."""
    hints = get_type_hints(RunConfig)
    return {f.name: hints[f.name] for f in fields(RunConfig) if isinstance(hints[f.name], type) and is_dataclass(hints[f.name])}


def load_config(path: Path, **overrides: Any) -> RunConfig:
    """Read a TOML config; overrides replace top-level settings. Raises ConfigError with the dotted field names."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config at {path}. Name a TOML file, for instance one of {PRESETS}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. Mend that line.") from None
    return config_from_dict({**data, **{k: v for k, v in overrides.items() if v is not None}})


def preset_names() -> list[str]:
    """The presets that ship with the trainer: demo, paper-7b, ..."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> RunConfig:
    """A preset by name. Raises ConfigError for an unknown one."""
    if name not in preset_names():
        raise ConfigError(f"There is no preset {name!r}. Choose one of: {', '.join(preset_names())}.")
    return load_config(PRESETS / f"{name}.toml")


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """Make a new config from plain data, with every check. Raises ConfigError naming every refused field at once."""
    wrong: dict[str, str] = {}
    config = _build(data, wrong)
    if not wrong:
        _check_whole(config, wrong)
        _check_endpoints(config, wrong)
    _refuse(wrong)
    return config


def stored_config(data: Mapping[str, Any]) -> RunConfig:
    """Read back a config that was made before. Raises ConfigError where it cannot be read.

    What endpoints may say is not checked again: a later version may refuse what an earlier one took, and a run is read all the same.
    """
    wrong: dict[str, str] = {}
    config = _build(data, wrong)
    if not wrong:
        _check_whole(config, wrong)
    _refuse(wrong)
    return config


def _build(data: Mapping[str, Any], wrong: dict[str, str]) -> RunConfig:
    """A config with each setting checked for itself; complaints go to `wrong`."""
    values: dict[str, Any] = {}
    known = sections()
    for name, value in data.items():
        if name == "endpoints":
            values[name] = {
                endpoint: build(EndpointConfig, settings, f"endpoints.{endpoint}", wrong)
                for endpoint, settings in _table(value, name, wrong).items()
            }
        elif name in known:
            values[name] = build(known[name], _table(value, name, wrong), name, wrong)
        else:
            values[name] = value
    config: RunConfig = build(RunConfig, values, "", wrong)
    return config


def _refuse(wrong: dict[str, str]) -> None:
    if wrong:
        listed = "; ".join(f"{name}: {text}" for name, text in wrong.items())
        raise ConfigError(f"The config was refused. {listed}", fields=wrong)


def _table(value: Any, name: str, wrong: dict[str, str]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    wrong[name] = "Must be a table of settings."
    return {}


def _check_whole(config: RunConfig, wrong: dict[str, str]) -> None:
    """What no single setting can know: that roles name endpoints, that batches divide."""
    for role in ROLES:
        name = endpoint_of(config, role)
        if name not in config.endpoints:
            wrong[f"{role}.endpoint"] = f"There is no endpoint {name!r}. Known: {', '.join(config.endpoints) or 'none'}."
    _check_panel(config, wrong)
    if not config.student.model.strip():
        wrong["student.model"] = f"Name a student: a Hub name, a local folder or {SCRATCH_MODEL}."
    batch, device = config.imitation.batch_size, config.imitation.device_batch_size
    if batch % device:
        wrong["imitation.device_batch_size"] = f"{batch} is not a multiple of {device}: gradient accumulation needs whole batches."
    if config.imitation.sharding == "full" and config.student.method != "full":
        wrong["imitation.sharding"] = "Sharding is for full tuning; an adapter's base is held whole by each process. Choose none."
    if config.imitation.processes and batch % config.imitation.processes:
        wrong["imitation.processes"] = f"{config.imitation.processes} processes cannot share a batch of {batch} examples evenly."
    if config.student.scratch_width % config.student.scratch_heads:
        wrong["student.scratch_heads"] = f"The width {config.student.scratch_width} is not a multiple of {config.student.scratch_heads}."


def _check_panel(config: RunConfig, wrong: dict[str, str]) -> None:
    try:
        unknown = [name for name in config.discrimination.weights if name not in config.endpoints]
    except ValueError as error:
        wrong["discrimination.panel"] = str(error)
        return
    if unknown:
        wrong["discrimination.panel"] = f"There is no endpoint {unknown[0]!r}. Known: {', '.join(config.endpoints) or 'none'}."


def referees_of(config: RunConfig) -> dict[str, float]:
    """Endpoint -> weight of every referee of a run: its panel, or the one referee."""
    return config.discrimination.weights or {endpoint_of(config, "referee"): 1.0}


def _check_endpoints(config: RunConfig, wrong: dict[str, str]) -> None:
    """What a new config may not ask of its endpoints."""
    for role in batch_roles_without_api(config):
        wrong[f"{role}.batch"] = (
            f"Endpoint {endpoint_of(config, role)!r} does not offer the Batch API. "
            "Turn batch mode off, or say on the endpoint that it does."
        )
    for name, endpoint in config.endpoints.items():
        wrong |= {f"endpoints.{name}.{setting}": complaint for setting, complaint in refused_settings(endpoint)}


def batch_roles_without_api(config: RunConfig) -> list[str]:
    """The roles in batch mode with an endpoint that offers no Batch API."""
    return [role for role in ROLES if getattr(config, role).batch and _without_batch_api(config, role)]


def _without_batch_api(config: RunConfig, role: str) -> bool:
    names = referees_of(config) if role == "referee" else [endpoint_of(config, role)]
    return any(name in config.endpoints and not config.endpoints[name].batch_api for name in names)
