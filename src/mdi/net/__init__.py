"""Keys, certificates, sockets, and which peers are authorized."""
