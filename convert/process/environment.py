"""Variables of the environment that a library cannot use: which one it is, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from ssl import SSLError
from urllib.parse import urlsplit

from convert.errors import InputError

HTTP_CLIENTS = {"httpx", "httpx2"}  # of huggingface_hub 1 and 2
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = {"all_proxy", "http_proxy", "https_proxy"}


def blame(error: Exception, environment: Mapping[str, str]) -> InputError | None:
    """The variable that made a library raise `error`, as an error that names it; None if none did.

    Values are not repeated where they may hold a password.

    Args:
        error: with its traceback, which tells whose error it is.
        environment: `os.environ`.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames}
    if client := next(iter(HTTP_CLIENTS & modules), None):
        return _proxy(client, environment) or _request(error, environment)
    if "huggingface_hub" in modules and _has_no_endpoint(environment):
        return _ENDPOINT
    if isinstance(error, ValueError) and any(f.f_code.co_name == "<module>" for f in frames):
        return _number(error, environment)
    return None


def _proxy(client: str, environment: Mapping[str, str]) -> InputError | None:
    httpx = import_module(client)
    for name in (n for n in environment if n.lower() in PROXIES and environment[n]):
        value = environment[name]
        url = value if "://" in value else f"http://{value}"  # as httpx reads the variable
        try:
            httpx.HTTPTransport(proxy=httpx.Proxy(url)).close()
        except ImportError:
            return InputError(
                "a SOCKS proxy, for which a package is missing",
                where=name,
                hint=f"`python -m pip install '{client}[socks]'`, or unset the variable.",
            )
        except Exception:  # httpx's own, or of Python's parts that it parses with
            return InputError(
                "is not the URL of a proxy",
                where=name,
                hint="Give one such as http://host:3128, or unset the variable.",
            )
    return None


def _request(error: Exception, environment: Mapping[str, str]) -> InputError | None:
    """What goes into every request beside the proxy: the Hub's address, certificates, the login."""
    if isinstance(error, UnicodeError):
        tokens = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        return InputError(
            "is not a token: it has letters beyond ASCII",
            where=next((n for n in tokens if not environment.get(n, "").isascii()), "the login"),
            hint="Copy it again from https://huggingface.co/settings/tokens, or log in again.",
        )
    if type(error).__name__ in ("InvalidURL", "UnsupportedProtocol"):
        if "HF_ENDPOINT" in environment:
            return _ENDPOINT
        if name := next((n for n in environment if n.lower() == "no_proxy"), None):
            return InputError(
                "is not a list of hosts", where=name, hint="Unset it, or put it right."
            )
    if is_of_certificates(error):
        return InputError(
            "is not a file of certificates, or a folder of them",
            where=next((n for n in CERTIFICATES if environment.get(n)), "the certificates"),
            hint="Give one that `openssl x509` reads, or unset the variable.",
        )
    return None


_ENDPOINT = InputError(
    "is not the URL of a Hub",
    where="HF_ENDPOINT",
    hint="Give one such as https://huggingface.co, or unset the variable.",
)


def is_of_certificates(error: Exception) -> bool:
    """Whether no connection could be made, because trusted certificates cannot be read."""
    is_missing = isinstance(error, FileNotFoundError) and error.filename is None
    return isinstance(error, SSLError) or is_missing


def _has_no_endpoint(environment: Mapping[str, str]) -> bool:
    try:
        url = urlsplit(environment["HF_ENDPOINT"])
        return not url.hostname or url.port == 0
    except KeyError:
        return False
    except ValueError:
        return True


def _number(error: ValueError, environment: Mapping[str, str]) -> InputError | None:
    """A library reads its variables while it is imported, and says only what it has read."""
    said = str(error)
    names = sorted(n for n, value in environment.items() if value and repr(value) in said)
    if not names:
        return None
    first = next(chain((n for n in names if n.startswith("HF_")), names))
    return InputError(
        f"`{environment[first]}` is not a {'whole ' * ('int()' in said)}number",
        where=first,
        hint="Give it one, or unset the variable.",
    )
