"""`stddaq completion`: the shell completes commands, options and choices."""

from __future__ import annotations

import subprocess

import pytest

from stddaq.cli import main as stddaq


def completions(script: str, *words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    call = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; _shtab_stddaq"
    program = f"{script}\n{call}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert stddaq(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completions(script, "stddaq", "rec") == ["record"]
    assert "simulate-udp" in completions(script, "stddaq", "sim")
    assert completions(script, "stddaq", "record", "--n-i") == ["--n-images"]
    assert completions(script, "stddaq", "init", "--detector", "ei") == ["eiger"]
