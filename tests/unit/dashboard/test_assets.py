"""The stylesheet and the script."""

from __future__ import annotations

import gzip
import hashlib

import pytest

from flask_taskworker.dashboard.responses import ASSETS


@pytest.mark.parametrize("asset", ASSETS.values(), ids=ASSETS)
def test_asset_is_named_by_its_content_and_packed_without_loss(asset: object) -> None:
    assert gzip.decompress(asset.packed) == asset.body  # type: ignore[attr-defined]
    assert hashlib.sha256(asset.body).hexdigest().startswith(asset.digest)  # type: ignore[attr-defined]
