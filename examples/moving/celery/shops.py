"""What both versions use: shops that have prices. A real one would ask over HTTP."""

from __future__ import annotations

SHOPS = ("north", "south", "east")
WATCHED = ("tea", "rice")
PRICES = {"north": 310, "south": 295, "east": 320}


def ask(shop: str, article: str) -> int:
    """The price in cents. Raises ConnectionError when the shop does not answer."""
    return PRICES[shop] + len(article)
