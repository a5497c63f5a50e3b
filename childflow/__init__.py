"""childflow: run one command, and everything it starts, inside a network of its own."""

__version__ = "0.1.0"
