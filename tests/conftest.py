"""What every suite shares.

The asserts of the kits beside the tests say what they compared, too: a kit is no test module, so pytest would
leave its asserts bare, and a failure in one would say nothing.

Programs that the tests start can be interrupted, also where the suites themselves run behind a shell's `&`,
which makes them ignore SIGINT, and all that they start.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(f"tests.{suite.name}" for suite in Path(__file__).parent.iterdir() if suite.is_dir())
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
