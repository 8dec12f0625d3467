"""Log probabilities of tokens in the two forms that the API has for them."""

from collections.abc import Sequence
from typing import Any

from mdi.engine.sample import Logprob, TokenLogprobs
from mdi.text.tokenizer import Tokenizer


def of_chat(tokenizer: Tokenizer, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """An entry for each token."""
    content = [
        _entry(tokenizer, token) | {"top_logprobs": [_entry(tokenizer, other) for other in token.top_logprobs]}
        for token in found
    ]
    return {"content": content, "refusal": None}


def of_completion(tokenizer: Tokenizer, found: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """A list for each property; `offset` is where the first token begins in the text, in characters."""
    texts = [_text(tokenizer, token) for token in found]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    tops = [{_text(tokenizer, other): other.logprob for other in token.top_logprobs} for token in found]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in found],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _entry(tokenizer: Tokenizer, token: Logprob) -> dict[str, Any]:
    data = tokenizer.token_bytes(token.token)
    return {"token": _text(tokenizer, token), "logprob": token.logprob, "bytes": list(data)}


def _text(tokenizer: Tokenizer, token: Logprob) -> str:
    """A token by itself; one that is only a part of a character has a replacement character for it."""
    return tokenizer.token_bytes(token.token).decode("utf-8", "replace")
