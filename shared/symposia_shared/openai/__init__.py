"""OpenAI's requests as our jobs, and our completions as its answers: one reading for batch files and for the HTTP API."""
