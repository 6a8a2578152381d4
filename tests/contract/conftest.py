"""Let pytest explain the assertions of the contract suite, which lives in the package."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("vitune.testing")
