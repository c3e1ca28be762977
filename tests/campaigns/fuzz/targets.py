"""All targets, by name.

    target            what a case is                                what is called
    tensorflow        .index and data, Snappy or not                read_weights
    snappy            a raw block                                   decompress, and Arrow's
    array-pickle      nested dicts of arrays, protocol 4            read_array_pickle
    npz               the Chainer program's checkpoint              read_weights
    pytorch           zip and legacy, two namings                   read_weights
    safetensors       ours and others'                              read_weights
    onnx              metadata and a graph of three nodes           ExportedNetwork
    shards            manifest, sidecars, tars, KEY.json, pictures  open_dataset, all of it
    chainer           zips of both layouts                          open_chainer_folder, all of it
    features          .npz and .npy of videos, settings, failures   FeatureFolder, merge
    merged-features   Parquet and HDF5                              read_merged
    predictions       Parquet; CSV and its JSON                     read_predictions, Evaluation
    parts             what an evaluation resumes from               Part.from_bytes
    fvd               statistics, features and videos in arrays     fvd, the clips of videos
    arrays            any .npz                                      open_arrays
    train-state       state.pt                                      all before the first step
    annotations       CSV, lists, names on the disk                 read_dataset
    classes           lists of class names                          class_list
    pictures          folders of PNG, JPEG, WebP, BMP, TIFF         open_footage, every frame
    archives          zip, tar and .tgz of such folders             open_footage, every frame
    video-arrays      .pt, .safetensors, .npy of videos             open_footage, every frame
    videos            36 formats, found by their content            VideoReader: all, a window

How a sample is mutated stands beside each: bytes are damaged in all of them, and the functions
``falsify_...`` know the format and make its checksums and seals right again.
"""

from campaigns.fuzz import checkpoints, faults, folders, footage, tables, videos
from campaigns.fuzz.cases import Target

TARGETS = {
    target.name: target
    for room in (checkpoints, folders, tables, footage, videos)
    for target in room.TARGETS
}


def find_target(name: str) -> Target:
    """A target, or the one that tests the campaign itself."""
    return faults.TARGET if name == faults.TARGET.name else TARGETS[name]
