"""Keys, certificates, sockets, which peers are authorized, and limits on those that are not."""
