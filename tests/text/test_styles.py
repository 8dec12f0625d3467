"""Which prompt style a model gets, and its stop sequences."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.errors import CheckpointError, ConfigError
from mdi.text.prompts import encode_prompt
from mdi.text.styles import PLAIN, Style, load_style, stop_sequences
from mdi.text.worker_process import TextWorker
from support.vocabularies import local_tokenizer, model_folder, shared_tokenizer, write_json

# ---- styles

CHATML = (
    "{% for m in messages %}\n  {% generation %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}\n{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>{% endif %}"
)
CHATML_HI = "<|im_start|>user: Hi<|im_end|><|im_start|>"


StyleOf = Callable[..., Style]


@pytest.fixture
def style_of(worker: TextWorker) -> StyleOf:
    """The style of a folder, by litgpt's name of the model and the override."""

    def style(folder: Path, name: str = "tiny", override: str | None = None) -> Style:
        return load_style(folder, name, local_tokenizer(folder), worker, override)

    return style


def test_prompt_style_yaml_comes_first(tmp_path: Path, style_of: StyleOf) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML)
    (folder / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Phi2\n", encoding="utf-8")
    assert style_of(folder, "SmolLM2-135M-Instruct").apply("Hi") == "Instruct: Hi\nOutput:"


@pytest.mark.parametrize(
    "content",
    [
        "class_path: os.system",
        "class_path: litgpt.prompts.Path",
        "class_path: litgpt.prompts.prompt_styles",
        "class_path: litgpt.prompts.missing",
        "class_path: litgpt.prompts.yaml.load",
        "class_path: litgpt.prompts",
        "class_path: [1]",
        "class_path: litgpt.utils.CLI",
        "- 1",
        "",
        "class_path: '",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_a_prompt_style_from_anywhere_else_is_refused(content: str, tmp_path: Path, style_of: StyleOf) -> None:
    folder = model_folder(tmp_path, "byte-level")
    (folder / "prompt_style.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"prompt_style\.yaml") as caught:
        style_of(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "SmolLM2-135M-Instruct"])
def test_then_the_models_own_chat_template(name: str, tmp_path: Path, style_of: StyleOf) -> None:
    """Also where litgpt knows another one for the name: a fine-tune may have kept that."""
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML, eos_token="<|im_end|>")
    assert style_of(folder, name).apply("Hi") == CHATML_HI


def test_then_the_style_that_litgpt_knows_for_the_name(tmp_path: Path, style_of: StyleOf) -> None:
    folder = model_folder(tmp_path, "byte-level")
    style = style_of(folder, "SmolLM2-135M-Instruct")
    assert style.name == "SmolLM2"
    assert style.apply("Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_then_none(tmp_path: Path, style_of: StyleOf) -> None:
    assert style_of(model_folder(tmp_path, "byte-level")) is PLAIN
    assert PLAIN.apply("Hi") == "Hi"


def test_a_template_may_be_one_of_a_list_or_a_file_of_its_own(tmp_path: Path, style_of: StyleOf) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    folder = model_folder(tmp_path, "byte-level", chat_template=templates, eos_token="<|im_end|>")
    assert style_of(folder).apply("Hi") == CHATML_HI
    (folder / "chat_template.jinja").write_text("{{ bos_token }}[{{ messages[0].content }}]", encoding="utf-8")
    assert style_of(folder).apply("Hi") == "[Hi]"


def test_an_override_goes_before_everything(tmp_path: Path, style_of: StyleOf) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML, eos_token="<|im_end|>")
    (folder / "prompt_style.yaml").write_text("class_path: os.system", encoding="utf-8")
    name = "SmolLM2-135M-Instruct"
    assert style_of(folder, name, "none") is PLAIN
    assert style_of(folder, name, "chat-template").apply("Hi") == CHATML_HI
    assert style_of(folder, name, "phi-1").apply("Hi") == "Hi\n\nAnswer:"


def test_an_unknown_override_lists_the_names(tmp_path: Path, style_of: StyleOf) -> None:
    folder = model_folder(tmp_path, "byte-level")
    with pytest.raises(ConfigError, match=r"nonsense.* none, chat-template,.* llama3,"):
        style_of(folder, override="nonsense")
    with pytest.raises(ConfigError, match="no chat template"):
        style_of(folder, override="chat-template")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_no_style_of_litgpt_fails_on_a_vocabulary_without_its_tokens(kind: str, worker: TextWorker) -> None:
    from litgpt.prompts import prompt_styles

    tokenizer = shared_tokenizer(kind)
    for name in prompt_styles:
        style = load_style(Path(), "x", tokenizer, worker, name)
        assert encode_prompt(tokenizer, style, "Hi")
        assert all(stop and all(isinstance(i, int) for i in stop) for stop in style.stops)


# ---- stop sequences of a model


def test_stops_are_the_union_of_style_tokenizer_and_generation_config(tmp_path: Path, worker: TextWorker) -> None:
    folder = model_folder(tmp_path, "byte-level", eos_token="<|im_end|>")
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 0]})
    tokenizer = local_tokenizer(folder)
    style = load_style(folder, "Meta-Llama-3-8B-Instruct", tokenizer, worker)
    assert style.stops == ((2,), (3,))  # eos and <|eot_id|>
    assert stop_sequences(folder, tokenizer, style) == ((2,), (3,), (0,))
    assert stop_sequences(folder, tokenizer, PLAIN) == ((2,), (0,))


def test_the_end_that_only_config_json_names_stops_a_sample(tmp_path: Path, worker: TextWorker) -> None:
    folder = model_folder(tmp_path, "byte-level")
    write_json(folder / "config.json", {"eos_token_id": 2})
    assert stop_sequences(folder, local_tokenizer(folder), PLAIN) == ((2,),)


def test_a_model_that_names_no_end_has_no_stops(tmp_path: Path, worker: TextWorker) -> None:
    folder = model_folder(tmp_path, "byte-level")
    tokenizer = local_tokenizer(folder)
    style = load_style(folder, "tiny-llama-1.1b-chat", tokenizer, worker)
    assert stop_sequences(folder, tokenizer, style) == ()
