"""Whether a model's patches cover its images to the last row and column."""

from torch import nn

LARGEST = 4096  # pixels


def covered_sizes(model: nn.Module, image_size: int) -> tuple[int, ...]:
    """The nearest sides of square images, at most one below and one above, that the patches cover.

    Empty where they cover `image_size`, or where none of the modules named `patch_embed` is a convolution without
    padding. Those of later stages cut what the earlier ones leave.
    """
    convs = [
        (conv.kernel_size[0], conv.stride[0])
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "patch_embed" and (conv := patch_conv(module)) is not None
    ]
    if covers(convs, image_size):
        return ()
    below = next((size for size in range(image_size - 1, 0, -1) if covers(convs, size)), None)
    above = next((size for size in range(image_size + 1, LARGEST + 1) if covers(convs, size)), None)
    return tuple(size for size in (below, above) if size is not None)


def patch_conv(embedding: nn.Module) -> nn.Conv2d | None:
    """The convolution that cuts patches, where it leaves out what does not fill one."""
    found = [conv for name in ("proj", "conv") if isinstance(conv := getattr(embedding, name, None), nn.Conv2d)]
    pads = getattr(embedding, "dynamic_img_pad", False) or (found and found[0].padding not in ((0, 0), "valid"))
    return found[0] if found and not pads else None


def covers(convs: list[tuple[int, int]], size: int) -> bool:
    for kernel, stride in convs:
        if size < kernel or (size - kernel) % stride:
            return False
        size = (size - kernel) // stride + 1
    return True
