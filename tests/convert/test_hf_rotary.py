"""The rotary settings of Hugging Face folders give the tables that transformers computes with."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT

from mdi.checkpoint.config import config_from_dict, config_to_dict, load_config
from mdi.convert.hf_rotary import rotary_fields
from mdi.errors import CheckpointError
from mdi.model.architecture import architecture_of
from support.models import BASE, make_model

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "rotary_tables.json").read_text())
CASES = REFERENCE["cases"]
SIZES = {"n_layer": 6, "n_embd": 64, "n_head": 4, "n_query_groups": 2, "head_size": 16}
GEMMA3_WINDOWS = [1, 1, 1, 1, 1, 0]


def config_of(settings: dict[str, Any]) -> Config:
    flat = {"model_type": "llama", "max_position_embeddings": 128} | REFERENCE["sizes"] | settings
    slides = GEMMA3_WINDOWS if flat["model_type"] == "gemma3_text" else [0] * 6
    fields = rotary_fields(flat, "config.json", slides, flat["max_position_embeddings"])
    return Config(**BASE | SIZES | fields)


def tables_of(config: Config, context: int) -> torch.Tensor:
    """(cosines and sines, context, D, kinds of layers), as a secondary has them: from JSON."""
    config = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    cos, sin = architecture_of(config).rotary_tables(config, context, torch.device("cpu"))
    sin[:, : sin.size(1) // 2].neg_()  # our sines carry the sign of the rotation
    return torch.stack((cos, sin)).view(2, context, cos.size(1), -1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']} {case['context']}")
def test_tables_are_those_of_transformers(case: dict[str, Any]) -> None:
    """In both forms, within the original context and beyond it."""
    tables = tables_of(config_of(case["settings"]), case["context"])
    assert tables.size(3) == len(case["tables"])
    for layer, expected in enumerate(case["tables"]):
        for position, values in zip(REFERENCE["positions"], expected, strict=False):
            torch.testing.assert_close(tables[:, position, :, layer], torch.tensor(values), rtol=0, atol=2e-5)


def test_methods_differ_beyond_the_original_context() -> None:
    """So that none of the cases above would pass with another's tables."""
    last = [case["tables"] for case in CASES if case["context"] > 32 and case["name"] in ("default", "yarn", "dynamic")]
    assert len({json.dumps(tables) for tables in last}) == 3


def test_settings_survive_the_model_folder(tmp_path: Path) -> None:
    config = config_of({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}})
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert load_config(tmp_path) == config


def test_litgpt_refuses_settings_that_it_would_compute_otherwise() -> None:
    """It blends the two sets of frequencies of YaRN in the reverse order of the paper."""
    config = config_of({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}})
    with pytest.raises(ValueError, match="YaRN RoPE parameters are missing"):
        GPT(config)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "linear", "factor": 4.0}, 128),
        ({"rope_type": "yarn", "factor": 1.0}, 128),
    ],
)
def test_a_method_that_extends_the_context_gives_it(scaling: dict[str, Any], context: int) -> None:
    """config.json of a model that is to be extended often holds the original number of positions."""
    assert config_of({"rope_scaling": scaling}).block_size == context


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_old_names_of_phi3(kind: str) -> None:
    longrope = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    new, old = (
        config_of({"model_type": "phi3", "rope_scaling": {"type": name, **longrope}}) for name in ("longrope", kind)
    )
    assert old == new


def test_equal_settings_for_both_kinds_of_layers_are_one_table() -> None:
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = config_of({"rope_parameters": {"full_attention": linear, "sliding_attention": linear}})
    assert (config.rope_adjustments, config.rope_indices) == ({"factor": 2.0}, None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rope_scaling": {"type": "ntk-by-parts"}}, "kind 'ntk-by-parts' is not supported, only default, linear, "),
        ({"rope_scaling": {"type": 4}}, "type is 4, not a text"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor is '4', not a number"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "factor is 0.5, not a number from 1 on"),
        ({"rope_scaling": {"type": "yarn", "factor": [2]}}, "factor is "),
        ({"rope_scaling": {"type": "yarn", "factor": 1e308}}, "factor is 1e.308, not a number from 1 on"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "truncate is 1, not true or false"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": -1}}, "beta_fast is -1"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": 3}}, "long_factor is 3"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1}}, "lacks high_freq_factor"),
        ({"rope_scaling": "linear"}, "an object is expected, not 'linear'"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6', not a number above 1"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor is 2, not a number up to 1"),
        ({"original_max_position_embeddings": "x"}, "original_max_position_embeddings is 'x'"),
        ({"rope_parameters": {"chunked_attention": {}}}, "layers of the kind 'chunked_attention' are not supported"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2}}},
            "sliding_attention other than its base",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: .*" + text):
        config_of(settings)


@pytest.mark.parametrize(
    ("adjustments", "text"),
    [
        ({"rope_type": "ntk"}, "'ntk' in rope_adjustments is not one of yarn, dynamic, longrope"),
        ({"rope_type": "dynamic", "factor": "2", "original_max_position_embeddings": 8}, "factor is '2'"),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 0}, "not positive"),
        ({"rope_type": "dynamic", "factor": 0.5, "original_max_position_embeddings": 8}, "less than 1"),
        ({"rope_type": "yarn"}, "factor"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
            | {"original_max_position_embeddings": 8, "attention_factor": 1.0},
            "needs 4 short and long factors",
        ),
    ],
)
def test_a_folder_with_damaged_settings_is_refused(tmp_path: Path, adjustments: dict[str, Any], text: str) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("rope_adjustments: null", f"rope_adjustments: {json.dumps(adjustments)}"))
    with pytest.raises(CheckpointError, match=text):
        load_config(folder)
