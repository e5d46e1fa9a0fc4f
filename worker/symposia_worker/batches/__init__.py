"""Batches driven by the coordinator: ``driver.py`` finds them, ``drive.py`` runs one, ``spans.py`` is what of it is open."""
