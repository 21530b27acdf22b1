"""Numbers and times as a person reads them."""

import math

NONE = "\u2013"
MINUS = "\u2212"


def number(value: float | None) -> str:
    """Three or four significant digits; a dash where there is no number.

    Args:
        value: any float; counts (whole numbers) are shown whole.
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    if value == int(value) and size < 1e15:
        shown = f"{int(value):,}"
    elif size >= 1e6 or size < 5e-4:
        shown = f"{value:.2e}"
    elif size >= 1000:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
    return shown.replace("-", MINUS)


def signed(value: float | None) -> str:
    """As `number`, with a plus before what is above zero."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units that matter."""
    if seconds is None or math.isnan(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def exact(value: object) -> str:
    """A configuration value in one line, every digit kept."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
