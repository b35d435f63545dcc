"""One module an engine. Each runs in a child process of its own, peers in an environment of their own too."""
