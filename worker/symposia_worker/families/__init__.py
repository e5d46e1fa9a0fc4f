"""Families: what differs between the ``model_type``s, as data, and the renderer that makes prompts of messages."""

from symposia_worker.families.family import Family, family_of
from symposia_worker.families.renderer import Renderer

__all__ = ["Family", "Renderer", "family_of"]
