"""Whatever reads JSON, YAML, CSV or plain text of others, one byte choosing which."""

import random

from fuzz.mutations import change_document
from fuzz.target import Target
from support.readers import READERS, outcome


class DocumentTarget(Target):
    """All readers of `support.readers`, with the file on disk."""

    name = "documents"
    growth_limit_bytes = 64 << 20  # litgpt builds a block for each configuration

    def seeds(self) -> list[bytes]:
        return [bytes([index]) + reader.content for index, reader in enumerate(READERS.values())]

    def check(self, data: bytes) -> int:
        reader = list(READERS.values())[(data or b"\0")[0] % len(READERS)]
        path = self.scratch / reader.file
        path.write_bytes(data[1:])
        text = outcome(reader, path)
        path.unlink()
        assert len(text.splitlines()) < 2, text
        self.accepted += not text
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        return data[:1] + change_document(data[1:], rng)
