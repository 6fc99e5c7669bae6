"""Landing directories: what is known of a directory, as ordinary files.

One module here is one name in every landing directory, found by its ``NAME``:

- a file: ``NAME``, ``MEDIA_TYPE``, ``ABOUT`` (one line of documentation), and
  ``render(facts) -> bytes``; ``None`` where there is nothing to show;
- a directory: ``NAME``, ``ABOUT`` and ``entries(facts)``, which gives its content by name: a
  function that renders a file when it is read, or another such mapping.

All are pure: no files, no clock, no network. Text is UTF-8 and ends in a newline.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import TypeAlias, Union

Render: TypeAlias = Callable[[], bytes]
Content: TypeAlias = Mapping[str, Union[Render, "Content"]]
"""A directory: by name (text, no ``/``), a function that renders a file, or a directory."""


@cache
def modules() -> Mapping[str, ModuleType]:
    """The modules that are a name in every landing directory, by that name."""
    loaded = (
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    )
    return {module.NAME: module for module in loaded if hasattr(module, "NAME")}
