"""Multi-stage video generation with LTX-2.3: one command that says what it did."""

from __future__ import annotations

__version__ = "0.1.0"
