"""Ports and urls of the servers when nothing else is given. Imports nothing, so that `--help` is quick."""

DEFAULT_PORT = 8080
DEFAULT_URL = f"ws://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_CONFIG_PORT = 5000
DEFAULT_CONFIG_URL = f"http://127.0.0.1:{DEFAULT_CONFIG_PORT}"
