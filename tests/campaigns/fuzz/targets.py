"""All targets, by name."""

from campaigns.fuzz import checkpoints, folders, tables, videos

TARGETS = {
    target.name: target
    for target in [*checkpoints.TARGETS, *folders.TARGETS, *tables.TARGETS, *videos.TARGETS]
}
