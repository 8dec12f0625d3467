"""Names of models as people type them."""

import pytest

from mdi.convert.hf_configs import config_by_name
from mdi.convert.known_models import KNOWN_MODELS, HubName, choose_gguf, parse_hub_name
from mdi.errors import CheckpointError

FILES = [
    "README.md",
    "Tiny-Q4_K.gguf",
    "Tiny-Q4_K_M.gguf",
    "Tiny-BF16.gguf",
    "mmproj-Tiny-F16.gguf",
    "Q8_0/Tiny-Q8_0-00001-of-00002.gguf",
    "Q8_0/Tiny-Q8_0-00002-of-00002.gguf",
    "Tiny-IQ2_M-00001-of-00002.gguf",
    "../../Tiny-Q5_0.gguf",
    "a-Q6_K.gguf",
    "b-Q6_K.gguf",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/name-GGUF:Q4_K_M", HubName("org/name-GGUF", "Q4_K_M")),
        ("org/name/file.gguf", HubName("org/name", "file.gguf")),
        ("org/name/sub folder/file.gguf", HubName("org/name", "sub folder/file.gguf")),
        ("TinyLlama", HubName("TinyLlama/TinyLlama-1.1B-Chat-v1.0")),
        ("nobody-knows-this", None),
        ("./model.gguf", None),
        ("folder/model.gguf", None),
        ("../org/name", None),
        ("a/b/c", None),
        ("org/name:", None),
        ("", None),
    ],
)
def test_a_name_on_the_hub_is_understood(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected
    if expected is not None and expected.gguf is not None:
        assert str(expected) == text
        assert expected.model_name == "org/name"


def test_every_short_name_is_a_model_that_can_be_converted() -> None:
    for name, model in KNOWN_MODELS.items():
        assert name == name.lower() and "/" not in name
        assert config_by_name(model.repo_id).n_layer > 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("Q4_K_M", ["Tiny-Q4_K_M.gguf"]),
        ("q4_k", ["Tiny-Q4_K.gguf"]),
        ("Q8_0", ["Q8_0/Tiny-Q8_0-00001-of-00002.gguf", "Q8_0/Tiny-Q8_0-00002-of-00002.gguf"]),
        ("Q8_0/Tiny-Q8_0-00002-of-00002.gguf", FILES[5:7]),
        ("Tiny-BF16.gguf", ["Tiny-BF16.gguf"]),
    ],
)
def test_a_gguf_of_a_repo_is_chosen_with_all_its_parts(wanted: str, expected: list[str]) -> None:
    assert choose_gguf(HubName("org/name", wanted), FILES) == expected


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("F16", "org/name has no F16; its GGUF files: Q8_0/"),
        ("Q6_K", "org/name has 2 models in Q6_K"),
        ("Q5_0", "has no Q5_0"),
        ("IQ2_M", r"lacks 1 of 2 parts: Tiny-IQ2_M-00002-of-00002\.gguf"),
        ("none.gguf", r"has no none\.gguf"),
    ],
)
def test_what_is_not_one_model_is_an_error(wanted: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        choose_gguf(HubName("org/name", wanted), FILES)
