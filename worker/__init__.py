"""The Celery worker: it executes runs. `celery -A worker.app worker` starts one."""
