"""``symposia worker``: a pool on any machine that reaches Redis and S3."""

from __future__ import annotations

from symposia_worker.commands.pool import command

__all__ = ["command"]
