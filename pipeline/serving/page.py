"""The page of an endpoint: one HTML file that refers to nothing outside of it."""

import base64
import hashlib
from functools import cached_property
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from pipeline.media.registered import modality_of
from pipeline.registry.served.card import ModelCard


class Page:
    """The page for a model.

    The browser runs its script alone, and asks this server alone (`Content-Security-Policy`).

    Args:
        model_uri: What the page calls the model.
        card: The model's card, which says what it reads.
    """

    def __init__(self, model_uri: str, card: ModelCard) -> None:
        self._model_uri, self._card = model_uri, card

    @cached_property
    def html(self) -> str:
        """The page."""
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.from_string(_read("page.html.jinja")).render(
            model=self._model_uri,
            script=_read("page.js"),
            style=_read("page.css"),
            fields=self._fields,
            is_single=len(self._card.formats) == 1,
        )

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the page."""
        return {
            "content-security-policy": (
                "default-src 'none'; connect-src 'self'; img-src data: blob:; "
                f"script-src {_hash('page.js')}; style-src {_hash('page.css')}; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
        }

    @property
    def _fields(self) -> list[dict[str, object]]:
        """What a person gives: the kind of each modality, and the columns of a table."""
        found: list[dict[str, object]] = []
        for name, fmt in self._card.formats.items():
            modality = modality_of(fmt)
            columns = [column.name for column in modality.columns(fmt)]
            found.append({"name": name, "kind": modality.source, "columns": columns})
        return found


def _read(name: str) -> str:
    return files("pipeline.serving").joinpath(name).read_text("utf-8")


def _hash(name: str) -> str:
    digest = hashlib.sha256(_read(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
