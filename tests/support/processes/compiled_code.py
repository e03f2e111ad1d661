"""Compiled code of receivers, loaded by importing this before services are forked, so that none has to."""

from __future__ import annotations

from support.peers.assembly_bench import eiger

eiger().compile()
