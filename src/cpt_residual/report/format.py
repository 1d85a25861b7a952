"""Numbers as text: one rounding rule for the whole report, so that it is byte-deterministic."""

from __future__ import annotations

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def percent(value: float | None) -> str:
    """0.842 -> `84.2 %`."""
    return MISSING if value is None else f"{_plain(100 * value, 1)} %"


def points(value: float, *, signed: bool = False) -> str:
    """A difference of shares in percentage points: 0.065 -> `6.5`; a minus is a real minus sign."""
    text = _plain(100 * value, 1)
    return f"+{text}" if signed and value > 0 and text != "0.0" else text


def cell(value: float | None, *, share: bool) -> str:
    """A table cell: percent with one decimal for shares, else three decimals."""
    if value is None:
        return MISSING
    return _plain(100 * value, 1) if share else _plain(value, 3)


def flops_text(value: float | None) -> str:
    """1.93e12 -> `1.93e12`."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio_text(value: float) -> str:
    """A factor with about three digits: 1.26 times, 1 950 times."""
    if value >= 10_000:
        return f"{flops_text(value)} times"
    if value >= 100:
        return f"{value:,.0f} times".replace(",", " ")
    return f"{value:.2f} times" if value < 10 else f"{value:.1f} times"


def p_text(value: float) -> str:
    """A p value: four decimals, or a bound."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    zero = f"{0.0:.{digits}f}"
    return zero if text == f"-{zero}" else text.replace("-", MINUS)
