"""Notices sent: webhooks posted, linked tasks enqueued."""
