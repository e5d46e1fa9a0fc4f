"""A batch file through one engine process: no broker, no S3."""
