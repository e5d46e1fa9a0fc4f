"""Engines: what turns prompts into completions, each behind one protocol, all in a process of their own."""
