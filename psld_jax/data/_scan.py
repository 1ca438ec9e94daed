"""Finding images, splits and classes from the names in a tree of files, and telling what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

#: Endings of the files that are taken for images.
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp", ".gif", ".jfif", ".jpe", ".tif", ".tiff")
#: Labels by file, as EDM and StyleGAN store them.
LABELS = "dataset.json"
#: What this package writes beside images.
_OWN = "about.json"
_MAX_CLASSES = 2**16
# Made by operating systems and disk stations, in directories of images too. In small letters.
_SYSTEM = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
)
# By preference: what there is first of these is the split.
_SPLITS = {
    "train": (("train", "training"),),
    "test": (("test", "testing"), ("val", "valid", "validation"), ("dev",), ("eval", "evaluation")),
}
# train2017, test_set, val-images, images_train are splits too.
_SPLIT = re.compile(
    r"(?:(?:data|images|imgs)[ _-])?(train|training|test|testing|val|valid|validation|dev|eval|evaluation)"
    r"([ _-]?(set|split|data|images|imgs))?([ _-]?\d+(x\d+)?)?"
)


class Scan(NamedTuple):
    """The images, splits and classes that :func:`scan` found.

    Attributes:
      names: images of the split, sorted.
      labels: int32 ``[n]``, or ``None`` if none were asked for.
      class_names: by label, or ``None``.
      has_split: whether there is a test split.
      root: the directory of the split, with a slash at its end unless it is empty.
      found: what was taken for splits and classes, with counts.
      left_out: what was not taken, with counts; empty if that is nothing.
    """

    names: list[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    has_split: bool
    root: str
    found: str
    left_out: str


def scan(
    files: Collection[str],
    directories: Iterable[str],
    read: Callable[[str], bytes],
    where: str,
    split: str,
    labels: bool,
    broken: Collection[str] = (),
) -> Scan:
    """Find the images, splits and classes of a tree.

    Hidden files and those of operating systems are no images, and a directory without images is no class. A single
    directory around everything is looked through. Names of splits may have any capitals.

    Args:
      files: names relative to the tree's root, with slashes.
      directories: the same of directories, for those that hold no files.
      read: the content of a file, for ``dataset.json``.
      where: the place of the tree, for messages.
      split: ``"train"`` or ``"test"``.
      labels: whether classes are needed.
      broken: names of links that lead to nothing.

    Raises:
      ValueError: with the place, for no images, a split that is missing or there twice, or no classes where they are
        needed.
    """
    system = [name for name in files if _is_system(name)]
    plain = [name for name in files if not _is_system(name)]
    images = sorted(name for name in plain if name.lower().endswith(EXTENSIONS))
    away = sorted(name for name in broken if not _is_system(name))
    lost = [f"{_count(len(away), 'link')} to nothing ({_few(away)})"] if away else []
    if not images:
        found = ", ".join([*_endings(plain), *lost]) or "nothing"
        raise ValueError(f"{where} holds no images: no file in it ends in {', '.join(EXTENSIONS)}; there is {found}")
    around = _wrapper(images, plain)
    splits = _splits(images, around, where)
    place = (splits.get(split) or splits.get("train")) if splits else around
    if place is None:
        raise ValueError(f"{where} has a subdirectory for the test split, but no train/")
    places = list(splits.values()) or [around]
    names = [name for name in images if name.startswith(place)]
    counts = {root: sum(name.startswith(root) for name in images) for root in places}
    others = (name for name in plain if not name.lower().endswith((*EXTENSIONS, LABELS)))
    left = _endings(name for name in others if PurePosixPath(name).name != _OWN)
    if system:
        left.insert(0, f"{_count(len(system), 'hidden or system file')} ({_few(sorted({_system(n) for n in system}))})")
    beside = Counter(
        name.removeprefix(around).rpartition("/")[0].partition("/")[0] or "."
        for name in images
        if not name.startswith(tuple(places))
    )
    left += [f"{_count(n, 'image')} in {'no subdirectory' if d == '.' else d + '/'}" for d, n in sorted(beside.items())]
    left += lost
    empty = sorted({name for name in directories if not _is_system(name)} - _parents(images))
    if empty:
        left.append(f"{_count(len(empty), 'directory', 'directories')} without images ({_few(empty)})")
    inner = _inner_splits(names, place)
    if inner:
        left.append(f"the splits {_few(inner)}, whose images are read as one set: put the splits above the classes")
    found = "" if not splits else f"splits {', '.join(f'{root} ({counts[root]:,})' for root in places)}"
    has_split = "test" in splits
    if not labels:
        return Scan(names, None, None, has_split, place, found, "; ".join(left))
    numbers, classes = _labels(names, images, plain, place, places, around, read, where)
    per_class = np.bincount(numbers, minlength=len(classes))
    listed = _few([f"{name} ({count:,})" for name, count in zip(classes, per_class, strict=True)], 10)
    found = "; ".join(part for part in (found, f"classes {listed}") if part)
    return Scan(names, numbers, classes, has_split, place, found, "; ".join(left))


def _labels(
    names: list[str],
    images: list[str],
    files: list[str],
    place: str,
    places: list[str],
    around: str,
    read: Callable[[str], bytes],
    where: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return class numbers of ``names``, and the class names of all splits, so that a label is the same in each."""
    file = next((prefix + LABELS for prefix in (place, around) if prefix + LABELS in files), None)
    if file is not None:
        mine = file.removesuffix(LABELS)
        roots = [root for root in places if root + LABELS in files] if mine == place else [around]
        given = {root: _read_labels(root + LABELS, read, where) for root in roots}
        missing = [name for name in names if name.removeprefix(mine) not in given[mine]]
        if missing:
            raise ValueError(f"{where}: {file} has no label for {len(missing):,} of the images ({_few(missing, 3)})")
        classes = tuple(map(str, range(1 + max(max(labels.values()) for labels in given.values()))))
        return np.array([given[mine][name.removeprefix(mine)] for name in names], np.int32), classes
    with_file = [root for root in places if root + LABELS in files]
    if with_file:
        raise ValueError(
            f"{where}: {with_file[0]}{LABELS} has labels, and there is no {place}{LABELS}: the classes of both splits "
            "must be from the same source"
        )
    for name in names:
        if "/" not in name.removeprefix(place):
            raise ValueError(
                f"{where}/{name} is in no subdirectory, which would name its class, and there is no {LABELS}; set "
                "labels=False (for a network without num_labels or n_classes), or move it"
            )
    by_place = [{n.removeprefix(root).partition("/")[0] for n in images if n.startswith(root)} for root in places]
    by_place = [{name for name in found if name} for found in by_place]
    classes = sorted(set().union(*by_place))
    same = Counter(name.casefold() for name in classes)
    for name in classes:
        alike = [other for other in classes if other.casefold() == name.casefold()]
        # Classes may differ by capitals alone, if one split has both. Otherwise they were meant to be the same.
        if same[name.casefold()] > 1 and not any(found.issuperset(alike) for found in by_place):
            raise ValueError(f"{where}: the splits write the class {' and '.join(alike)} differently; rename one")
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[n.removeprefix(place).partition("/")[0]] for n in names], np.int32), tuple(classes)


def _read_labels(file: str, read: Callable[[str], bytes], where: str) -> dict[str, int]:
    """Read classes by file name: ``{"labels": [["00000/img00000000.png", 6], ...]}``."""
    try:
        content = json.loads(read(file))
        labels = dict(content["labels"]) if content["labels"] else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f'{where}: {file} must hold {{"labels": [["FILE", CLASS], ...]}}') from None
    if not labels:
        raise ValueError(
            f"{where}: {file} says that the images have no labels; set labels=False (for a network without num_labels "
            "or n_classes)"
        )
    wrong = [value for value in labels.values() if type(value) is not int or not 0 <= value < _MAX_CLASSES]
    if wrong:
        raise ValueError(f"{where}: {file} has the label {wrong[0]!r}; whole numbers from 0 are allowed")
    return labels


def _splits(images: list[str], around: str, where: str) -> dict[str, str]:
    """Return the directories of splits, as prefixes. There must not be two of one kind (``test``, ``val``)."""
    tops = sorted({rest.partition("/")[0] for name in images if "/" in (rest := name.removeprefix(around))})
    found = {}
    for split, kinds in _SPLITS.items():
        for kind in kinds:
            fitting = [top for top in tops if (match := _SPLIT.fullmatch(top.lower())) and match[1] in kind]
            exact = [top for top in fitting if top in kind]
            fitting = exact if len(exact) == 1 else fitting
            if len(fitting) > 1:
                raise ValueError(
                    f"{where} has {' and '.join(fitting)}, each of which could be the {split} split: rename all but one"
                )
            if fitting:
                found[split] = f"{around}{fitting[0]}/"
                break
    return found


def _inner_splits(names: list[str], place: str) -> list[str]:
    """Return the directories of splits in those classes that have more than one kind: ``cat/train/``, ``cat/test/``."""
    kinds: dict[str, dict[str, str]] = {}
    for name in names:
        folder, _, rest = name.removeprefix(place).partition("/")
        top, slash, _ = rest.partition("/")
        if slash and (match := _SPLIT.fullmatch(top.lower())):
            kinds.setdefault(folder, {})[f"{folder}/{top}/"] = match[1]
    return sorted(part for parts in kinds.values() if len(set(parts.values())) > 1 for part in parts)


def _wrapper(images: list[str], files: list[str]) -> str:
    """Return the one directory around everything, as a prefix, if it holds images in subdirectories only."""
    prefix = ""
    while prefix + LABELS not in files:
        tops = {name.removeprefix(prefix).partition("/")[0] for name in images}
        top = min(tops)
        inside = f"{prefix}{top}/"
        if len(tops) > 1 or _SPLIT.fullmatch(top.lower()) or any("/" not in name[len(inside) :] for name in images):
            break
        prefix = inside
    return prefix


def _system(name: str) -> str:
    """Return the first part of a name that is hidden, or an operating system's; empty if there is none."""
    return next((part for part in name.split("/") if part.startswith(".") or part.lower() in _SYSTEM), "")


def _is_system(name: str) -> bool:
    return bool(_system(name))


def _parents(names: Iterable[str]) -> set[str]:
    """Return every directory that holds one of these, at any depth."""
    found = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in found:
            found.add(name)
    return found


def _endings(names: Iterable[str]) -> list[str]:
    """Count the names by ending: ``2 .txt``."""
    counts = Counter(PurePosixPath(name).suffix.lower() for name in names)
    return [f"{count:,} {ending}" if ending else _count(count, "file") for ending, count in sorted(counts.items())]


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
