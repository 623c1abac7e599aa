"""What is compared: one module a peer, imported only in a process of that peer's own environment."""
