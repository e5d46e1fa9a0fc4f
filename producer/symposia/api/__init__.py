"""The HTTP API in OpenAI's form. A collaboration is a model."""
