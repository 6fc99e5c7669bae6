"""The process that answers the kernel. It may be killed at any moment; the next one goes on.

Started by the supervisor, as ``docs/design/contracts.md`` says.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import trio

from modamafs.config import MountSpec, load_config, load_mount_spec
from modamafs.control import catalogue, index
from modamafs.control.ctl import Ctl
from modamafs.control.hooks import Hooks
from modamafs.control.jobs import Jobs, path_argument, resume_all
from modamafs.control.searchers import Searchers
from modamafs.control.server import Command, serve
from modamafs.control.watch import Watch
from modamafs.doors import reaches
from modamafs.extraction.extractor import Extractor
from modamafs.extraction.wanted import is_wanted
from modamafs.fuse import channel
from modamafs.logs import configure_logging
from modamafs.model import Caller, Operation
from modamafs.policy.decide import decide, may_seal, may_unseal
from modamafs.sealer import Order, order
from modamafs.sealing.place import Place, stewards_gid
from modamafs.sealing.seal import interrupted
from modamafs.sealing.worm import LOOK_FOR_WORMS_S, Sweeper
from modamafs.store import _volume
from modamafs.store.backing import Store
from modamafs.tree.core import Tree
from modamafs.tree.mapped import tree_of
from modamafs.tree.recorded import Recorded
from modamafs.tree.shown import Shown
from modamafs.tree.state import State
from modamafs.watch.written import WRITTEN, Written

log = logging.getLogger("modamafs.worker")

EXIT_MOUNT_GONE = 0
EXIT_PLANNED = 75
CAP_SYS_RESOURCE = 24
SEARCH_AGAIN_S = 0.5
EXTRACT_AGAIN_S = 2.0
"""After which a file that was too new to be read, or is being written, is looked at again."""


def main(arguments: list[str] | None = None) -> int:
    """The worker's whole life. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m modamafs.worker")
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--watch-fd", type=int)
    parser.add_argument("--standby", action="store_true")
    options = parser.parse_args(arguments)

    spec = load_mount_spec(options.runtime)
    configure_logging(spec.log_level)
    channel.load(interpose=spec.channel)
    importlib.import_module("modamafs.fuse.session")
    if options.standby and not wait_for_turn():
        return EXIT_PLANNED
    return trio.run(serve_mount, spec, options.runtime, options.fd, options.watch_fd)


def wait_for_turn() -> bool:
    """As a standby: say that everything is loaded, then wait to be told to go."""
    with open(0, "r+b", buffering=0, closefd=False) as supervisor:
        try:
            supervisor.write(b"r")
            return supervisor.read(1) == b"g"
        except ConnectionError:  # the supervisor is gone: so will be the mount, or another's turn
            return False


def set_limits() -> None:
    """As many descriptors as allowed; and quotas and reserved blocks as for everybody else."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _volume.drop_capability(CAP_SYS_RESOURCE)


async def serve_mount(spec: MountSpec, runtime: Path, fuse_fd: int, watch_fd: int | None) -> int:
    """Serve until the mount is gone or a planned end is asked for."""
    from modamafs.fuse.operations import Operations, Timeouts
    from modamafs.fuse.session import Session, backing_files

    set_limits()
    gc.collect()
    gc.freeze()  # what is loaded by now stays: no need to look through it again
    gc.set_threshold(20_000, 20, 20)
    failpoints = os.environ.get("MODAMAFS_FAILPOINTS") == "1"
    session = Session(fuse_fd, runtime, passthrough=spec.passthrough, interpose=spec.channel)
    with Store(Path(spec.store)) as store, session:
        config = load_config(Path(spec.store))
        tree = tree_of(
            store,
            State(runtime / "state.bin"),
            backing_files(fuse_fd) if session.wants_passthrough() else None,
            view=spec.shows,
            read_only=spec.read_only,
            failpoint=runtime / "failpoint" if failpoints else None,
            written=Written(runtime / WRITTEN) if watch_fd is not None else None,
        )
        async with trio.open_nursery() as nursery:
            extractor = Extractor(
                store,
                read_only=spec.read_only,
                workdir=runtime / "reading",
                retry_s=EXTRACT_AGAIN_S,
            )
            in_turn = trio.lowlevel.current_trio_token().run_sync_soon

            def missing(session: bytes, path: bytes) -> None:
                in_turn(extractor.request, session, path)

            index_dir = Path(spec.index_dir) if spec.index_dir else None
            watch = Watch(runtime, fuse_fd, watch_fd, recorded=extractor.request)
            searchers = Searchers(runtime)
            hooks = Hooks(runtime, is_watched=watch_fd is not None)
            jobs = Jobs(spec.store, watch.sync)
            ctl = Ctl(jobs, nursery, read_only=spec.read_only)
            shown = Shown(
                tree,
                runtime / "virtual.bin",
                ctl,
                landing_name=os.fsencode(config.landing.name),
                views_name=os.fsencode(config.views.name),
                listed=config.landing.listed,
                missing=missing,
                indexed=None if index_dir is None else index.sessions_of(watch, index_dir),
            )
            operations = Operations(
                tree,
                shown,
                ctl,
                Recorded(tree, is_wanted, extractor.request),
                nursery,
                timeouts=Timeouts(spec.attribute_timeout_s, spec.entry_timeout_s),
                watched_timeout_s=spec.watch_timeout_s,
            )
            watch.trust = operations.trust
            session.attach(operations, stack_depth=1)
            answers = commands(session, tree, jobs, watch, searchers, hooks, index_dir)
            await nursery.start(serve, runtime / "control.sock", answers)
            await nursery.start(stop_on_sigterm, session)
            nursery.start_soon(look_after_seals, tree, jobs)
            nursery.start_soon(extractor.run)
            nursery.start_soon(searchers.run)
            if config.hooks and spec.shows is None:
                nursery.start_soon(hooks.run)
            elif config.hooks:
                hooks.leave_out("a mount of the whole store runs them, not one of a view")
            if watch_fd is not None or spec.index_dir:
                nursery.start_soon(watch.run)
            else:
                watch.index = {"state": "off", "message": "neither watched nor indexed"}
            log.info("serving store=%s mountpoint=%s", spec.store, spec.mountpoint)
            await session.serve()
            nursery.cancel_scope.cancel()
        shown.close()
        tree.close()
    return EXIT_PLANNED if session.stopping else EXIT_MOUNT_GONE


async def look_after_seals(tree: Tree, jobs: Jobs) -> None:
    """Finish what was interrupted, and keep what is for writing once; nothing here ends anything.

    The list of seals is made where it is missing.
    """
    while True:
        try:
            await trio.to_thread.run_sync(tree.find_seals)
            if tree.read_only:
                return
            left = await trio.to_thread.run_sync(
                lambda: list(interrupted(tree.store, tree.seals.listed()))
            )
            break
        except OSError as error:
            if error.errno != errno.ESTALE:
                log.warning("search-for-seals-failed error=%s", error)
                return
        await trio.sleep(SEARCH_AGAIN_S)  # a directory was moved away under it
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume_all, jobs, [os.fsdecode(path) for path in left])
        nursery.start_soon(watch_worms, tree.store)


async def watch_worms(store: Store) -> None:
    """Make files for writing once immutable, some time after their last writer has gone."""
    sweeper = Sweeper(store)
    while True:
        pause_s = LOOK_FOR_WORMS_S
        try:
            pause_s = await trio.to_thread.run_sync(sweeper.sweep)
        except OSError as error:
            log.warning("worm-sweep-failed error=%s", error)
        await trio.sleep(pause_s)


async def stop_on_sigterm(
    session: Any, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """A planned end: what is being answered is answered first."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            session.stop()


def commands(
    session: Any,
    tree: Tree,
    jobs: Jobs,
    watch: Watch,
    searchers: Searchers,
    hooks: Hooks,
    index_dir: Path | None,
) -> dict[str, Command]:
    """What the control socket answers."""

    async def status(arguments: dict[str, Any], peer: Caller) -> dict[str, Any]:
        facts = {
            **session.facts(),
            "watching": watch.is_watching,
            "index": index.for_anybody(watch.index),
        }
        if peer.uid != 0:
            return facts
        return {
            **facts,
            "open_handles": len(tree.handles),
            "sealed_trees": len(tree.seals.listed()),
            "index": watch.index,
            "hooks": hooks.state,
        }

    def admit(wanted: Order, peer: Caller) -> None:
        """No process is started for who may not have it; it decides again, by itself."""
        if wanted.verb in ("unseal", "repair"):
            may_unseal(peer, stewards_gid(tree.store))
        else:
            admit_owner(wanted.path, peer)

    def admit_owner(path: str, peer: Caller) -> None:
        stewards, relative = stewards_gid(tree.store), os.fsencode(path)
        if not reaches(tree.store.root_fd, relative, peer):
            may_seal(peer, (), stewards)  # nobody is told whether it is there
        with Place(tree.store, relative) as place:
            may_seal(peer, place.owners, stewards)

    def ordered(verb: str) -> Command:
        async def run(arguments: dict[str, Any], peer: Caller) -> dict[str, Any]:
            arguments["path"] = path_argument(arguments)
            wanted = order(arguments, verb)
            wanted.by = ""  # the caller's own name, nobody else's
            if verb == "verify":
                wanted.remember = wanted.remember and not tree.read_only
            else:
                decide(Operation.SET_ATTRIBUTES, sealed=False, read_only=tree.read_only)
            admit(wanted, peer)
            return await jobs.run(msgspec.to_builtins(wanted), peer)

        return run

    async def progress(arguments: dict[str, Any], peer: Caller) -> dict[str, Any] | None:
        path = path_argument(arguments)
        if not reaches(tree.store.root_fd, os.fsencode(path), peer):
            return None
        return jobs.progress(path)

    async def cancel(arguments: dict[str, Any], peer: Caller) -> bool:
        path = path_argument(arguments)
        admit_owner(path, peer)
        return jobs.cancel(path)

    verbs = ("seal", "unseal", "resume", "repair", "verify", "worm")
    return {
        "status": status,
        "progress": progress,
        "cancel": cancel,
        **catalogue.commands(tree, watch.sync),
        **index.commands(tree, watch, searchers, index_dir),
        **{verb: ordered(verb) for verb in verbs},
    }


if __name__ == "__main__":
    sys.exit(main())
