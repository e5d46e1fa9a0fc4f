"""The vocabulary and the science of Symposia: values, plays, patterns, consensus; and the seams to Redis, Celery and S3."""
