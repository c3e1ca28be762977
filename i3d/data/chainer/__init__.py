"""What the Chainer program precomputed: zips of JPEG frames and flow, read as shards of ours are.

    shard_{rank}_{i}.zip, older shard_{i}.zip       at most so many samples, stored uncompressed
        sample_{k}/label                            decimal; k counts from 0
        sample_{k}/rgb/{t}.jpg                      T frames, YCbCr; t counts from 0, no padding
        sample_{k}/flow_x/{t}.jpg, flow_y/{t}.jpg   T - 1, gray; absent without flow
    {rgb,flow_x,flow_y}/class_{label}/sample_{id}.zip    older yet, a zip a video and stream
        {t}.jpg

No name, rate or checksum is in them, so keys are made up: ``shard_0_3/sample_12``,
``class_7/sample_345``. A label is the position in the sorted list of the class folders that had a
readable video. Flow is stored as ``round((f + 20) * 255 / 40)``, clipped to 0..255. Source: see
`i3d.presets.CHAINER_I3D`.
"""

from i3d.data.chainer.dataset import ChainerDataset, is_chainer_folder, open_chainer_folder

__all__ = ["ChainerDataset", "is_chainer_folder", "open_chainer_folder"]
