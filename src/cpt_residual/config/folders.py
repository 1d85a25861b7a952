"""The folders that configuration files are read from: the user's first, then the packaged one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpt_residual.errors import ConfigError

_MAX_NAME = 200


def conf_dir() -> Path:
    """The folder of `config.yaml`: the copy inside the package (wheel), else the checkout's."""
    here = Path(__file__).resolve()
    candidates = [here.parents[1] / "conf", here.parents[3] / "conf"]
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        "the configuration files of cpt_residual are missing",
        problems=[f"no config.yaml in {candidate}" for candidate in candidates],
        remedy="Reinstall the package, or work in a full checkout.",
    )


@dataclass(frozen=True)
class Folders:
    """Where a name such as `corpus/world` is looked up. A file of the user's folder `own` is read
    instead of a packaged one of the same name."""

    packaged: Path
    own: Path | None = None

    @classmethod
    def of(cls, config_dir: Path | None) -> Folders:
        """The packaged folder and, if given, the user's. Raises ConfigError if that is none."""
        packaged = conf_dir()
        if config_dir is None:
            return cls(packaged)
        if not _found(config_dir, Path.is_dir):
            raise ConfigError(
                f"--config-dir {config_dir}: no such directory",
                remedy="It should hold groups of its own, e.g. experiment/NAME.yaml.",
            )
        return cls(packaged, None if config_dir.samefile(packaged) else config_dir)

    def in_order(self) -> tuple[Path, ...]:
        return (self.packaged,) if self.own is None else (self.own, self.packaged)

    def file(self, name: str) -> Path | None:
        """The file that `name` is read from; None if no folder has it."""
        if not _is_plain(name):
            return None
        paths = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in self.in_order()]
        return next((path for path in paths if _found(path, Path.is_file)), None)

    def is_packaged(self, path: Path) -> bool:
        return path.is_relative_to(self.packaged)

    def replaces_packaged(self, path: Path) -> bool:
        """Whether `path` is the user's and hides a packaged file of the same name."""
        own = self.own
        if own is None or self.is_packaged(path) or not path.is_relative_to(own):
            return False
        return (self.packaged / path.relative_to(own)).is_file()

    def is_group(self, name: str) -> bool:
        """Whether `name` is a folder with configuration files."""
        return _is_plain(name) and any(_is_group(folder / name) for folder in self.in_order())

    def groups(self) -> list[str]:
        """The groups at the top."""
        return sorted(
            {
                path.name
                for folder in self.in_order()
                for path in _entries(folder)
                if _is_group(path)
            }
        )

    def options(self, group: str) -> list[str]:
        """Every name that `group=` accepts."""
        places = [folder / group for folder in self.in_order()]
        return sorted(
            {path.stem for place in places for path in _entries(place) if path.suffix == ".yaml"}
        )


def _is_plain(name: str) -> bool:
    """Whether `name` stays below a folder and can be the name of a file."""
    return (
        0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and not name.startswith("/")
        and not {".", ".."} & set(name.split("/"))
        and "//" not in name
        and str(PurePosixPath(name)) == name
    )


def _is_group(path: Path) -> bool:
    return any(each.suffix in (".yaml", ".yml") for each in _entries(path))


def _entries(folder: Path) -> Iterator[Path]:
    """What lies in `folder`; nothing if that is no folder, or a hidden one."""
    if folder.name.startswith((".", "__")) or not _found(folder, Path.is_dir):
        return
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise _unreadable(folder, error) from None


def _found(path: Path, is_kind: Callable[[Path], bool]) -> bool:
    try:
        return is_kind(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {error.strerror}",
        remedy="Nothing was run. Change its permissions, or name another folder.",
    )
