"""What every suite shares: the asserts of the kits beside the tests say what they compared, too.

A kit is no test module, so pytest would leave its asserts bare, and a failure in one would say nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"tests.{suite.name}" for suite in Path(__file__).parent.iterdir() if suite.is_dir())
)
