"""What `celery -A worker.app` finds: the app of the worker program, set up from the environment."""

from __future__ import annotations

import sys

from durable.errors import ConfigurationError
from durable.settings import Settings

from .program import EXIT_CONFIG, Program

try:
    app = Program(Settings()).app
except ConfigurationError as error:
    sys.stderr.write(f"durable: {error.message}\n")
    raise SystemExit(EXIT_CONFIG) from error
