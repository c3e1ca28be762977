"""State dicts as torchvision's googlenet has them."""

import torch

# name, then 1x1 | 3x3 reduce, 3x3 | "5x5" reduce, "5x5" (3x3 in torchvision) | pool projection
BLOCKS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


def units(width):
    """(name, in, out, kernel) of every convolution."""

    def wide(channels):
        return round(channels * width)

    yield "conv1", 3, wide(64), 7
    yield "conv2", wide(64), wide(64), 1
    yield "conv3", wide(64), wide(192), 3
    channels = wide(192)
    for name, sizes in BLOCKS.items():
        one, reduce3, three, reduce5, five, pooled = map(wide, sizes)
        yield f"{name}.branch1", channels, one, 1
        yield f"{name}.branch2.0", channels, reduce3, 1
        yield f"{name}.branch2.1", reduce3, three, 3
        yield f"{name}.branch3.0", channels, reduce5, 1
        yield f"{name}.branch3.1", reduce5, five, 3
        yield f"{name}.branch4.1", channels, pooled, 1
        channels = one + three + five + pooled


def googlenet(*, width=0.125, classes=5, exact=True, seed=0):
    """A state dict as torchvision's, with statistics like a trained network's.

    With ``exact`` filters are multiples of 21 / 4096 and scales powers of two, so that dividing by
    3 and 7 and folding the scales in rounds nothing, and float64 shows what the rest does.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    state = {}
    for name, inputs, outputs, kernel in units(width):
        shape = (outputs, inputs, kernel, kernel)
        weight = random(*shape, low=-1, high=1) * (3 / (inputs * kernel**2)) ** 0.5
        scale = random(outputs, low=0.5, high=2)
        if exact:
            weight = (weight * 4096 / 21).round() * 21 / 4096
            scale = 2.0 ** torch.randint(-1, 2, (outputs,), generator=generator)
        state |= {
            f"{name}.conv.weight": weight,
            f"{name}.bn.weight": scale,
            f"{name}.bn.bias": random(outputs, low=-0.2, high=0.5),
            f"{name}.bn.running_mean": random(outputs, low=-0.2, high=0.2),
            f"{name}.bn.running_var": random(outputs, low=0.3, high=1.5),
            f"{name}.bn.num_batches_tracked": torch.tensor(7),
        }
    features = round(1024 * width)
    state["fc.weight"] = random(classes, features, low=-0.2, high=0.2)
    state["fc.bias"] = random(classes, low=-0.2, high=0.2)
    state["aux1.conv.conv.weight"] = random(4, 4, 1, 1, low=-1, high=1)
    state["aux2.fc2.bias"] = random(classes, low=-1, high=1)
    return state
