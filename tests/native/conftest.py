"""``--sanitize``: the same tests with the C modules built for the sanitizers."""

from __future__ import annotations

import pytest

from tests.native import sanitized

sanitized.use_if_asked()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sanitize",
        action="store_true",
        help="run tests/native with the C modules under ASan and UBSan",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("--sanitize") or sanitized.in_use():
        return None
    arguments = [word for word in config.invocation_params.args if word != "--sanitize"]
    return sanitized.run_again([str(word) for word in arguments])


def pytest_report_header() -> str | None:
    if sanitized.in_use():
        return f"C modules: {sanitized.BUILT} ({sanitized.FLAGS})"
    return None
