"""Remove secrets from addresses before they are written, shown or used to name a source.

An address may contain a user name and a password (`http://user:pass@host`), a token, or a
signature that is valid for a limited time (AWS, Google, Azure, CloudFront and others). The
signature changes each time, but the content does not. So `without_secrets` returns the part of an
address that names the content.
"""

import re
from collections.abc import Mapping
from typing import Any

MARK = "***"
"""Replaces a secret."""

_USERINFO = re.compile(
    r"(?P<start>(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]{0,30})://)"
    r"(?P<userinfo>[^\s/?#]*"
    # A password with an unescaped slash, as in addresses of databases. A port is not a password.
    r"|[^\s/?#@:\[\]]*:(?!\d*(?:[/?#,;'\")\s]|$))[^\s@]*)@"
)
_ENCODED_USERINFO = re.compile(r"(?P<start>%3A%2F%2F)(?:(?!%2F|%3F)[^\s&?#/])*%40", re.IGNORECASE)
_CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs", "github", "git"})
"""Schemes in which the part before the `@` names the content and is not a secret."""

_PARAMETER = re.compile(
    r"(?P<start>(?P<mark>[?&;#]|%3[Ff]|%26)(?P<name>[A-Za-z_][\w.\-\[\]]{0,60})(?:=|%3[Dd]))"
    r"(?P<value>(?:(?!%26)[^&;#\s'\"<>])*)"
)
_WORDS = frozenset((
    "auth", "authorization", "bearer", "credential", "credentials", "hmac", "jwt", "pass",
    "passphrase", "passwd", "password", "pwd", "sas", "secret", "sig", "sign", "signature", "token",
))  # fmt: skip
_ENDS = ("accesskey", "accesskeyid", "accessid", "apikey", "authkey", "odbcconnect",
         "password", "privatekey", "secret", "secretkey", "sessionid", "signature",
         "token")  # fmt: skip
_PAIRS = ("access key", "account key", "api key", "auth key", "private key", "session id",
          "session key", "shared key", "subscription key")  # fmt: skip
_OPAQUE = frozenset({"ak", "code", "key", "sid", "session"})
"""Parameters that hold either a secret or the name of the content; their value decides."""

_OPAQUE_VALUE = re.compile(r"[\w\-+=%~]{16,}(?![\w./])")
_TELLING_VALUE = re.compile(
    r"(eyJ[\w-]+\.[\w-]+|gh[opsu]_\w|github_pat_|glpat-|hf_\w{8}|sk-\w|xox[abp]-|AIza\w|A[KS]IA[A-Z0-9]{12})"
)
_WITH_A_SIGNATURE = re.compile(
    r"(x-(amz|goog|oss|cos|ms)-|q-).*|expir(es?|y|ation)|exp|ttl|policy|key-pair-id|key-?id|"
    r"algorithm|date|timestamp|ts|nonce|"
    r"s[tepvrsi]|srt|spr|sip|sdd|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid"
)
"""Other parameters of a signature, such as its date and duration; only secret with a signature."""


def redacted(text: str) -> str:
    """Return a text with `MARK` in place of the secrets in its addresses."""
    if "://" in text:
        text = _USERINFO.sub(_without_userinfo(f"{MARK}@"), text)
    if "%40" in text:
        text = _ENCODED_USERINFO.sub(rf"\g<start>{MARK}%40", text)
    return _PARAMETER.sub(_redacted_parameter, text)


def shortened(text: str, length: int) -> str:
    """Return a text as one line of at most `length` characters, redacted before it is cut.

    A password could not be recognised in an address that was cut.
    """
    return redacted(" ".join(text.split()))[:length]


def redacted_tree(tree: Any) -> Any:
    """Redact all texts in nested mappings and lists, including the names of fields.

    A single word that is not a URL stays unchanged, because a path may be called `exp?token=1`.
    """
    if isinstance(tree, str):
        return redacted(tree) if "://" in tree or " " in tree else tree
    if isinstance(tree, Mapping):
        return {redacted_tree(key): redacted_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(redacted_tree, tree))
    return tree


def is_redacted(address: str) -> bool:
    """Return whether a secret was removed from an address."""
    return "://" in address and MARK in address and redacted(address) == address


def without_secrets(address: str) -> str:
    """Return an address without its user name, password, token and signature.

    The rest of its query stays. A local path is unchanged.
    """
    if "://" not in address:
        return address
    return redacted(secrets_of(_USERINFO.sub(_without_userinfo(""), address))[0])


def secrets_of(address: str) -> tuple[str, str]:
    """Split an address into itself without secrets in its query, and the secrets (`a=1&b=2`)."""
    base, mark, query = _cut_query(address)
    parts = query.split("&")
    signed = any(map(_is_secret, parts))
    secret = [part for part in parts if _is_secret(part) or (signed and _belongs(part))]
    kept = [part for part in parts if part not in secret]
    return base + mark * bool(kept and query) + "&".join(kept), "&".join(secret)


def _cut_query(address: str) -> tuple[str, str, str]:
    """Split an address before the query of its last URL: the base, the question mark, the query."""
    last = address.rfind("://") + 1
    base, mark, query = address[last:].partition("?")
    return address[:last] + base, mark, query


def _without_userinfo(instead: str) -> Any:
    def substitute(match: re.Match[str]) -> str:
        container = match["scheme"].lower() in _CONTAINERS and ":" not in match["userinfo"]
        names_content = container or match["scheme"].lower() in ("github", "git")
        return match[0] if names_content else match["start"] + instead

    return substitute


def _redacted_parameter(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if _holds_secret(name, value):
        return match["start"] + MARK
    return match["start"] + _PARAMETER.sub(_redacted_parameter, value)  # the value may be a URL


def _is_secret(part: str) -> bool:
    name, equals, value = part.partition("=")
    return bool(equals) and _holds_secret(name, value)


def _belongs(part: str) -> bool:
    return _WITH_A_SIGNATURE.fullmatch(part.partition("=")[0].lower()) is not None


def _holds_secret(name: str, value: str) -> bool:
    if value == MARK or _TELLING_VALUE.match(value):
        return True
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.split(r"[\W_]+", spaced.lower())
    if not _WORDS.isdisjoint(words) or "".join(words).endswith(_ENDS):
        return True
    if any(pair in " ".join(words) for pair in _PAIRS):
        return True
    return name.lower() in _OPAQUE and _OPAQUE_VALUE.match(value) is not None
