"""A chat in the terminal with a server of OpenAI's API: what is typed, asked, streamed, shown and kept."""
