"""Base class and field types of every configuration model."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PRINTABLE = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
PRINTABLE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=80)]


def _short_names(text: str) -> str:
    """No file system has longer names, and asking for one is an error of its own."""
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in text.split("/")):
        raise ValueError("must not hold a name of more than 255 bytes")
    return text


Text = Annotated[str, Field(pattern=PRINTABLE)]
FolderName = Annotated[
    str, Field(pattern=PRINTABLE_LINE, max_length=4096), AfterValidator(_short_names)
]
Line = Annotated[FolderName, Field(min_length=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
