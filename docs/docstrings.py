"""The docstrings' ``Example:`` as code: the reader of docstrings knows only its plural."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the sections while the sources are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.M
            )
