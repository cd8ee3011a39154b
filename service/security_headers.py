"""Headers that keep a browser from doing with an answer what it was not meant for."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
# Swagger UI and ReDoc, as FastAPI serves them: scripts and styles of a CDN, one inline script, one picture.
_PAGES = frozenset({"/docs", "/redoc"})
_OF_PAGES = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; "
    "font-src https://fonts.gstatic.com; img-src 'self' data: https://fastapi.tiangolo.com "
    "https://cdn.redoc.ly; connect-src 'self'; worker-src blob:; frame-ancestors 'none'"
)


def secure(headers: MutableHeaders, path: str) -> None:
    """Add to the headers of an answer to `path` those that it does not have."""
    for name, value in _ALWAYS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", _OF_PAGES if path in _PAGES else _NOTHING)
