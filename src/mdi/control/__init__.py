"""HTTP between nodes: routes, client, authentication, server."""
