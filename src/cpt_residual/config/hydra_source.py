"""Hydra's reading of defaults lists, over files that `yaml_files` reads; the only importer of hydra
but for the grammar of overrides.

Hydra's public entry reads files by itself (a bad one is then a traceback) and looks into its own
folder first. What is used here instead is private to Hydra 1.3, which the dependency is bound to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb

from hydra import version
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
)
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import DefaultsTreeNode, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from cpt_residual.config.folders import Folders
from cpt_residual.config.yaml_files import ConfigFile


def defaults_of(
    choices: Sequence[str], folders: Folders, read: Callable[[Path], ConfigFile]
) -> list[ResultDefault]:
    """The files that `config` and the `choices` of groups name, in the order of merging."""
    version.setbase("1.3")
    found = create_defaults_list(
        repo=CachingConfigRepository(_Repository(folders, read)),
        config_name="config",
        overrides_list=OverridesParser.create().parse_overrides(list(choices)),
        prepend_hydra=False,
        skip_missing=False,
    )
    return found.defaults


def cycle_in(error: RecursionError) -> list[str]:
    """The files whose defaults lists include each other, the first one last again; found in the
    tree that Hydra was building. Empty if there is none."""
    node: DefaultsTreeNode | None = None
    for frame, _ in walk_tb(error.__traceback__):
        root = frame.f_locals.get("root")
        node = root if isinstance(root, DefaultsTreeNode) else node
    names: list[str] = []
    while node is not None:
        if not node.node.is_virtual():
            names.append(str(node.node.get_config_path()))
        node = node.parent
    names.reverse()
    repeated = next((n for n, name in enumerate(names) if name in names[:n]), None)
    return [] if repeated is None else names[names.index(names[repeated]) : repeated + 1]


class _Repository(ConfigRepository):
    """All folders as one source."""

    def __init__(self, folders: Folders, read: Callable[[Path], ConfigFile]) -> None:
        self.sources = [_Source(folders, read)]


class _Source(ConfigSource):
    def __init__(self, folders: Folders, read: Callable[[Path], ConfigFile]) -> None:
        super().__init__(provider="cpt_residual", path="folders://")
        self._folders = folders
        self._read = read

    @staticmethod
    def scheme() -> str:
        return "folders"

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._folders.file(config_path)
        if path is None:  # Hydra asks first
            raise ConfigLoadError(config_path)
        file = self._read(path)
        return ConfigResult(
            provider=self.provider,
            path=str(path),
            config=OmegaConf.create({"defaults": file.defaults}),  # all that Hydra has to read
            header={"package": file.package},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return self._folders.is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return self._folders.file(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        del results_filter
        return self._folders.options(config_path)
