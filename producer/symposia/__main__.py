"""``python -m symposia``."""

from symposia.cli import main

main()
