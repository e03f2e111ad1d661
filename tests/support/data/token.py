"""The token of services that demand one."""

TOKEN = "a-token-that-is-hard-to-guess"
