"""WebDAV by WsgiDAV: what the demo shows, as a stand-in for Nextcloud and its kin.

It acts as one user, as web servers do. Source: WsgiDAV's configuration reference.
"""

from __future__ import annotations

from typing import Any

from modamafs.exports.share import Share


def configuration(share: Share, port: int, users: dict[str, str]) -> dict[str, Any]:
    """WsgiDAV's configuration; ``users`` are names and passwords."""
    return {
        "host": "127.0.0.1",
        "port": port,
        "server": "cheroot",
        "provider_mapping": {
            f"/{share.name}": {
                "class": "modamafs.exports.webdav_provider.Provider",
                "args": [str(share.path)],
                "kwargs": {
                    "readonly": share.read_only,
                    "fs_opts": {"follow_symlinks": True},
                    "mountpoint": str(share.mountpoint),
                },
            }
        },
        "middleware_stack": [
            "wsgidav.error_printer.ErrorPrinter",
            "modamafs.exports.webdav_provider.Refusals",
            "wsgidav.http_authenticator.HTTPAuthenticator",
            "wsgidav.dir_browser.WsgiDavDirBrowser",
            "wsgidav.request_resolver.RequestResolver",
        ],
        "http_authenticator": {
            "accept_basic": True,
            "accept_digest": True,
            "default_to_digest": False,
            "domain_controller": None,
        },
        "simple_dc": {"user_mapping": {"*": {user: {"password": p} for user, p in users.items()}}},
        "property_manager": None,
        "lock_storage": True,
        "dir_browser": {"enable": True, "davmount": False, "ms_sharepoint_support": False},
        "verbose": 1,
        "logging": {"enable_loggers": []},
    }
