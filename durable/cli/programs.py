"""Finding our own two programs, the worker and the API, whatever the user's packages are called.

They lie beside this package: as `durable_worker` and `durable_api` where it is installed, as `worker` and `api` in
the repository. Invariant: nothing is searched for on the import path, so that a package `worker` or `api` of the
user, and an older copy of ours, are never touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from durable.errors import ConfigurationError

_BESIDE: Final = Path(__file__).resolve().parents[2]


def load_program(name: str, beside: Path = _BESIDE) -> ModuleType:
    """The package of a program, imported as `durable_worker` or `durable_api`.

    Args:
        name: Which one: `worker` or `api`.
        beside: The folder that holds it.

    Raises:
        ConfigurationError: It is not there.
    """
    unique = f"durable_{name}"
    if unique in sys.modules:
        return sys.modules[unique]
    starts = [start for folder in (unique, name) if (start := beside / folder / "__init__.py").is_file()]
    spec = starts and importlib.util.spec_from_file_location(
        unique, starts[0], submodule_search_locations=[str(starts[0].parent)]
    )
    if not spec or spec.loader is None:
        raise ConfigurationError(f"This installation is incomplete: {unique} is missing.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def load_part(name: str, part: str) -> ModuleType:
    """A module of a program, for example `app` of `worker`. Raises as `load_program` does."""
    return importlib.import_module(f"{load_program(name).__name__}.{part}")
