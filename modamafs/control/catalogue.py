"""What the control socket answers about projects and sessions."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio

from modamafs import projects
from modamafs.control.server import Command
from modamafs.errors import InvalidRequest, NotSupported
from modamafs.model import Caller, Operation
from modamafs.policy.decide import decide
from modamafs.store.backing import Store
from modamafs.tree.core import Tree
from modamafs.tree.mapped import MappedTree


def commands(tree: Tree, noticed: Callable[[], Awaitable[object]]) -> dict[str, Command]:
    """``project-create`` and its kin: ``modamafs.projects``, as far as this mount goes.

    ``noticed`` returns when what was done on the store is seen by everybody.
    """
    return {
        verb: _command(tree, verb, function, noticed) for verb, function in projects.VERBS.items()
    }


def _command(
    tree: Tree,
    verb: str,
    function: Callable[[Store, Mapping[str, Any], Caller], Any],
    noticed: Callable[[], Awaitable[object]],
) -> Command:
    async def run(arguments: dict[str, Any], peer: Caller) -> Any:
        if isinstance(tree, MappedTree):
            raise NotSupported(
                "this mount shows everything as one user's: use a mount of the whole store"
            )
        if verb in projects.CHANGING:
            decide(Operation.SET_ATTRIBUTES, sealed=False, read_only=tree.read_only)
            _check_in_view(tree, arguments)
        work = partial(function, tree.store, arguments, peer)
        result = await trio.to_thread.run_sync(work)
        if verb in projects.CHANGING:
            await noticed()  # the mount was perhaps asked for the name before it was there
        if tree.scope.is_whole:
            return result
        if isinstance(result, list):
            return [one for one in result if _is_in_view(tree, one["path"])]
        _check_in_view(tree, arguments)
        return result

    return run


def _check_in_view(tree: Tree, arguments: dict[str, Any]) -> None:
    path = arguments.get("path")
    if isinstance(path, str) and not _is_in_view(tree, path):
        raise InvalidRequest(f"{path} is not in the view that is mounted here")


def _is_in_view(tree: Tree, path: str) -> bool:
    return tree.scope.is_whole or tree.scope.path_in_mount(os.fsencode(path)) is not None
