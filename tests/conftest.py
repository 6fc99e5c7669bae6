"""Fixtures of all tests: where to try things, and what is needed for it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.support.janitor import Janitor, clean_up
from tests.support.targets import KINDS, MOUNTS, PASSTHROUGH, Target, Workshop

REQUIRE_ALL = os.environ.get("MODAMAFS_REQUIRE_ALL") == "1"
NEED_A_MOUNT = {"behaviour", "mounted", "attack", "faults", "conformance", "exports"}

_janitor: Janitor | None = None


def pytest_configure() -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # so that everything is unmounted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.relative_to(here).parts[0] in NEED_A_MOUNT:
            item.add_marker(pytest.mark.mount)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mount"):
        if os.geteuid() != 0:
            pytest.skip("needs root, to mount")
        if not Path("/dev/fuse").exists():
            pytest.skip("needs /dev/fuse")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test whose mount does not answer any more fails; it does not hang."""
    marker = item.get_closest_marker("timeout")
    limit = marker.args[0] if marker and marker.args else float(item.config.getini("timeout") or 0)
    if _janitor:
        _janitor.expect_done_within(0.8 * limit)
    try:
        return (yield)
    finally:
        if _janitor:
            _janitor.expect_done_within(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI nothing is skipped: a skip is a test that proved nothing."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"skipped, and MODAMAFS_REQUIRE_ALL=1: {reason}"
    return report


@pytest.fixture(scope="session")
def workshop(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """File systems and mounts that are shared by all tests, and gone afterwards."""
    global _janitor
    directory = Path(tempfile.mkdtemp(prefix="modamafs-tests-", dir="/var/tmp"))
    directory.chmod(0o755)
    _janitor = Janitor(directory)
    # The test that asks first is under way already.
    _janitor.expect_done_within(0.8 * float(request.config.getini("timeout") or 0))
    os.environ["MODAMAFS_RUNTIME_DIR"] = str(directory / "run")
    os.environ["MODAMAFS_INDEX_DIR"] = str(directory / "index")
    try:
        with contextlib.ExitStack() as stack:
            yield Workshop(directory, stack)
    finally:
        clean_up(directory)


@pytest.fixture(scope="session")
def new_name() -> Callable[[], str]:
    """Names that were not used before."""
    count = itertools.count()
    return lambda: f"{next(count):04}"


def _own_directory(workshop: Workshop, kind: str, name: str) -> Iterator[Target]:
    shared = workshop.target(kind)
    if shared.mount:
        shared.mount.fail_on_unexpected_log_lines()
    own = shared.below(name)
    yield own
    close_what_is_open_below(own.root)
    if shared.mount:
        shared.mount.fail_on_unexpected_log_lines()


@contextlib.contextmanager
def suppressed_long_path() -> Iterator[None]:
    """A descriptor far below has no path that could be told."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise


def close_what_is_open_below(directory: Path) -> None:
    """A test that failed leaves descriptors, and they would keep the mount busy."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError), suppressed_long_path():
            if str(link.readlink()).startswith(f"{directory}/"):
                os.close(int(link.name))


@pytest.fixture(params=KINDS)
def target(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Target]:
    """An empty directory of the test's own: bare, and in every kind of mount."""
    yield from _own_directory(workshop, request.param, new_name())


@pytest.fixture(params=MOUNTS)
def mounted(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Target]:
    """An empty directory of the test's own, in every kind of mount."""
    yield from _own_directory(workshop, request.param, new_name())


@pytest.fixture(params=PASSTHROUGH)
def passthrough(
    request: pytest.FixtureRequest, workshop: Workshop, new_name: Callable[[], str]
) -> Iterator[Target]:
    """An empty directory of the test's own, in mounts whose data path is the kernel's."""
    yield from _own_directory(workshop, request.param, new_name())


@pytest.fixture
def root(target: Target) -> Path:
    """The directory of ``target`` as a client sees it."""
    return target.root
