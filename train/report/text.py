"""Shares as text."""


def percent(share: float) -> str:
    """`93.1%`; NaN, of a class that has no photos, is no number to show."""
    return "" if share != share else f"{share:.1%}"
