"""The wire between neighbours: messages, frames, handshake, links."""
