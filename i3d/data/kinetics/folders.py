"""Class folders, and a flat folder without labels."""

from i3d import files
from i3d.classes import CLASS_LISTS, ClassList
from i3d.data.kinetics.dataset import Dataset, Video, make_keys, stem_of
from i3d.data.kinetics.labels import Inputs, Labeller, assemble, count, mention_ignored
from i3d.data.kinetics.listing import find_replacements, scan_class_folders, split_of
from i3d.errors import DatasetError


def read_folders(inputs: Inputs) -> Dataset:
    """Read ``<class name>/<file>.mp4``."""
    top = inputs.folder
    inner = scan_class_folders(top)
    full = {name: folder for name, folder in inner.items() if folder.videos}
    splits = [name for name in inner if split_of(name)]
    if splits and len(splits) == len(inner):
        raise DatasetError(
            f"{top.location} holds the splits {', '.join(splits)};"
            f" pass one: {files.join(top.location, splits[-1])}"
        )
    if not full:
        deep = next((folder for folder in inner.values() if folder.folders), None)
        hint = f"; is the dataset in {deep.location}?" if deep else ""
        raise DatasetError(
            f"{top.location}: no videos in it or in its {count(len(inner), 'folder')}; expected"
            f" <class name>/<file>.mp4, or <id>_<start>_<end>.mp4 with a CSV{hint}"
        )

    warnings = []
    if top.videos:
        warnings.append(f"left out: {count(len(top.videos), 'video')} outside the class folders")
    if inputs.classes == "folders":
        inputs = inputs._replace(classes=ClassList("folders", tuple(inner)))
        warnings.append(
            "class indices are positions in the sorted list of these folders; another copy of the"
            " data with other folders gets other indices"
        )
        if empty := [name for name in inner if name not in full]:
            warnings.append(
                f"no videos for {count(len(empty), 'class folder')}, such as {empty[0]!r}"
            )
    # A known class without videos here still tells which Kinetics it is; a stray folder does not.
    known = [n for n in inner if any(c.find(n) is not None for c in CLASS_LISTS.values())]
    places = {name: folder.location for name, folder in full.items()}
    labeller = Labeller(inputs, places, also=known)
    good = find_replacements(top)
    replaced = 0
    videos = []
    paths = [f"{name}/{video}" for name, folder in full.items() for video in folder.videos]
    for path, key in zip(paths, make_keys(paths), strict=True):
        folder_name, _, video = path.partition("/")
        location = good.get(stem_of(video))
        replaced += location is not None
        videos.append(
            Video(key, location or files.join(top.location, path), *labeller(folder_name))
        )
    understood = (
        f"{count(len(videos), 'video')} in {count(len(full), 'class folder')} of {top.location}"
        f"{mention_ignored([top, *inner.values()])}"
    )
    return assemble(
        inputs, videos, labeller, understood=understood, replaced=replaced, warnings=warnings
    )


def read_flat(inputs: Inputs) -> Dataset:
    """Read ``<file>.mp4``, where labels are optional."""
    folder = inputs.folder
    if not folder.videos:
        raise DatasetError(f"{folder.location}: no videos in it")
    if inputs.labels_required:
        raise DatasetError(
            f"{folder.location}: {count(len(folder.videos), 'video')} without labels; no CSV is in"
            " it, in annotations/ or beside it: pass --annotations, or use class folders"
        )
    good = find_replacements(folder)
    videos = [
        Video(key, good.get(stem_of(name)) or files.join(folder.location, name))
        for name, key in zip(folder.videos, make_keys(folder.videos), strict=True)
    ]
    return assemble(
        inputs,
        videos,
        Labeller(inputs, {}),
        understood=f"{count(len(videos), 'video')} in {folder.location}{mention_ignored([folder])}",
        replaced=sum(stem_of(name) in good for name in folder.videos),
    )
