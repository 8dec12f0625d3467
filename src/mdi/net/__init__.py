"""Keys, certificates, sockets, addresses, which peers are authorized, and limits on those that are not."""
