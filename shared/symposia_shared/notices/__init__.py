"""Who is told of a job's end, and what: webhooks by the Standard Webhooks specification, and tasks of the caller's own Celery.

A wish is written before its job; the script that ends the job leaves word that somebody is to be told; the coordinator then makes
notices of it and delivers each until it is taken, for 72 hours. All of it lies in Redis, so any process may be killed at any time.
"""
