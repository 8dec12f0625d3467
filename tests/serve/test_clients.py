"""Other people's clients against a ring of three processes, by `make clients`: the llm command, and LangChain."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_ring import KEY, MODEL, N_TOKENS, PROMPTS, Served, served

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]  # they warn of what they please


__all__ = ["served"]  # the fixture: a ring of this module's own


# ---- llm, the command (https://llm.datasette.io)


@pytest.fixture
def llm(served: Served, tmp_path: Path) -> Any:
    """Runs the command with our model configured as its documentation says for servers of this form."""
    program = shutil.which("llm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("llm is not installed: make clients")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ring\n  model_name: {MODEL}\n  api_base: http://127.0.0.1:{served.port}/v1\n"
        "  api_key_name: ring\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str, stdin: str = "") -> str:
        command = [program, *arguments]
        done = subprocess.run(
            command, input=stdin, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("keys", "set", "ring", "--value", KEY)
    return run


@pytest.mark.parametrize("how", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_llm_prompts(how: tuple[str, ...], llm: Any, served: Served) -> None:
    options = ("-m", "ring", "-o", "temperature", "0", "-o", "max_tokens", str(N_TOKENS))
    assert llm(*how, *options, PROMPTS[0]).strip() == served.expected[PROMPTS[0]].strip()


def test_llm_goes_on_with_a_conversation(llm: Any, served: Served) -> None:
    options = ("-m", "ring", "-o", "temperature", "0", "-o", "max_tokens", str(N_TOKENS))
    llm(*options, PROMPTS[0])
    second = llm("--continue", "-o", "temperature", "0", "-o", "max_tokens", str(N_TOKENS), "Go on.")
    first = served.expected[PROMPTS[0]]
    turns = [("user", PROMPTS[0]), ("assistant", first), ("user", "Go on.")]
    with served.client() as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": role, "content": content} for role, content in turns],
            temperature=0,
            max_tokens=N_TOKENS,
        )
    assert second.strip() == answer.choices[0].message.content.strip()


# ---- LangChain


@pytest.fixture
def langchain(served: Served) -> Iterator[dict[str, Any]]:
    """The options of its models, whose connections are closed with the test: their own pool lives on."""
    pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: make clients")
    openai = pytest.importorskip("openai")
    url = f"http://127.0.0.1:{served.port}/v1"
    options = {"model": MODEL, "base_url": url, "api_key": KEY, "temperature": 0, "max_tokens": N_TOKENS}
    with openai.DefaultHttpxClient() as http_client:
        yield options | {"max_retries": 0, "http_client": http_client}


def test_langchain_chats(langchain: dict[str, Any], served: Served) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(**langchain)
    answer = model.invoke([("user", PROMPTS[1])])
    assert answer.content == served.expected[PROMPTS[1]]
    assert answer.usage_metadata["output_tokens"] <= N_TOKENS
    assert "".join(chunk.content for chunk in model.stream(PROMPTS[2])) == served.expected[PROMPTS[2]]
    answers = model.batch(PROMPTS[:4])
    assert [answer.content for answer in answers] == [served.expected[prompt] for prompt in PROMPTS[:4]]


def test_langchain_chats_by_the_responses_api(langchain: dict[str, Any], served: Served) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(**langchain, use_responses_api=True)
    assert model.invoke(PROMPTS[1]).text == served.expected[PROMPTS[1]]
    assert "".join(chunk.text for chunk in model.stream(PROMPTS[1])) == served.expected[PROMPTS[1]]


def test_langchain_completes(langchain: dict[str, Any], served: Served) -> None:
    from langchain_openai import OpenAI

    model = OpenAI(**langchain)
    with served.client() as client:
        expected = client.completions.create(model=MODEL, prompt="Water is", temperature=0, max_tokens=N_TOKENS)
    assert model.invoke("Water is") == expected.choices[0].text
    assert "".join(model.stream("Water is")) == expected.choices[0].text
