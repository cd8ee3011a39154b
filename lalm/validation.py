"""What pydantic found wrong, in words for the person who wrote the file."""

from __future__ import annotations

from pydantic import ValidationError


def reason_of(error: ValidationError) -> str:
    """Every complaint of pydantic in one line, each with the key it is about."""
    complaints = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            complaints.append(f"unknown key {key!r}")
        elif detail["type"] == "missing":
            complaints.append(f"key {key!r} is missing")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            complaints.append(f"{key}: {message}" if key else message)
    return "; ".join(complaints)
