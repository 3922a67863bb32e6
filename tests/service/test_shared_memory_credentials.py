"""Shared memory of a server that asks for credentials: files are offered without, and used by calls that have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_server import start

import gradoracle as go


def test_a_call_needs_credentials_whatever_memory_it_names(tmp_path: Path) -> None:
    """Who may open the second socket may offer memory; a call that names it is refused without the server's token."""
    (tmp_path / "tokens").write_text("secret-token\n")
    address = f"unix:{tmp_path / 'g.sock'}"
    x = np.ones(40_000)
    flags = ("--listen", address, "--workers", "1", "--shared-memory", "--token-file", str(tmp_path / "tokens"))
    with start(*flags), go.Client(address, shared_memory=True) as stranger:
        with pytest.raises(go.AuthenticationError):
            stranger.evaluate("x + x", {"x": x})
        assert stranger._memory is not None
        assert stranger._memory._connection is not None  # it was offered
        with go.Client(address, shared_memory=True, token="secret-token") as known:  # noqa: S106
            np.testing.assert_array_equal(2 * x, known.evaluate("x + x", {"x": x}).outputs["out"])
